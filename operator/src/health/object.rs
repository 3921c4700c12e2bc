//! The object gate: objects of the cluster that must fulfil a CEL expression.

use super::GateAnswer;
use bascule_api::{ObjectGate, Selector};
use cel::{Context, ExecutionError, Program, Value};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
    core::GroupVersionKind,
    discovery::{self, Scope},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many objects one gate may look at.
const MOST_OBJECTS: usize = 5_000;
/// How many are read at once.
const PAGE: u32 = 250;
/// How many objects a message names.
const SHOWN: usize = 3;

/// What discovery said of a kind, by API version and kind.
type Kinds = HashMap<(String, String), (ApiResource, Scope)>;

/// How long one reading serves: shorter than the time between two answers to one question.
const SHARED: Duration = Duration::from_millis(2_500);
/// How many readings are kept.
const MOST_READINGS: usize = 256;

/// An object that was read, as expressions see it.
#[derive(Debug)]
struct Seen {
    name: String,
    value: Value,
}

impl Seen {
    fn of(object: &DynamicObject) -> Result<Self, String> {
        let own = object.metadata.name.as_deref().unwrap_or_default();
        let name = match &object.metadata.namespace {
            Some(namespace) => format!("{namespace}/{own}"),
            None => own.to_owned(),
        };
        let value = cel::to_value(object).map_err(|error| first_line(&error.to_string()))?;
        Ok(Self { name, value })
    }
}

/// What was read, and when.
type Reading = Option<(Instant, Result<Arc<Vec<Seen>>, String>)>;
/// Readings by what they read; each has a lock of its own, so that one that takes its time holds up no other.
type Readings = HashMap<String, Arc<tokio::sync::Mutex<Reading>>>;

/// Asks the API server.
#[derive(Clone)]
pub struct ObjectAsker {
    client: Client,
    kinds: Arc<Mutex<Kinds>>,
    readings: Arc<Mutex<Readings>>,
}

impl std::fmt::Debug for ObjectAsker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ObjectAsker")
    }
}

impl ObjectAsker {
    /// An asker with this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, kinds: Arc::default(), readings: Arc::default() }
    }

    pub(super) async fn ask(&self, gate: &ObjectGate, node: Option<&str>) -> GateAnswer {
        match self.reading(gate).await {
            Ok(objects) if objects.is_empty() && gate.optional => GateAnswer::Passed,
            Ok(objects) => judge(&gate.kind, &gate.cel, &objects, node),
            Err(reason) => GateAnswer::Unknown(reason),
        }
    }

    /// The objects of a gate as they were read a moment ago, by whomever: a gate that is asked for each node of a thousand
    /// costs one reading for all of them.
    async fn reading(&self, gate: &ObjectGate) -> Result<Arc<Vec<Seen>>, String> {
        let key = format!("{:?}", (&gate.api_version, &gate.kind, &gate.namespace, &gate.name, &gate.selector));
        let place = {
            let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
            if readings.len() >= MOST_READINGS {
                readings.clear();
            }
            Arc::clone(readings.entry(key).or_default())
        };
        // Who comes while it is read waits for that reading.
        let mut reading = place.lock().await;
        if let Some((at, objects)) = reading.as_ref()
            && at.elapsed() < SHARED
        {
            return objects.clone();
        }
        let objects = self.objects(gate).await.and_then(|objects| {
            let seen = objects.iter().map(Seen::of).collect::<Result<Vec<_>, _>>()?;
            Ok(Arc::new(seen))
        });
        *reading = Some((Instant::now(), objects.clone()));
        objects
    }

    async fn objects(&self, gate: &ObjectGate) -> Result<Vec<DynamicObject>, String> {
        let (resource, scope) = self.kind(&gate.api_version, &gate.kind).await?;
        let api: Api<DynamicObject> = match (&scope, &gate.namespace) {
            (Scope::Namespaced, Some(namespace)) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            (Scope::Namespaced, None) if gate.name.is_some() => {
                return Err(format!("{} lives in namespaces: a gate with a name needs a namespace", gate.kind));
            }
            _ => Api::all_with(self.client.clone(), &resource),
        };
        let fail = |error: kube::Error| format!("{} can't be read: {}", gate.kind, crate::one_line(&error));
        if let Some(name) = &gate.name {
            return Ok(api.get_opt(name).await.map_err(fail)?.into_iter().collect());
        }
        let labels = gate.selector.as_ref().map(label_query).unwrap_or_default();
        let mut params = ListParams::default().labels(&labels).limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let page = api.list(&params).await.map_err(fail)?;
            objects.extend(page.items);
            if objects.len() > MOST_OBJECTS {
                return Err(format!("more than {MOST_OBJECTS} objects: narrow the gate by namespace or selector"));
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(objects),
            }
        }
    }

    async fn kind(&self, api_version: &str, kind: &str) -> Result<(ApiResource, Scope), String> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let wanted = GroupVersionKind::gvk(group, version, kind);
        let (resource, capabilities) = discovery::pinned_kind(&self.client, &wanted)
            .await
            .map_err(|error| format!("the cluster has no {api_version} {kind}: {}", crate::one_line(&error)))?;
        let found = (resource, capabilities.scope);
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner).insert(key, found.clone());
        Ok(found)
    }
}

/// A selector as the API server's query.
fn label_query(selector: &Selector) -> String {
    use bascule_api::Operator;
    let equal = selector.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
    let others = selector.match_expressions.iter().map(|requirement| {
        let (key, values) = (&requirement.key, requirement.values.join(","));
        match requirement.operator {
            Operator::In => format!("{key} in ({values})"),
            Operator::NotIn => format!("{key} notin ({values})"),
            Operator::Exists => key.clone(),
            Operator::DoesNotExist => format!("!{key}"),
        }
    });
    equal.chain(others).collect::<Vec<_>>().join(",")
}

/// Whether an expression can be parsed; for the validation of policies.
///
/// # Errors
/// What is wrong with it.
pub fn check(expression: &str) -> Result<(), String> {
    Program::compile(expression).map(|_| ()).map_err(|error| first_line(&error.to_string()))
}

fn first_line(text: &str) -> String {
    text.lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("it can't be parsed")
        .chars()
        .take(200)
        .collect()
}

fn judge(kind: &str, expression: &str, objects: &[Seen], node: Option<&str>) -> GateAnswer {
    let program = match Program::compile(expression) {
        Ok(program) => program,
        Err(error) => {
            return GateAnswer::Unknown(format!("the CEL expression is wrong: {}", first_line(&error.to_string())));
        }
    };
    if objects.is_empty() {
        return GateAnswer::Unknown(format!("there is no such {kind}"));
    }
    let mut context = Context::default();
    context.add_variable_from_value("node", node.unwrap_or_default().to_owned());
    let (mut bad, mut unknown) = (Vec::new(), Vec::new());
    for object in objects {
        let mut own = context.new_inner_scope();
        own.add_variable_from_value("object", object.value.clone());
        match evaluate(&program, &own) {
            Ok(true) => {}
            Ok(false) => bad.push(object.name.clone()),
            Err(reason) => unknown.push(format!("{} ({reason})", object.name)),
        }
    }
    let list = |names: &[String]| {
        let more = if names.len() > SHOWN { format!(" and {} more", names.len() - SHOWN) } else { String::new() };
        format!("{}{more}", names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", "))
    };
    if !bad.is_empty() {
        GateAnswer::Failed(format!("{kind} {} does not fulfil: {expression}", list(&bad)))
    } else if !unknown.is_empty() {
        GateAnswer::Unknown(format!("the expression can't be evaluated for {kind} {}", list(&unknown)))
    } else {
        GateAnswer::Passed
    }
}

fn evaluate(program: &Program, context: &Context<'_>) -> Result<bool, String> {
    match program.execute(context) {
        Ok(Value::Bool(holds)) => Ok(holds),
        Ok(_) => Err("it gives something other than true or false".to_owned()),
        // Not yet: a pod that waits for its node, a status that nobody has written.
        Err(ExecutionError::NoSuchKey(key)) => Err(format!("it has no {key} yet")),
        Err(error) => Err(first_line(&error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::{Operator, Requirement};

    fn deployment(name: &str, available: i64) -> Seen {
        let object = serde_json::from_value(serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"replicas": 3}, "status": {"availableReplicas": available}
        }));
        Seen::of(&object.unwrap()).unwrap()
    }

    const AVAILABLE: &str = "object.status.availableReplicas >= object.spec.replicas";

    #[test]
    fn every_object_must_fulfil_it() {
        let good = [deployment("web", 3), deployment("cart", 4)];
        assert_eq!(judge("Deployment", AVAILABLE, &good, None), GateAnswer::Passed);
        let mixed = [deployment("web", 3), deployment("cart", 2)];
        let answer = judge("Deployment", AVAILABLE, &mixed, None);
        assert!(
            matches!(&answer, GateAnswer::Failed(m) if m.starts_with("Deployment shop/cart does not fulfil")),
            "{answer:?}"
        );
    }

    #[test]
    fn what_can_not_be_known_does_not_pass() {
        let one = [deployment("web", 3)];
        for (expression, objects, part) in [
            (AVAILABLE, &[][..], "no such Deployment"),
            ("object.status.", &one[..], "expression is wrong"),
            (
                "object.status.unknownField > 1",
                &one[..],
                "can't be evaluated for Deployment shop/web (it has no unknownField yet)",
            ),
            ("object.spec.replicas", &one[..], "other than true or false"),
        ] {
            let answer = judge("Deployment", expression, objects, None);
            assert!(matches!(&answer, GateAnswer::Unknown(m) if m.contains(part)), "{expression}: {answer:?}");
        }
        assert!(check("object.a ==").is_err() && check(AVAILABLE).is_ok());
    }

    #[test]
    fn the_node_is_a_variable() {
        assert_eq!(judge("Deployment", "node == 'n1'", &[deployment("web", 3)], Some("n1")), GateAnswer::Passed);
    }

    #[test]
    fn selectors_become_queries() {
        let requirement = |operator, values: &[&str]| Requirement {
            key: "tier".into(),
            operator,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        };
        let selector = Selector {
            match_labels: [("app".to_owned(), "web".to_owned())].into(),
            match_expressions: vec![
                requirement(Operator::In, &["a", "b"]),
                requirement(Operator::NotIn, &["c"]),
                requirement(Operator::Exists, &[]),
                requirement(Operator::DoesNotExist, &[]),
            ],
        };
        assert_eq!(label_query(&selector), "app=web,tier in (a,b),tier notin (c),tier,!tier");
    }
}
