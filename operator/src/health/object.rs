//! The object gate: objects of the cluster that must fulfil a CEL expression.
//!
//! They are read as an account that has nothing but what admins granted to gates (docs/security.md), and an answer holds names
//! of objects and what stands in the expression: never what an object holds.

use super::{
    GateAnswer,
    expression::{self, Seen},
};
use bascule_api::{ObjectGate, Selector};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
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

/// What discovery said of a kind, by API version and kind.
type Kinds = HashMap<(String, String), (ApiResource, Scope)>;

/// How long one reading serves: shorter than the time between two answers to one question.
const SHARED: Duration = Duration::from_millis(2_500);
/// How many readings are kept.
const MOST_READINGS: usize = 256;

/// What was read, and when.
type Reading = Option<(Instant, Result<Arc<Vec<Seen>>, String>)>;
/// Readings by what they read; each has a lock of its own, so that one that takes its time holds up no other.
type Readings = HashMap<String, Arc<tokio::sync::Mutex<Reading>>>;

/// What a gate reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Wanted {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    /// One object; else those of a list.
    name: Option<String>,
}

impl From<&ObjectGate> for Wanted {
    fn from(gate: &ObjectGate) -> Self {
        Self {
            api_version: gate.api_version.clone(),
            kind: gate.kind.clone(),
            namespace: gate.namespace.clone(),
            name: gate.name.clone(),
        }
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = self.namespace.as_ref().map(|namespace| format!(" of {namespace}")).unwrap_or_default();
        write!(f, "{} {}{place}", self.api_version, self.kind)
    }
}

/// Asks the API server.
#[derive(Clone)]
pub struct ObjectAsker {
    client: Client,
    kinds: Arc<Mutex<Kinds>>,
    readings: Arc<Mutex<Readings>>,
    expressions: expression::Judges,
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
        Self { client, kinds: Arc::default(), readings: Arc::default(), expressions: expression::Judges::default() }
    }

    pub(super) async fn ask(&self, gate: &ObjectGate, node: Option<&str>) -> GateAnswer {
        match self.reading(gate).await {
            Ok(objects) if objects.is_empty() && gate.optional => GateAnswer::Passed,
            Ok(objects) => self.expressions.judge(gate, objects, node).await,
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
        let (resource, scope) = self.kind(&gate.api_version, &gate.kind).await.map_err(|error| match error {
            kube::Error::Discovery(_) => format!("the cluster has no {} {}", gate.api_version, gate.kind),
            error => format!(
                "whether the cluster has {} {} is not known: {}",
                gate.api_version,
                gate.kind,
                crate::one_line(&error)
            ),
        })?;
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

    /// What the account of gates lacks to read this, as a sentence that says what gives it; `None` if nothing, or where there
    /// is no such kind, which the gate itself says.
    ///
    /// # Errors
    /// When the API server does not say.
    pub(crate) async fn lacks(&self, wanted: &Wanted) -> kube::Result<Option<String>> {
        let (resource, scope) = match self.kind(&wanted.api_version, &wanted.kind).await {
            Ok(found) => found,
            Err(kube::Error::Discovery(_)) => return Ok(None),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(None),
            Err(error) => return Err(error),
        };
        let namespace = wanted.namespace.clone().filter(|_| scope == Scope::Namespaced);
        let verb = if wanted.name.is_some() { "get" } else { "list" };
        let allowed = crate::rights::may(
            &self.client,
            ResourceAttributes {
                namespace: namespace.clone(),
                name: wanted.name.clone(),
                verb: Some(verb.to_owned()),
                group: Some(resource.group.clone()),
                resource: Some(resource.plural.clone()),
                ..ResourceAttributes::default()
            },
        );
        if allowed.await? {
            return Ok(None);
        }
        let plural = &resource.plural;
        let full = if resource.group.is_empty() { plural.clone() } else { format!("{plural}.{}", resource.group) };
        let place = namespace.map(|namespace| format!(" in the namespace {namespace}")).unwrap_or_default();
        Ok(Some(format!(
            "object gates may not {verb} {full}{place}; an admin allows that with `kubectl create clusterrole bascule-gates-{plural} \
             --verb=get,list --resource={full}` and `kubectl label clusterrole bascule-gates-{plural} \
             bascule.dev/aggregate-to-gates=true`"
        )))
    }

    async fn kind(&self, api_version: &str, kind: &str) -> kube::Result<(ApiResource, Scope)> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.kinds.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let wanted = GroupVersionKind::gvk(group, version, kind);
        let (resource, capabilities) = discovery::pinned_kind(&self.client, &wanted).await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Json, Router, routing::get};
    use bascule_api::{Operator, Requirement};
    use serde_json::json;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// An API server that knows of pods, has none, and counts how often it is asked for all of them.
    async fn api_server() -> (Client, Arc<AtomicUsize>) {
        bascule_tests::install_tls_provider();
        let pod =
            json!({"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"]});
        let kinds = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": [pod]});
        let pods = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []});
        let lists = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lists);
        let list = async move || {
            counted.fetch_add(1, Ordering::SeqCst);
            Json(pods)
        };
        let router = Router::new().route("/api/v1", get(async move || Json(kinds))).route("/api/v1/pods", get(list));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap(), lists)
    }

    #[tokio::test]
    async fn a_gate_that_is_asked_for_each_of_many_nodes_reads_its_objects_once() {
        let (client, lists) = api_server().await;
        let asker = ObjectAsker::new(client);
        let gate: ObjectGate = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod", "cel": "object.spec.nodeName != node", "optional": true
        }))
        .unwrap();
        let nodes: Vec<String> = (0..100).map(|node| format!("n{node}")).collect();
        let begun = Instant::now();
        let answers = futures::future::join_all(nodes.iter().map(|node| asker.ask(&gate, Some(node.as_str())))).await;
        // Once for as long as a reading serves, which a machine that has other things to do may need longer than.
        let most = 1 + usize::try_from(begun.elapsed().as_millis() / SHARED.as_millis()).unwrap();
        assert!(answers.iter().all(GateAnswer::passed), "{answers:?}");
        let lists = lists.load(Ordering::SeqCst);
        assert!((1..=most).contains(&lists), "{lists} times");
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
