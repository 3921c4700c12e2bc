//! Rights that a policy needs beside those that every installation gives: to create Jobs in the namespaces of its hooks, and where
//! they wait for a rollout's end to resume and to delete them, which their owners give, and to read what its object gates look at,
//! which an admin gives (docs/security.md). They are asked for before the first node is disrupted, and not found missing in the
//! middle of an update. Without some of them a policy can't be used; without others it is, and costs more.

use crate::health::{ObjectAsker, Wanted};
use bascule_api::{Hook, UpdatePolicySpec};
use bascule_planner::{PolicyError, PolicyErrorKind};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

/// How often a right is asked for again: nobody tells of a change.
const AGAIN: Duration = Duration::from_secs(15);
/// The ClusterRole that an owner binds in a namespace.
const ROLE: &str = "bascule-hooks";

/// A right that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Right {
    /// To create Jobs in this namespace.
    Jobs(String),
    /// To let Jobs run in this namespace that were created suspended, and to delete them where they are not to.
    Keeping(String),
    /// To read this, as gates do.
    Reading(Wanted),
}

/// A right that is missing, as a sentence that says what gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Lack {
    /// What needs it can't be done.
    Needed(String),
    /// What would use it is done another way, which costs more.
    Better(String),
}

/// What is missing, or why that is not known.
type Answer = Result<Option<Lack>, String>;
type Known = Arc<Mutex<BTreeMap<Right, Answer>>>;

/// Asks again and again, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Rights {
    asked: watch::Sender<BTreeSet<Right>>,
    known: Known,
    task: JoinHandle<()>,
}

impl Drop for Rights {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Whom rights are asked of.
struct Tools {
    client: Client,
    gates: ObjectAsker,
    /// The operator's namespace.
    own: String,
}

impl Rights {
    /// Nothing is asked yet. `own` is the operator's namespace; `changes` is told of each new answer.
    pub(crate) fn new(client: Client, gates: ObjectAsker, own: &str, changes: Arc<watch::Sender<u64>>) -> Self {
        let (asked, receiver) = watch::channel(BTreeSet::new());
        let known = Known::default();
        let tools = Tools { client, gates, own: own.to_owned() };
        let task = tokio::spawn(ask(tools, receiver, Arc::clone(&known), changes));
        Self { asked, known, task }
    }

    /// Asks for what these policies need from now on.
    pub(crate) fn set<'a>(&self, policies: impl IntoIterator<Item = &'a UpdatePolicySpec>) {
        let rights = policies.into_iter().flat_map(needed).map(|(_, right)| right).collect();
        self.asked.send_if_modified(|before| {
            let changed = *before != rights;
            *before = rights;
            changed
        });
    }

    /// The first right that a policy can't be used without and lacks, as far as is known.
    pub(crate) fn missing(&self, policy: &UpdatePolicySpec) -> Option<PolicyError> {
        missing(&self.known.lock().unwrap_or_else(PoisonError::into_inner), policy)
    }

    /// The namespaces of which is known that hooks may run there.
    pub(crate) fn hook_namespaces(&self) -> BTreeSet<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let granted = known.iter().filter_map(|(right, answer)| match (right, answer) {
            (Right::Jobs(namespace), Ok(None)) => Some(namespace.clone()),
            _ => None,
        });
        granted.collect()
    }

    /// The first right that a policy is used without and that would make it cost less, with the field that it is for.
    pub(crate) fn advice(&self, policy: &UpdatePolicySpec) -> Option<String> {
        advice(&self.known.lock().unwrap_or_else(PoisonError::into_inner), policy)
    }
}

fn missing(known: &BTreeMap<Right, Answer>, policy: &UpdatePolicySpec) -> Option<PolicyError> {
    needed(policy).find_map(|(field, right)| {
        let what = match known.get(&right) {
            Some(Ok(None | Some(Lack::Better(_)))) => return None,
            Some(Ok(Some(Lack::Needed(missing)))) => missing.clone(),
            Some(Err(why)) => format!("whether {right} is not known: {why}"),
            None => format!("whether {right} is being asked"),
        };
        Some(PolicyError::new(field, PolicyErrorKind::Right(what)))
    })
}

fn advice(known: &BTreeMap<Right, Answer>, policy: &UpdatePolicySpec) -> Option<String> {
    needed(policy).find_map(|(field, right)| match known.get(&right) {
        Some(Ok(Some(Lack::Better(advice)))) => Some(format!("{field}: {advice}")),
        _ => None,
    })
}

impl std::fmt::Display for Right {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Jobs(namespace) => write!(f, "the operator may create Jobs in {namespace}"),
            Self::Keeping(namespace) => write!(f, "the operator may patch and delete Jobs in {namespace}"),
            Self::Reading(wanted) => write!(f, "object gates may read {wanted}"),
        }
    }
}

fn needed(policy: &UpdatePolicySpec) -> impl Iterator<Item = (String, Right)> {
    let jobs = hooks(policy).map(|(field, hook)| (field, Right::Jobs(hook.namespace.clone())));
    let after = policy.hooks.after_rollout.iter().enumerate().map(|(index, hook)| {
        (format!("spec.hooks.afterRollout[{index}].namespace"), Right::Keeping(hook.namespace.clone()))
    });
    let gates = policy.health.gates.iter().enumerate();
    let readings = gates.filter_map(|(index, gate)| {
        let object = gate.object.as_ref()?;
        Some((format!("spec.health.gates[{index}].object"), Right::Reading(object.into())))
    });
    jobs.chain(after).chain(readings)
}

fn hooks(policy: &UpdatePolicySpec) -> impl Iterator<Item = (String, &Hook)> {
    let of = &policy.hooks;
    let lists = [
        ("beforeDrain", &of.before_drain),
        ("afterCommit", &of.after_commit),
        ("beforeRollout", &of.before_rollout),
        ("afterRollout", &of.after_rollout),
    ];
    lists.into_iter().flat_map(|(list, hooks)| {
        hooks.iter().enumerate().map(move |(index, hook)| (format!("spec.hooks.{list}[{index}].namespace"), hook))
    })
}

async fn ask(
    tools: Tools,
    mut asked: watch::Receiver<BTreeSet<Right>>,
    known: Known,
    changes: Arc<watch::Sender<u64>>,
) {
    loop {
        let rights = asked.borrow_and_update().clone();
        let mut answers = BTreeMap::new();
        for right in &rights {
            let answer = tools.lacks(right).await.map_err(|error| crate::one_line(&error));
            let before = known.lock().unwrap_or_else(PoisonError::into_inner).get(right).cloned();
            // Where nobody answers, the last answer stands.
            let answer = match (answer, before) {
                (Err(_), Some(before @ Ok(_))) => before,
                (answer, _) => answer,
            };
            answers.insert(right.clone(), answer);
        }
        let news = {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            let news = *known != answers;
            *known = answers;
            news
        };
        if news {
            changes.send_modify(|count| *count = count.wrapping_add(1));
        }
        let again = if rights.is_empty() { None } else { Some(AGAIN) };
        let told = match again {
            Some(pause) => timeout(pause, asked.changed()).await.unwrap_or(Ok(())),
            None => asked.changed().await,
        };
        if told.is_err() {
            return;
        }
    }
}

impl Tools {
    /// What is missing, if anything is.
    async fn lacks(&self, right: &Right) -> kube::Result<Option<Lack>> {
        let (namespace, verbs) = match right {
            Right::Reading(wanted) => return self.gates.lacks(wanted).await,
            Right::Jobs(namespace) => (namespace, &["create"][..]),
            Right::Keeping(namespace) => (namespace, &["patch", "delete"][..]),
        };
        for verb in verbs {
            if !may(&self.client, jobs(verb, namespace)).await? {
                let own = &self.own;
                return Ok(Some(Lack::Needed(format!(
                    "the operator may not {verb} Jobs in the namespace {namespace}; its owner allows that with \
                     `kubectl -n {namespace} create rolebinding {ROLE} --clusterrole={ROLE} \
                     --serviceaccount={own}:bascule-operator`"
                ))));
            }
        }
        Ok(None)
    }
}

fn jobs(verb: &str, namespace: &str) -> ResourceAttributes {
    ResourceAttributes {
        namespace: Some(namespace.to_owned()),
        verb: Some(verb.to_owned()),
        group: Some("batch".to_owned()),
        resource: Some("jobs".to_owned()),
        ..ResourceAttributes::default()
    }
}

/// Whether the owner of a namespace lets hooks run there, whatever policies name.
///
/// # Errors
/// When the API server does not say.
pub(crate) async fn lets_hooks_run(client: &Client, namespace: &str) -> kube::Result<bool> {
    may(client, jobs("create", namespace)).await
}

/// Whether whoever this client is may do this.
///
/// # Errors
/// When the API server does not say.
pub(crate) async fn may(client: &Client, what: ResourceAttributes) -> kube::Result<bool> {
    let spec =
        SelfSubjectAccessReviewSpec { resource_attributes: Some(what), ..SelfSubjectAccessReviewSpec::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let answer = Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_right_that_would_save_work_keeps_no_policy_from_being_used() {
        let gate = |kind: &str| json!({"object": {"apiVersion": "v1", "kind": kind, "cel": "true"}});
        let policy: UpdatePolicySpec = serde_json::from_value(json!({
            "nodeSelector": {"matchLabels": {"role": "worker"}},
            "source": {"repository": "https://images.example.com/os", "channel": "stable"},
            "health": {"gates": [gate("Pod"), gate("Node")]},
        }))
        .unwrap();
        let [pods, nodes] = [0, 1].map(|gate| {
            let object = policy.health.gates[gate].object.as_ref().unwrap();
            Right::Reading(object.into())
        });
        let told = |pods_lack: Answer, nodes_lack: Answer| {
            let known = BTreeMap::from([(pods.clone(), pods_lack), (nodes.clone(), nodes_lack)]);
            (missing(&known, &policy).map(|error| error.to_string()), advice(&known, &policy))
        };
        let better = || Ok(Some(Lack::Better("watch them".to_owned())));
        assert_eq!(told(Ok(None), Ok(None)), (None, None));
        let said = Some("spec.health.gates[1].object: watch them".to_owned());
        assert_eq!(told(Ok(None), better()), (None, said.clone()));
        let (wrong, advice) = told(Ok(Some(Lack::Needed("list them".to_owned()))), better());
        assert_eq!((wrong.as_deref(), advice), (Some("spec.health.gates[0].object: list them"), said));
        let (wrong, _) = told(better(), Err("nobody answers".to_owned()));
        assert!(
            wrong.is_some_and(|wrong| wrong.contains("object gates may read v1 Node is not known: nobody answers"))
        );
        assert!(missing(&BTreeMap::new(), &policy).is_some_and(|wrong| wrong.to_string().contains("is being asked")));
    }
}
