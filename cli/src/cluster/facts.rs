//! The planner's facts as far as an on-call engineer may read them: Nodes, Bascule's own objects, and pods that end by
//! themselves, since drains may wait for them. Other pods and PodDisruptionBudgets are left out, and of a channel only what
//! the policy's status remembers is known. How objects become facts is `bascule-facts`' to say, as it is for the operator.

use super::{list, list_where};
use bascule_api as api;
use bascule_api::{Architecture, Digest, Time, Version};
use bascule_facts::{
    Assembler, ClaimFact, DeadlineFact, Fact, FreezeFact, Gathered, Key, LookUp, NodeFact, NodeFacts, Place, PodFact,
    PolicyFact, RollbackFact, Sent, Untyped, UpdateFact,
};
use bascule_planner::{
    Snapshot,
    drain::Space,
    snapshot::{EtcdMember, Node, NodePods, Offer, OfferState, Release, Unreadable},
};
use k8s_openapi::api::{batch::v1::Job, core::v1};
use kube::{Resource, ResourceExt as _, api::ListParams};
use serde::de::DeserializeOwned;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Debug,
    sync::Arc,
};

/// What was read from the cluster.
#[derive(Debug, Default)]
pub(super) struct Objects {
    pub(super) nodes: Vec<v1::Node>,
    pub(super) updates: Vec<api::NodeUpdate>,
    pub(super) policies: Vec<api::UpdatePolicy>,
    pub(super) freezes: Vec<api::Freeze>,
    pub(super) rollbacks: Vec<api::Rollback>,
    /// Pods that end by themselves.
    pub(super) ending: Vec<v1::Pod>,
    /// Their Jobs.
    pub(super) jobs: Vec<Job>,
    /// What this program does not understand, and what can be read of it.
    pub(super) hidden: Hidden,
}

/// Objects that say something that this program does not know.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    pub(super) nodes: Vec<Untyped>,
    pub(super) updates: Vec<Untyped>,
    pub(super) policies: Vec<Untyped>,
    pub(super) freezes: Vec<Untyped>,
    pub(super) rollbacks: Vec<Untyped>,
}

/// Pods that end by themselves some day and have not yet. Of the others a forecast needs nothing, and there are many.
const ENDING: &str = "spec.restartPolicy!=Always,status.phase!=Succeeded,status.phase!=Failed";

impl Objects {
    /// Reads all of them.
    pub(super) async fn read(client: &kube::Client) -> anyhow::Result<Self> {
        let ends = async {
            let read = ending(client).await;
            anyhow::Ok(read.unwrap_or_else(|error| {
                tracing::warn!("Jobs that drains wait for are not counted: {error:#}");
                (Vec::new(), Vec::new())
            }))
        };
        let (
            (nodes, hidden_nodes),
            (updates, hidden_updates),
            (policies, hidden_policies),
            (freezes, hidden_freezes),
            (rollbacks, hidden_rollbacks),
            (ending, jobs),
        ) = tokio::try_join!(
            listed::<NodeFact>(client, "Nodes"),
            listed::<UpdateFact>(client, "NodeUpdates"),
            listed::<PolicyFact>(client, "UpdatePolicies"),
            listed::<FreezeFact>(client, "Freezes"),
            listed::<RollbackFact>(client, "Rollbacks"),
            ends,
        )?;
        let hidden = Hidden {
            nodes: hidden_nodes,
            updates: hidden_updates,
            policies: hidden_policies,
            freezes: hidden_freezes,
            rollbacks: hidden_rollbacks,
        };
        Ok(Self { nodes, updates, policies, freezes, rollbacks, ending, jobs, hidden })
    }
}

/// The objects of a kind, those apart that are not understood.
async fn listed<T: Fact>(client: &kube::Client, what: &str) -> anyhow::Result<(Vec<T::Raw>, Vec<Untyped>)>
where
    T::Raw: Clone + Debug + DeserializeOwned,
{
    let (mut read, mut hidden) = (Vec::new(), Vec::new());
    for sent in list::<Sent<T::Raw>>(client, what).await? {
        match sent.readable(T::SAID) {
            Ok(raw) => read.push(raw),
            Err(untyped) => hidden.push(*untyped),
        }
    }
    Ok((read, hidden))
}

async fn ending(client: &kube::Client) -> anyhow::Result<(Vec<v1::Pod>, Vec<Job>)> {
    let pods: Vec<v1::Pod> = list_where(client, "Pods", ListParams::default().fields(ENDING)).await?;
    let of_jobs = pods.iter().flat_map(|pod| pod.owner_references()).any(|owner| owner.kind == "Job");
    let jobs = if of_jobs { list(client, "Jobs").await? } else { Vec::new() };
    Ok((pods, jobs))
}

/// The facts of a kind by their keys, with what is to be taken for those that are not understood.
fn facts<T: Fact>(read: &[T::Raw], hidden: &[Untyped]) -> BTreeMap<Key, Arc<T>> {
    let read = read.iter().map(|raw| (Key::of_metadata(raw.meta()), T::of(raw)));
    let presumed =
        hidden.iter().filter_map(|untyped| Some((Key::of_metadata(untyped.metadata()), T::presumed(untyped, None)?)));
    read.chain(presumed).map(|(key, fact)| (key, Arc::new(fact))).collect()
}

/// What is said of objects of a kind that are not understood.
fn told<T: Fact>(hidden: &[Untyped]) -> Vec<Unreadable> {
    hidden.iter().map(|untyped| untyped.told(&<T::Raw as Resource>::kind(&()))).collect()
}

/// The deadlines of Jobs. Of other pods than those that end, and of volumes, nothing is known.
struct Deadlines(BTreeMap<Key, Arc<DeadlineFact>>);

impl LookUp for Deadlines {
    fn pod(&self, _: &Key) -> Option<Arc<PodFact>> {
        None
    }

    fn unready_pods(&self) -> Vec<Arc<PodFact>> {
        Vec::new()
    }

    fn deadline(&self, key: &Key) -> Option<Arc<DeadlineFact>> {
        self.0.get(key).cloned()
    }

    fn claim(&self, _: &Key) -> Option<Arc<ClaimFact>> {
        None
    }
}

/// The snapshot that the planner is run forward from. Whoever looks once takes a trial that it finds to have begun with the reboot.
pub(super) fn snapshot(objects: &Objects, seed: u64, now: Time) -> Snapshot {
    let hidden = &objects.hidden;
    let updates = facts::<UpdateFact>(&objects.updates, &hidden.updates);
    let unreadable: HashMap<String, Arc<Unreadable>> =
        [told::<NodeFact>(&hidden.nodes), told::<UpdateFact>(&hidden.updates)]
            .into_iter()
            .flatten()
            .map(|told| (told.object.name.clone(), Arc::new(told)))
            .collect();
    let mut pods: HashMap<String, Place<PodFact>> = HashMap::new();
    for (key, pod) in facts::<PodFact>(&objects.ending, &[]) {
        Arc::make_mut(pods.entry(pod.node.clone()).or_default()).insert(Arc::new(key), pod);
    }
    let nodes: Vec<NodeFacts> = facts::<NodeFact>(&objects.nodes, &hidden.nodes)
        .into_iter()
        .map(|(key, node)| NodeFacts {
            update: updates.get(&key).cloned(),
            earlier: None,
            unreadable: unreadable.get(&key.name).cloned(),
            pods: pods.get(&key.name).cloned().unwrap_or_default(),
            attachments: Place::default(),
            drain: None,
            node,
        })
        .collect();
    let mut machines = Machines::new();
    for facts in &nodes {
        let Some(machine) = facts.node.architecture else { continue };
        let asked = facts.update.as_ref().and_then(|update| update.facts.spec.release.as_ref());
        let asked = asked.map(|release| (release.version.clone(), release.digest.clone()));
        machines.entry(machine).or_default().extend(asked);
    }
    let policies = facts::<PolicyFact>(&objects.policies, &hidden.policies).into_values();
    let mut snapshot = Assembler::default().assemble(Gathered {
        now,
        seed,
        nodes,
        policies: policies.map(|policy| Arc::new(PolicyFact::clone(&policy).unless_refused())).collect(),
        offer: &|policy| Arc::new(offer(&policy.status, &machines)),
        budgets: Vec::new(),
        daemon_sets: Vec::new(),
        freezes: facts::<FreezeFact>(&objects.freezes, &hidden.freezes).into_values().collect(),
        rollbacks: facts::<RollbackFact>(&objects.rollbacks, &hidden.rollbacks).into_values().collect(),
        unreadable_orders: [told::<FreezeFact>(&hidden.freezes), told::<RollbackFact>(&hidden.rollbacks)].concat(),
        jobs: Vec::new(),
        known: &Deadlines(facts::<DeadlineFact>(&objects.jobs, &[])),
        own_pod: None,
    });
    // The pods of etcd are not read here: the operator has seen where one is.
    let members = snapshot.policies.iter().flat_map(|policy| &policy.status.cluster_members);
    let members: BTreeSet<String> = members.filter(|member| member.etcd).map(|member| member.node.clone()).collect();
    for node in &mut snapshot.nodes {
        complete(Arc::make_mut(node), &members);
    }
    snapshot
}

/// What is not read here and has to be taken for something.
fn complete(node: &mut Node, members: &BTreeSet<String>) {
    if node.etcd == EtcdMember::None && members.contains(&*node.name) {
        node.etcd = if node.ready.ready { EtcdMember::Healthy } else { EtcdMember::Unhealthy };
    }
    node.space = Space::default();
    // There is always something to drain, and it takes as long as it took lately.
    let seen = std::mem::take(&mut node.pods);
    node.pods =
        NodePods { remaining: 1, undrainable: seen.undrainable, completing: seen.completing, ..NodePods::default() };
}

/// The architectures of the machines, and which releases their nodes are asked for, by version and manifest.
type Machines = BTreeMap<Architecture, BTreeSet<(Version, Digest)>>;

/// The manifest of a release for one architecture. A policy remembers that of one of them; what it is for another nobody says here but
/// the nodes that are asked for it.
fn manifest(info: &api::ReleaseInfo, asked: &BTreeSet<(Version, Digest)>) -> Digest {
    let of_it: Vec<&Digest> =
        asked.iter().filter(|(version, _)| *version == info.version).map(|(_, digest)| digest).collect();
    match of_it.first() {
        Some(first) if !of_it.contains(&&info.digest) => (*first).clone(),
        _ => info.digest.clone(),
    }
}

/// Of a channel what the policy remembers of it.
fn offer(status: &api::UpdatePolicyStatus, machines: &Machines) -> Offer {
    let release = |info: &api::ReleaseInfo| Release {
        version: info.version.clone(),
        digests: machines.iter().map(|(machine, asked)| (*machine, manifest(info, asked))).collect::<BTreeMap<_, _>>(),
        severity: info.severity,
        published_at: info.published_at,
        floor: None,
        downgrade: false,
        kubelet: None,
        brings_api_server: false,
        state_version: info.state_version,
        withdrawn: None,
    };
    let known = [status.previous.as_ref(), status.target.as_ref()];
    Offer {
        state: if status.target.is_some() { OfferState::Valid } else { OfferState::Unread },
        releases: known.into_iter().flatten().map(release).collect(),
        repository: status.repository.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_planner::snapshot::{Cordon, Excluded, Truce};
    use serde_json::{Value, json};

    fn parse<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn node(name: &str, labels: Value, ready: &str) -> v1::Node {
        parse(json!({
            "metadata": {"name": name, "uid": format!("uid-of-{name}"), "labels": labels},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}
        }))
    }

    fn policy(name: &str, spec: Value, status: Value) -> api::UpdatePolicy {
        let mut whole = json!({
            "nodeSelector": {"matchLabels": {"pool": name}},
            "source": {"repository": "https://a.example/os", "channel": "stable"},
        });
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        parse(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": name, "generation": 2},
            "spec": whole, "status": status,
        }))
    }

    fn update(name: &str, spec: Value) -> Value {
        json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": name, "uid": "u"},
            "spec": spec, "status": {"bootID": "b"},
        })
    }

    /// A pod that ends some day and that nobody would bring back.
    fn build(node: &str) -> v1::Pod {
        parse(json!({
            "metadata": {"name": "build", "namespace": "ci", "uid": "p"},
            "spec": {"nodeName": node, "restartPolicy": "Never", "containers": []},
            "status": {"phase": "Running"}
        }))
    }

    fn seen(objects: &Objects) -> Snapshot {
        snapshot(objects, 0, Time::new(chrono::DateTime::from_timestamp(1_795_000_000, 0).unwrap()))
    }

    fn first(objects: &Objects) -> Arc<Node> {
        Arc::clone(&seen(objects).nodes[0])
    }

    #[test]
    fn an_etcd_member_is_known_and_judged_as_by_the_operator() {
        let label = "node-role.kubernetes.io/etcd";
        let member = policy("p", json!({}), json!({"clusterMembers": [{"node": "n", "etcd": true}]}));
        for (labels, ready, policies, wanted) in [
            (json!({}), "True", vec![], EtcdMember::None),
            (json!({label: "true"}), "True", vec![], EtcdMember::Healthy),
            (json!({label: "false"}), "True", vec![], EtcdMember::None),
            (json!({label: "true"}), "False", vec![], EtcdMember::Unhealthy),
            (json!({}), "True", vec![member.clone()], EtcdMember::Healthy),
            (json!({}), "Unknown", vec![member], EtcdMember::Unhealthy),
        ] {
            let objects = Objects { nodes: vec![node("n", labels.clone(), ready)], policies, ..Objects::default() };
            assert_eq!(first(&objects).etcd, wanted, "{labels} {ready}");
        }
    }

    #[test]
    fn what_is_said_of_a_node_is_what_the_operator_sees() {
        let mut node = node("n", json!({"node.kubernetes.io/exclude-from-external-load-balancers": "bascule"}), "True");
        node.metadata.managed_fields = Some(parse(json!([
            {"manager": "kubectl-cordon", "operation": "Update", "fieldsV1": {"f:spec": {"f:unschedulable": {}}}}
        ])));
        node.metadata.annotations = Some([(api::TRUCE_ANNOTATION.to_owned(), "{}".to_owned())].into());
        node.spec = Some(parse(json!({"unschedulable": true})));
        let mut update = update("n", json!({"policy": "p"}));
        update["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "example.com/v1", "kind": "Machine", "name": "m", "uid": "another"},
            {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "uid-of-n"},
        ]);
        let seen = first(&Objects { nodes: vec![node], updates: vec![parse(update)], ..Objects::default() });
        assert!(seen.live_update().is_some(), "it is owned by this Node, whoever else owns it");
        assert_eq!(seen.cordon, Cordon::Other { by: Some("kubectl-cordon".to_owned()), since: None });
        assert_eq!((seen.truce, seen.excluded), (Truce::Held, Excluded::ByUs));
    }

    #[test]
    fn a_node_is_drained_by_the_policy_that_disrupts_it_whether_or_not_that_can_be_used() {
        let waits =
            json!({"drain": {"rules": [{"name": "builds", "namespaces": ["ci"], "behavior": "WaitCompleted"}]}});
        let disrupted = update(
            "n",
            json!({"policy": "first", "disruption": {"grantedAt": "2026-11-21T12:00:00Z", "wasCordoned": false,
                "cause": {"object": {"kind": "UpdatePolicy", "name": "first"}}}}),
        );
        let completing = |labels: Value, policies: Vec<api::UpdatePolicy>, updates: Vec<Value>| {
            let objects = Objects {
                nodes: vec![node("n", labels, "True")],
                ending: vec![build("n")],
                updates: updates.into_iter().map(parse).collect(),
                policies,
                ..Objects::default()
            };
            first(&objects).pods.completing.is_some()
        };
        let second = || policy("second", json!({}), json!({}));
        let first = || policy("first", waits.clone(), json!({}));
        let moved = json!({"pool": "second"});
        assert!(!completing(moved.clone(), vec![first(), second()], vec![]));
        assert!(completing(moved, vec![first(), second()], vec![disrupted]), "its label was changed in between");
        let mut invalid = first();
        invalid.spec.source.repository = "http://a.example/os".to_owned();
        assert!(completing(json!({"pool": "first"}), vec![invalid], vec![]));
    }

    #[test]
    fn a_pod_that_may_not_be_evicted_keeps_its_node_from_being_drained() {
        let strict = |force: bool| {
            let policies = vec![policy("p", json!({"drain": {"force": force}}), json!({}))];
            let nodes = vec![node("n", json!({"pool": "p"}), "True")];
            first(&Objects { nodes, policies, ending: vec![build("n")], ..Objects::default() })
        };
        assert_eq!(strict(false).pods.undrainable.len(), 1);
        assert_eq!((strict(true).pods.undrainable.len(), strict(true).pods.remaining), (0, 1));
    }

    #[test]
    fn one_object_that_is_not_understood_is_held_and_hides_no_other() {
        let untyped = |object: Value, kind: &str| -> Untyped {
            let said = match kind {
                "NodeUpdate" => parse::<Sent<api::NodeUpdate>>(object).readable(&[]).err(),
                _ => parse::<Sent<api::Freeze>>(object).readable(&[]).err(),
            };
            *said.unwrap()
        };
        let mut strange = update("a", json!({"policy": "p"}));
        strange["status"]["lastError"] = json!({"category": "Volcano"});
        let freeze = json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "metadata": {"name": "stop"},
            "spec": {"reason": "incident", "duration": "until the moon is full"},
        });
        let hidden = Hidden {
            updates: vec![untyped(strange, "NodeUpdate")],
            freezes: vec![untyped(freeze, "Freeze")],
            ..Hidden::default()
        };
        let nodes = vec![node("b", json!({}), "True"), node("a", json!({}), "True")];
        let seen = seen(&Objects { nodes, hidden, ..Objects::default() });
        let (a, b) = (&seen.nodes[0], &seen.nodes[1]);
        assert!(a.unreadable.is_some() && a.update.is_some() && b.unreadable.is_none());
        assert_eq!(seen.unreadable_orders.len(), 1, "what it holds is not known");
    }

    #[test]
    fn a_policy_that_the_operator_can_not_use_is_none_here_either() {
        let accepted = json!([{"type": "Accepted", "status": "False", "reason": "Invalid", "observedGeneration": 2,
            "message": "spec.hooks: it may not create Jobs in ops", "lastTransitionTime": "2026-11-21T12:00:00Z"}]);
        let policies = vec![policy("p", json!({}), json!({"conditions": accepted}))];
        let seen = seen(&Objects { policies, ..Objects::default() });
        assert!(seen.policies[0].spec.as_ref().is_err_and(|error| error.to_string().contains("in ops")));
    }

    #[test]
    fn what_a_release_makes_of_the_state_is_foreseen_too() {
        let digest = format!("sha256:{}", "3".repeat(64));
        let policy: api::UpdatePolicy = serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": "workers"},
            "spec": {"nodeSelector": {}, "source": {"repository": "https://a.example/os", "channel": "stable"}},
            "status": {"target": {"version": "1.3", "digest": digest, "severity": "Low",
                "publishedAt": "2026-01-01T00:00:00Z", "stateVersion": 2}},
        }))
        .unwrap();
        let objects = Objects { policies: vec![policy], ..Objects::default() };
        let snapshot = snapshot(&objects, 0, Time::default());
        let known: Vec<_> = snapshot.policies[0].offer.releases.iter().map(|release| release.state_version).collect();
        assert_eq!(known, [Some(2)]);
    }

    #[test]
    fn a_manifest_for_another_architecture_is_the_one_that_its_nodes_are_asked_for() {
        let digest = |byte: u8| Digest::from_sha256(&[byte; 32]);
        let version: Version = "1.3".parse().unwrap();
        let info = api::ReleaseInfo {
            version: version.clone(),
            digest: digest(1),
            severity: api::Severity::Low,
            published_at: Time::default(),
            state_version: None,
        };
        for (asked, known) in [(vec![], 1), (vec![1], 1), (vec![2], 2), (vec![0, 1], 1)] {
            let asked: BTreeSet<_> = asked.into_iter().map(|byte| (version.clone(), digest(byte))).collect();
            assert_eq!(manifest(&info, &asked), digest(known));
        }
        let other = BTreeSet::from([("1.2".parse().unwrap(), digest(2))]);
        assert_eq!(manifest(&info, &other), digest(1));
    }
}
