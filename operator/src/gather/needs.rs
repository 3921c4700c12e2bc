//! What pods request and what nodes have to give, read from their objects.

use bascule_api::{Operator, Requirement, Selector};
use bascule_planner::drain::{Barrier, Needs, Term, Toleration};
use k8s_openapi::{
    api::core::v1::{Container, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint},
    apimachinery::pkg::api::resource::Quantity,
};
use std::collections::BTreeMap;

type Amounts = BTreeMap<String, u64>;

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
        exponent => match exponent.trim_start_matches(['e', 'E']).parse::<i32>() {
            Ok(power) => 10_f64.powi(power),
            Err(_) => return 0,
        },
    };
    let unit = if resource == "cpu" { 1_000.0 } else { 1.0 };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative; a cast saturates")]
    {
        (number * scale * unit).ceil() as u64
    }
}

/// Amounts by resource.
pub(super) fn amounts(quantities: Option<&BTreeMap<String, Quantity>>) -> Amounts {
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

/// What a pod requests as the scheduler counts it: its containers together, or an init container that wants more, and the
/// overhead of its runtime (Kubernetes, "Resource sharing within containers").
fn requests(spec: &PodSpec) -> Amounts {
    let mut sum = Amounts::new();
    spec.containers.iter().for_each(|container| add(&mut sum, &of_container(container)));
    let init = spec.init_containers.as_deref().unwrap_or_default();
    let sidecars = init.iter().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    sidecars.for_each(|container| add(&mut sum, &of_container(container)));
    for container in init {
        for (resource, much) in of_container(container) {
            let most = sum.entry(resource).or_default();
            *most = much.max(*most);
        }
    }
    for (resource, much) in amounts(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref())) {
        sum.insert(resource, much);
    }
    add(&mut sum, &amounts(spec.overhead.as_ref()));
    sum.insert("pods".to_owned(), 1);
    sum.retain(|_, much| *much > 0);
    sum
}

fn toleration(toleration: &k8s_openapi::api::core::v1::Toleration) -> Option<Toleration> {
    let key = toleration.key.clone().unwrap_or_default();
    let value = match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => None,
        "Equal" => Some(toleration.value.clone().unwrap_or_default()),
        _ => return None, // comparisons of numbers are not judged
    };
    // What only lets a pod stay on a node for a while says nothing about where it may go.
    if toleration.toleration_seconds.is_some() {
        return None;
    }
    Some(Toleration { key, value, effect: toleration.effect.clone().unwrap_or_default() })
}

fn term(term: &NodeSelectorTerm) -> Term {
    let mut made = Term::default();
    for requirement in term.match_expressions.as_deref().unwrap_or_default() {
        let NodeSelectorRequirement { key, operator, values } = requirement;
        let values = values.clone().unwrap_or_default();
        let operator = match operator.as_str() {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            other => {
                let than = values.first().and_then(|value| value.parse().ok()).unwrap_or_default();
                made.numbers.push((key.clone(), other == "Gt", than));
                continue;
            }
        };
        made.labels.match_expressions.push(Requirement { key: key.clone(), operator, values });
    }
    for requirement in term.match_fields.as_deref().unwrap_or_default() {
        // The only field there is; NotIn is as good as nothing where many nodes are asked.
        if requirement.key == "metadata.name" && requirement.operator == "In" {
            made.names = Some(requirement.values.clone().unwrap_or_default());
        }
    }
    made
}

/// What a pod needs of a node.
pub(super) fn needs(spec: Option<&PodSpec>) -> Needs {
    let Some(spec) = spec else { return Needs::default() };
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    Needs {
        requests: requests(spec),
        selector: spec.node_selector.clone().unwrap_or_default(),
        terms: required.map(|required| required.node_selector_terms.iter().map(term).collect()),
        tolerations: spec.tolerations.as_deref().unwrap_or_default().iter().filter_map(toleration).collect(),
    }
}

/// The taints of a node that keep pods away, those of cordons apart.
pub(super) fn barriers(taints: &[Taint]) -> Vec<Barrier> {
    let keeps = |taint: &&Taint| taint.effect != "PreferNoSchedule" && taint.key != "node.kubernetes.io/unschedulable";
    let barrier = |taint: &Taint| Barrier {
        key: taint.key.clone(),
        value: taint.value.clone().unwrap_or_default(),
        effect: taint.effect.clone(),
    };
    taints.iter().filter(keeps).map(barrier).collect()
}

/// What is left of a node's resources when its pods have what they request.
pub(super) fn left<'a>(allocatable: &Amounts, pods: impl Iterator<Item = &'a Needs>) -> Amounts {
    let mut left = allocatable.clone();
    for (resource, much) in pods.flat_map(|needs| &needs.requests) {
        if let Some(free) = left.get_mut(resource) {
            *free = free.saturating_sub(*much);
        }
    }
    left
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
            ("memory", "500m", 1),
            ("example.com/gpu", "2", 2),
            ("memory", "nonsense", 0),
        ] {
            assert_eq!(amount(resource, &Quantity(text.to_owned())), expected, "{text}");
        }
    }

    #[test]
    fn a_pod_requests_what_its_containers_do_or_an_init_container_that_wants_more() {
        let spec = serde_json::from_value(serde_json::json!({
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Ki"}}},
                {"name": "b", "resources": {"requests": {"cpu": "100m"}}}
            ],
            "initContainers": [
                {"name": "i", "resources": {"requests": {"cpu": "150m", "memory": "3Ki"}}},
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "10m"}}}
            ],
            "overhead": {"cpu": "5m"}
        }))
        .unwrap();
        let wanted = [("cpu".to_owned(), 215), ("memory".to_owned(), 3_072), ("pods".to_owned(), 1)];
        assert_eq!(requests(&spec), wanted.into());
        let left = left(&[("cpu".to_owned(), 300)].into(), [needs(Some(&spec))].iter());
        assert_eq!(left, [("cpu".to_owned(), 85)].into());
    }
}
