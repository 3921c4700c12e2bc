//! The planner's facts as far as an on-call engineer may read them: Nodes, Bascule's own objects, and pods that end by
//! themselves, since drains may wait for them. Other pods and PodDisruptionBudgets are left out, and of a channel only what
//! the policy's status remembers is known.

use super::{list, list_where};
use bascule_api as api;
use bascule_api::{Architecture, Time};
use bascule_planner::{
    Snapshot,
    drain::{self, Hour, Space, deadline_of, node_pods},
    snapshot::{
        Completing, Cordon, DaemonSets, EtcdMember, Excluded, FreezeFacts, Node, NodePods, Offer, OfferState,
        PolicyFacts, Readiness, Release, RollbackFacts, Taints, Truce, UpdateFacts,
    },
};
use k8s_openapi::api::{batch::v1::Job, core::v1};
use kube::{ResourceExt as _, api::ListParams};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

/// The label of nodes with an etcd member.
const ETCD: &str = "node-role.kubernetes.io/etcd";

const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

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
        let (nodes, updates, policies, freezes, rollbacks, (ending, jobs)) = tokio::try_join!(
            list(client, "Nodes"),
            list(client, "NodeUpdates"),
            list(client, "UpdatePolicies"),
            list(client, "Freezes"),
            list(client, "Rollbacks"),
            ends,
        )?;
        Ok(Self { nodes, updates, policies, freezes, rollbacks, ending, jobs })
    }
}

async fn ending(client: &kube::Client) -> anyhow::Result<(Vec<v1::Pod>, Vec<Job>)> {
    let pods: Vec<v1::Pod> = list_where(client, "Pods", ListParams::default().fields(ENDING)).await?;
    let of_jobs = pods.iter().flat_map(|pod| pod.owner_references()).any(|owner| owner.kind == "Job");
    let jobs = if of_jobs { list(client, "Jobs").await? } else { Vec::new() };
    Ok((pods, jobs))
}

/// What a drain of the node would wait for until it has completed, under the settings of its policy.
fn completing(objects: &Objects, node: &Node, policies: &[Arc<PolicyFacts>], now: Time) -> Option<Completing> {
    let disrupted = node.update.as_ref().and_then(|update| update.spec.disruption.as_ref());
    let valid = policies.iter().filter_map(|policy| policy.spec.as_ref().ok());
    let drain =
        valid.filter(|valid| valid.spec.node_selector.matches(&node.labels)).map(|valid| &valid.spec.drain).next()?;
    let here = |pod: &&v1::Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&*node.name);
    let pods: Vec<drain::Pod> = objects.ending.iter().filter(here).map(drain::Pod::from_kubernetes).collect();
    let hour = Hour {
        now: now.get(),
        begun: disrupted.and_then(|disruption| disruption.drain_started_at).map(Time::get),
        given_up: &BTreeSet::new(),
        own: None,
    };
    let job_ends_by = |pod: &drain::Pod| {
        let owner = pod.job()?;
        objects.jobs.iter().find(|job| job.uid().as_deref() == Some(&*owner.uid)).and_then(deadline_of)
    };
    node_pods(&pods, drain, &hour, |_| Vec::new(), job_ends_by).completing
}

/// The snapshot that the planner is run forward from.
pub(super) fn snapshot(objects: &Objects, seed: u64, now: Time) -> Snapshot {
    let updates: HashMap<String, &api::NodeUpdate> =
        objects.updates.iter().map(|update| (update.name_any(), update)).collect();
    let mut nodes: Vec<Arc<Node>> =
        objects.nodes.iter().map(|fact| Arc::new(node(fact, updates.get(&fact.name_any()).copied()))).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let machines: Vec<Architecture> = nodes.iter().filter_map(|node| node.architecture).collect();
    let mut policies: Vec<_> = objects.policies.iter().map(|facts| Arc::new(policy(facts, &machines))).collect();
    policies.sort_by(|a, b| a.name.cmp(&b.name));
    for node in &mut nodes {
        if let Some(completing) = completing(objects, node, &policies, now) {
            Arc::make_mut(node).pods.completing = Some(completing);
        }
    }
    // The pods of etcd are not read here: the operator has seen where one is.
    let members = policies.iter().flat_map(|policy| &policy.status.cluster_members).filter(|member| member.etcd);
    let members: BTreeSet<&str> = members.map(|member| member.node.as_str()).collect();
    for node in nodes.iter_mut().filter(|node| members.contains(&*node.name)) {
        Arc::make_mut(node).etcd = EtcdMember::Healthy;
    }
    let freezes = objects.freezes.iter().map(|freeze| {
        Arc::new(FreezeFacts {
            name: freeze.name_any(),
            generation: freeze.metadata.generation.unwrap_or_default(),
            created_at: created(freeze),
            kept_elsewhere: freeze.is_kept_elsewhere(),
            spec: freeze.spec.clone(),
            status: freeze.status.clone().unwrap_or_default(),
        })
    });
    let rollbacks = objects.rollbacks.iter().map(|rollback| {
        Arc::new(RollbackFacts {
            name: rollback.name_any(),
            generation: rollback.metadata.generation.unwrap_or_default(),
            created_at: created(rollback),
            spec: rollback.spec.clone(),
            status: rollback.status.clone().unwrap_or_default(),
        })
    });
    let (freezes, rollbacks) = (freezes.collect(), rollbacks.collect());
    Snapshot { now, seed, policies, nodes, freezes, rollbacks, ..Snapshot::default() }
}

fn created(object: &impl kube::Resource) -> Time {
    object.meta().creation_timestamp.as_ref().map_or_else(Time::default, Time::from_kubernetes)
}

fn node(node: &v1::Node, update: Option<&api::NodeUpdate>) -> Node {
    let (spec, status) = (node.spec.clone().unwrap_or_default(), node.status.clone().unwrap_or_default());
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let info = status.node_info.as_ref();
    let has_taint = |key: &str| spec.taints.iter().flatten().any(|taint| taint.key == key);
    let cordon = match (spec.unschedulable == Some(true), node.annotations().get(api::CORDONED_BY_ANNOTATION)) {
        (false, None) => Cordon::None,
        (false, Some(mark)) => Cordon::Lifted { mark: mark.clone() },
        (true, Some(mark)) => Cordon::Ours { mark: mark.clone() },
        (true, None) => Cordon::Other { by: None, since: None },
    };
    Node {
        name: node.name_any().into(),
        uid: node.uid().unwrap_or_default(),
        created_at: created(node),
        deleting: node.metadata.deletion_timestamp.is_some(),
        labels: node.labels().clone(),
        ready: Readiness {
            ready: ready.is_some_and(|condition| condition.status == "True"),
            since: ready.and_then(|condition| condition.last_transition_time.as_ref()).map(Time::from_kubernetes),
        },
        cordon,
        taints: Taints {
            outdated: has_taint(api::OUTDATED_TAINT),
            hold: has_taint(api::HOLD_TAINT) || has_taint(api::OLD_HOLD_TAINT),
        },
        truce: Truce::None,
        leaving: api::LEAVING_TAINTS.iter().find(|key| has_taint(key)).map(|key| (*key).to_owned()),
        boot_id: info.map(|info| info.boot_id.clone()).unwrap_or_default(),
        // A forecast looks once: a trial that it finds is taken to have begun with the reboot.
        boot_seen: Time::default(),
        back_seen: Time::default(),
        // Go's name for one machine, the Discoverable Partitions' name for the other.
        architecture: info.and_then(|info| match info.architecture.as_str() {
            "amd64" => "x86-64".parse().ok(),
            other => other.parse().ok(),
        }),
        control_plane: node.labels().contains_key(CONTROL_PLANE),
        etcd: if node.labels().contains_key(ETCD) { EtcdMember::Healthy } else { EtcdMember::None },
        update: update.map(|update| UpdateFacts {
            generation: update.metadata.generation.unwrap_or_default(),
            owner_uid: update.owner_references().first().map(|owner| owner.uid.clone()),
            deleting: update.metadata.deletion_timestamp.is_some(),
            spec: update.spec.clone(),
            status: update.status.clone().unwrap_or_default(),
        }),
        earlier: None,
        excluded: Excluded::default(),
        space: Space::default(),
        // There is always something to drain, and it takes as long as it took lately.
        pods: NodePods { remaining: 1, ..NodePods::default() },
        daemon_sets: DaemonSets::default(),
        // Said by the operator, in the NodeUpdate.
        agent_trouble: None,
        // What this program can't read it does not speak of at all.
        unreadable: None,
        read_again: None,
    }
}

fn policy(policy: &api::UpdatePolicy, machines: &[Architecture]) -> PolicyFacts {
    let status = policy.status.clone().unwrap_or_default();
    let release = |info: &api::ReleaseInfo| Release {
        version: info.version.clone(),
        digests: machines.iter().map(|machine| (*machine, info.digest.clone())).collect::<BTreeMap<_, _>>(),
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
    let offer = Offer {
        state: if status.target.is_some() { OfferState::Valid } else { OfferState::Unread },
        releases: known.into_iter().flatten().map(release).collect(),
        repository: status.repository.clone().unwrap_or_default(),
    };
    PolicyFacts {
        name: policy.name_any(),
        uid: policy.uid().unwrap_or_default(),
        created_at: created(policy),
        generation: policy.metadata.generation.unwrap_or_default(),
        labels: policy.labels().clone(),
        read_again: None,
        spec: bascule_planner::validate(&policy.spec).map(Arc::new),
        // The operator's to say: it asks for rights.
        advice: None,
        status,
        offer: Arc::new(offer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
}
