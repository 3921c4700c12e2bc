//! What pods need of nodes, kept once for all that need the same.

use crate::shared::Shared;
use bascule_api::{Operator, Requirement};
use bascule_planner::drain::{Barrier, Condition, Needs, Term, Toleration};
use k8s_openapi::{
    api::core::v1::{self, Container, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint},
    apimachinery::pkg::api::resource::Quantity,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

type Amounts = BTreeMap<String, u64>;

/// Most of what pods need is the same for all pods of a workload.
static KNOWN: LazyLock<Shared<Needs>> = LazyLock::new(Shared::default);

/// What a pod needs of a node, kept once.
pub(crate) fn shared_needs_of(spec: Option<&PodSpec>) -> Arc<Needs> {
    KNOWN.of(needs_of(spec))
}

/// What a pod needs of a node.
pub(crate) fn needs_of(spec: Option<&PodSpec>) -> Needs {
    let Some(spec) = spec else { return Needs::default() };
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    Needs {
        requests: requests(spec),
        selector: spec.node_selector.clone().unwrap_or_default(),
        terms: required.map(|required| required.node_selector_terms.iter().map(term).collect()),
        tolerations: spec.tolerations.iter().flatten().filter_map(toleration).collect(),
    }
}

/// A taint as tolerations are compared with it.
pub(crate) fn barrier(taint: &Taint) -> Barrier {
    Barrier { key: taint.key.clone(), value: taint.value.clone().unwrap_or_default(), effect: taint.effect.clone() }
}

/// A quantity in whole units, or thousandths for `cpu` (Kubernetes, "Quantity"); what can't be read is nothing.
fn amount(resource: &str, quantity: &Quantity) -> u64 {
    let text = quantity.0.trim();
    let end = text.find(|letter: char| !(letter.is_ascii_digit() || letter == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let Ok(number) = number.parse::<f64>() else { return 0 };
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1_048_576.0,
        "Gi" => 1_073_741_824.0,
        "Ti" => 1_099_511_627_776.0,
        "Pi" => 1_125_899_906_842_624.0,
        "Ei" => 1_152_921_504_606_846_976.0,
        exponent => match exponent.strip_prefix(['e', 'E']).and_then(|power| power.parse::<i32>().ok()) {
            Some(power) => 10_f64.powi(power),
            None => return 0,
        },
    };
    let unit = if resource == "cpu" { 1_000.0 } else { 1.0 };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; a cast saturates")]
    {
        // What binary fractions add must not round up.
        (number * (scale * unit) - 1e-6).ceil() as u64
    }
}

/// Amounts by resource: `cpu` in thousandths, everything else in whole units.
pub(crate) fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    quantities.into_iter().flatten().map(|(resource, much)| (resource.clone(), amount(resource, much))).collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (resource, much) in more {
        let sum = to.entry(resource.clone()).or_default();
        *sum = sum.saturating_add(*much);
    }
}

fn of_container(container: &Container) -> Amounts {
    amounts(container.resources.as_ref().and_then(|resources| resources.requests.as_ref()))
}

/// What a pod requests as the scheduler counts it: its containers and sidecars together, or an init container that wants
/// more beside the sidecars that were started before it, or what the pod itself says; and the overhead of its runtime
/// (Kubernetes, "Sidecar containers", "Pod-level resources", "Pod overhead").
fn requests(spec: &PodSpec) -> Amounts {
    let mut sum = Amounts::new();
    spec.containers.iter().for_each(|container| add(&mut sum, &of_container(container)));
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.as_deref().unwrap_or_default() {
        let mut now = of_container(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &now);
            now = sidecars.clone();
        } else {
            add(&mut now, &sidecars);
        }
        for (resource, much) in now {
            let most = starting.entry(resource).or_default();
            *most = much.max(*most);
        }
    }
    add(&mut sum, &sidecars);
    for (resource, much) in starting {
        let most = sum.entry(resource).or_default();
        *most = much.max(*most);
    }
    for (resource, much) in amounts(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref())) {
        sum.insert(resource, much);
    }
    add(&mut sum, &amounts(spec.overhead.as_ref()));
    sum.insert("pods".to_owned(), 1);
    sum.retain(|_, much| *much > 0);
    sum
}

fn toleration(toleration: &v1::Toleration) -> Option<Toleration> {
    let key = toleration.key.clone().unwrap_or_default();
    let value = match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => None,
        "Equal" => Some(toleration.value.clone().unwrap_or_default()),
        // Comparisons of numbers (KEP-5471) are not judged: as if it were not there.
        _ => return None,
    };
    Some(Toleration { key, value, effect: toleration.effect.clone().unwrap_or_default() })
}

fn condition(requirement: &NodeSelectorRequirement) -> Condition {
    let NodeSelectorRequirement { key, operator, values } = requirement;
    let values = values.clone().unwrap_or_default();
    let number = |greater: bool| match values.first().and_then(|value| value.parse().ok()) {
        Some(than) => Condition::Number { key: key.clone(), greater, than },
        None => Condition::Never,
    };
    let operator = match operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        "Gt" => return number(true),
        "Lt" => return number(false),
        _ => return Condition::Never,
    };
    Condition::Label(Requirement { key: key.clone(), operator, values })
}

fn term(term: &NodeSelectorTerm) -> Term {
    let labels = term.match_expressions.iter().flatten().map(condition);
    // The only field there is: metadata.name.
    let fields = term.match_fields.iter().flatten().map(|requirement| match condition(requirement) {
        Condition::Label(requirement) => Condition::Name(requirement),
        _ => Condition::Never,
    });
    Term(labels.chain(fields).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (resource, text, expected) in [
            ("cpu", "250m", 250),
            ("cpu", "1.5", 1_500),
            ("cpu", "2", 2_000),
            ("memory", "128Mi", 134_217_728),
            ("memory", "1G", 1_000_000_000),
            ("memory", "1e3", 1_000),
            ("memory", "1E", 1_000_000_000_000_000_000),
            ("memory", "500m", 1),
            ("example.com/gpu", "2", 2),
            ("memory", "nonsense", 0),
            ("memory", "1Zi", 0),
        ] {
            assert_eq!(amount(resource, &Quantity(text.to_owned())), expected, "{text}");
        }
    }

    #[test]
    fn a_pod_requests_what_its_containers_do_or_an_init_container_that_wants_more() {
        let spec = |init: serde_json::Value| {
            let raw = serde_json::json!({
                "containers": [
                    {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Ki"}}},
                    {"name": "b", "resources": {"requests": {"cpu": "100m"}}}
                ],
                "initContainers": init, "overhead": {"cpu": "5m"}
            });
            requests(&serde_json::from_value(raw).unwrap())
        };
        let wanted = |cpu: u64, memory: u64| {
            Amounts::from([("cpu".to_owned(), cpu), ("memory".to_owned(), memory), ("pods".to_owned(), 1)])
        };
        let first = serde_json::json!({"name": "i", "resources": {"requests": {"cpu": "195m", "memory": "3Ki"}}});
        let sidecar =
            serde_json::json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "10m"}}});
        assert_eq!(spec(serde_json::json!([first, sidecar])), wanted(215, 3_072));
        // What starts after a sidecar runs beside it.
        let big = serde_json::json!({"name": "i", "resources": {"requests": {"cpu": "300m"}}});
        assert_eq!(spec(serde_json::json!([sidecar, big])), wanted(315, 1_024));
    }
}
