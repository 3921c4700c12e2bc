//! The object gate: objects of the cluster that must fulfil a CEL expression.
//!
//! They are read as an account that has nothing but what admins granted to gates (docs/security.md), and an answer holds names
//! of objects and what stands in the expression: never what an object holds.

use super::{
    Answered, GateAnswer, expression,
    follow::{Follow, Follower, Rooms},
    held::{Asks, Held, Pace, Reading, lock},
    needs::Needs,
    source::{Source, right},
};
use crate::{
    clock::Moment,
    rights::{self, Lack},
};
use bascule_api::{ObjectGate, Selector};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    core::GroupVersionKind,
    discovery::{self, Scope, verbs},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::sync::Semaphore;

/// How many questions are told apart.
const MOST_READINGS: usize = 256;
/// How many watches are open at once. Who gets none reads as if there were no right to one.
const MOST_WATCHES: usize = 32;

/// What discovery said of a kind.
#[derive(Debug, Clone)]
struct Kind {
    resource: ApiResource,
    scope: Scope,
    /// Whether its objects can be watched, whoever may.
    watchable: bool,
}

/// Kinds by API version and kind, and as of when each was so.
type Kinds = HashMap<(String, String), (Moment, Kind)>;

/// What is known for one question, and who reads it.
#[derive(Debug, Default)]
struct Place {
    held: Arc<Mutex<Held>>,
    /// Who comes while it is read waits for that reading. Whoever follows it, too.
    reader: tokio::sync::Mutex<Option<Follower>>,
}

/// Places by what is read; each has a lock of its own, so that one that takes its time holds up no other. All are read as
/// the one account that gates have, so that it is no part of the question.
type Places = HashMap<String, Arc<Place>>;

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
    places: Arc<Mutex<Places>>,
    expressions: expression::Judges,
    watches: Arc<Semaphore>,
    rooms: Rooms,
    pace: Pace,
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
        Self::at(client, Pace::default())
    }

    /// The same at another pace.
    pub(super) fn at(client: Client, pace: Pace) -> Self {
        Self {
            client,
            kinds: Arc::default(),
            places: Arc::default(),
            expressions: expression::Judges::default(),
            watches: Arc::new(Semaphore::new(MOST_WATCHES)),
            rooms: Rooms::default(),
            pace,
        }
    }

    /// The same with so many bytes of memory for what gates look at.
    #[cfg(test)]
    pub(super) fn with_room(self, most: usize) -> Self {
        Self { rooms: Rooms::of(most), ..self }
    }

    pub(super) async fn ask(&self, asks: Asks, gate: &ObjectGate, node: Option<&str>) -> Answered {
        let needs = match self.expressions.needs(&gate.cel).await {
            Ok(needs) => needs,
            Err(answer) => return Answered { answer, as_of: Moment::now() },
        };
        match self.reading(asks, gate, &needs).await {
            Ok(Reading { objects, as_of }) if objects.is_empty() && gate.optional => {
                Answered { answer: GateAnswer::Passed, as_of }
            }
            Ok(Reading { objects, as_of }) => {
                Answered { answer: self.expressions.judge(gate, objects, node).await, as_of }
            }
            Err(reason) => Answered { answer: GateAnswer::Unknown(reason), as_of: Moment::now() },
        }
    }

    /// The objects of a gate as they are known, or else as they are read now, by whoever asks first: a gate that is asked
    /// for each node of a thousand costs one reading for all of them, and what changes then is heard.
    async fn reading(&self, asks: Asks, gate: &ObjectGate, needs: &Needs) -> Result<Reading, String> {
        let place = self.place(gate);
        let known = || lock(&place.held).ask(asks, needs, Moment::now(), &self.pace);
        if let Some(known) = known() {
            return known;
        }
        let mut follower = place.reader.lock().await;
        if let Some(known) = known() {
            return known;
        }
        let needs = lock(&place.held).begin(needs);
        *follower = None;
        let begun = Moment::now();
        let source = self.source(gate).await;
        let listed = match &source {
            Ok(source) => source.read(&needs, &self.rooms.room()).await,
            Err(reason) => Err(reason.clone().into()),
        };
        let (generation, reading) = lock(&place.held).take(needs.clone(), begun, Moment::now(), listed);
        if let (Ok(source), Ok(_)) = (source, &reading) {
            let follows = match asks {
                Asks::Plan => self.follow(source, &place.held, generation, needs),
                // The places are for gates that nodes wait for.
                Asks::People => None,
            };
            *follower = Some(follows.unwrap_or_else(|| Follower::of_nobody(&place.held, generation, &self.pace)));
        }
        reading
    }

    fn place(&self, gate: &ObjectGate) -> Arc<Place> {
        let key = format!("{:?}", (&gate.api_version, &gate.kind, &gate.namespace, &gate.name, &gate.selector));
        let mut places = lock(&self.places);
        if !places.contains_key(&key) {
            let now = Moment::now();
            places.retain(|_, place| !lock(&place.held).idle(now, &self.pace));
            if places.len() >= MOST_READINGS {
                places.clear();
            }
        }
        Arc::clone(places.entry(key).or_default())
    }

    /// Follows what was read, where that may be and there is room. One object by its name has no version to follow from,
    /// and is read each time that somebody asks: that costs the API server less than a watch, and needs no right to others.
    fn follow(&self, source: Source, held: &Arc<Mutex<Held>>, generation: u64, needs: Needs) -> Option<Follower> {
        let (weight, may) = {
            let mut held = lock(held);
            held.version(generation)?;
            (held.weight(), held.may_watch(Moment::now(), &self.pace).unwrap_or(true))
        };
        if !source.watchable || !may {
            return None;
        }
        let permit = Arc::clone(&self.watches).try_acquire_owned().ok()?;
        let room = self.rooms.room();
        if !room.holds(weight) {
            return None;
        }
        let (client, held, pace) = (self.client.clone(), Arc::clone(held), self.pace);
        Some(Follow { client, source, held, generation, needs, pace, room, permit }.start())
    }

    /// Where the objects of a gate come from.
    async fn source(&self, gate: &ObjectGate) -> Result<Source, String> {
        let kind = self.kind(&gate.api_version, &gate.kind).await.map_err(|error| match error {
            kube::Error::Discovery(_) => format!("the cluster has no {} {}", gate.api_version, gate.kind),
            error => format!(
                "whether the cluster has {} {} is not known: {}",
                gate.api_version,
                gate.kind,
                crate::one_line(&error)
            ),
        })?;
        let Kind { resource, scope, watchable } = kind;
        let namespace = gate.namespace.clone().filter(|_| scope == Scope::Namespaced);
        let api: Api<DynamicObject> = match &namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None if scope == Scope::Namespaced && gate.name.is_some() => {
                return Err(format!("{} lives in namespaces: a gate with a name needs a namespace", gate.kind));
            }
            None => Api::all_with(self.client.clone(), &resource),
        };
        let labels = gate.selector.as_ref().map(label_query).unwrap_or_default();
        Ok(Source { api, resource, namespace, labels, name: gate.name.clone(), watchable })
    }

    /// What the account of gates lacks to read this, as a sentence that says what gives it; `None` if nothing, or where there
    /// is no such kind, which the gate itself says.
    ///
    /// # Errors
    /// When the API server does not say.
    pub(crate) async fn lacks(&self, wanted: &Wanted) -> kube::Result<Option<Lack>> {
        let Kind { resource, scope, watchable } = match self.kind(&wanted.api_version, &wanted.kind).await {
            Ok(found) => found,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let namespace = wanted.namespace.clone().filter(|_| scope == Scope::Namespaced);
        let right = |verb| right(&resource, namespace.as_deref(), wanted.name.as_deref(), verb);
        let plural = &resource.plural;
        let full = if resource.group.is_empty() { plural.clone() } else { format!("{plural}.{}", resource.group) };
        let place = namespace.as_ref().map(|namespace| format!(" in the namespace {namespace}")).unwrap_or_default();
        let granted = |role: &str, verbs: &str| {
            format!(
                "an admin allows that with `kubectl create clusterrole {role} --verb={verbs} --resource={full}` and \
                 `kubectl label clusterrole {role} bascule.dev/aggregate-to-gates=true`"
            )
        };
        let verb = if wanted.name.is_some() { verbs::GET } else { verbs::LIST };
        if !rights::may(&self.client, right(verb)).await? {
            let granted = granted(&format!("bascule-gates-{plural}"), "get,list,watch");
            return Ok(Some(Lack::Needed(format!("object gates may not {verb} {full}{place}; {granted}"))));
        }
        // What can't be found out of the better way is no reason against the one there is.
        let well = wanted.name.is_some() || !watchable;
        if well || rights::may(&self.client, right(verbs::WATCH)).await.unwrap_or(true) {
            return Ok(None);
        }
        // Of another name than what is there already, which `kubectl create` would not change.
        let granted = granted(&format!("bascule-gates-watch-{plural}"), verbs::WATCH);
        Ok(Some(Lack::Better(format!(
            "object gates may list {full}{place} and not watch them, so that all of them are read again every few seconds; {granted}, \
             and the owner of a namespace with the verb watch in the Role that is bound there"
        ))))
    }

    async fn kind(&self, api_version: &str, kind: &str) -> kube::Result<Kind> {
        let key = (api_version.to_owned(), kind.to_owned());
        let known = lock(&self.kinds).get(&key).cloned();
        if let Some((_, known)) = known.as_ref().filter(|(asked, _)| asked.elapsed() < self.pace.kind) {
            return Ok(known.clone());
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let wanted = GroupVersionKind::gvk(group, version, kind);
        let (resource, capabilities) = match (discovery::pinned_kind(&self.client, &wanted).await, known) {
            (Ok(found), _) => found,
            // Nothing is said against it.
            (Err(error), Some((_, known))) if !is_missing(&error) => return Ok(known),
            (Err(error), _) => {
                lock(&self.kinds).remove(&key);
                return Err(error);
            }
        };
        let watchable = capabilities.supports_operation(verbs::WATCH);
        let found = Kind { resource, scope: capabilities.scope, watchable };
        lock(&self.kinds).insert(key, (Moment::now(), found.clone()));
        Ok(found)
    }
}

/// Whether the API server says that there is no such kind.
fn is_missing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Discovery(_) => true,
        kube::Error::Api(status) => status.code == 404,
        _ => false,
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

    /// An API server that knows of pods, which nobody can watch, has none, and counts how often it is asked for all of them.
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
        let begun = Moment::now();
        let answers =
            futures::future::join_all(nodes.iter().map(|node| asker.ask(Asks::Plan, &gate, Some(node.as_str())))).await;
        // Once for as long as a reading serves, which a machine that has other things to do may need longer than.
        let shared = Pace::default().shared;
        let most = 1 + usize::try_from(begun.elapsed().as_millis() / shared.as_millis()).unwrap();
        assert!(answers.iter().all(|answered| answered.answer.passed()), "{answers:?}");
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
