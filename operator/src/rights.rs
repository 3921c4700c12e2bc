//! Rights that a policy needs beside those that every installation gives: to create Jobs in the namespaces of its hooks.
//! Whoever owns such a namespace gives them (docs/security.md). They are asked for before the first node is disrupted, and
//! not found missing in the middle of an update.

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

type Known = Arc<Mutex<BTreeMap<String, Result<bool, String>>>>;

/// Asks again and again, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Rights {
    own: String,
    asked: watch::Sender<BTreeSet<String>>,
    known: Known,
    task: JoinHandle<()>,
}

impl Drop for Rights {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Rights {
    /// Nothing is asked yet. `own` is the operator's namespace; `changes` is told of each new answer.
    pub(crate) fn new(client: Client, own: &str, changes: Arc<watch::Sender<u64>>) -> Self {
        let (asked, receiver) = watch::channel(BTreeSet::new());
        let known = Known::default();
        let task = tokio::spawn(ask(client, receiver, Arc::clone(&known), changes));
        Self { own: own.to_owned(), asked, known, task }
    }

    /// Asks for what these policies need from now on.
    pub(crate) fn set<'a>(&self, policies: impl IntoIterator<Item = &'a UpdatePolicySpec>) {
        let namespaces = policies.into_iter().flat_map(hooks).map(|(_, hook)| hook.namespace.clone()).collect();
        self.asked.send_if_modified(|before| {
            let changed = *before != namespaces;
            *before = namespaces;
            changed
        });
    }

    /// The first right that a policy lacks, as far as is known.
    pub(crate) fn missing(&self, policy: &UpdatePolicySpec) -> Option<PolicyError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        hooks(policy).find_map(|(field, hook)| {
            let (namespace, own) = (&hook.namespace, &self.own);
            let what = match known.get(namespace) {
                Some(Ok(true)) => return None,
                Some(Ok(false)) => format!(
                    "the operator may not create Jobs in the namespace {namespace}; its owner allows that with `kubectl -n \
                     {namespace} create rolebinding {ROLE} --clusterrole={ROLE} --serviceaccount={own}:bascule-operator`"
                ),
                Some(Err(why)) => format!("whether the operator may create Jobs in {namespace} is not known: {why}"),
                None => format!("whether the operator may create Jobs in {namespace} is being asked"),
            };
            Some(PolicyError::new(field, PolicyErrorKind::Right(what)))
        })
    }
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
    client: Client,
    mut asked: watch::Receiver<BTreeSet<String>>,
    known: Known,
    changes: Arc<watch::Sender<u64>>,
) {
    loop {
        let namespaces = asked.borrow_and_update().clone();
        let mut answers = BTreeMap::new();
        for namespace in &namespaces {
            let answer = may_create_jobs(&client, namespace).await.map_err(|error| crate::one_line(&error));
            let before = known.lock().unwrap_or_else(PoisonError::into_inner).get(namespace).cloned();
            // Where nobody answers, the last answer stands.
            let answer = match (answer, before) {
                (Err(_), Some(before @ Ok(_))) => before,
                (answer, _) => answer,
            };
            answers.insert(namespace.clone(), answer);
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
        let again = if namespaces.is_empty() { None } else { Some(AGAIN) };
        let told = match again {
            Some(pause) => timeout(pause, asked.changed()).await.unwrap_or(Ok(())),
            None => asked.changed().await,
        };
        if told.is_err() {
            return;
        }
    }
}

async fn may_create_jobs(client: &Client, namespace: &str) -> kube::Result<bool> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                verb: Some("create".to_owned()),
                group: Some("batch".to_owned()),
                resource: Some("jobs".to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let answer = Api::<SelfSubjectAccessReview>::all(client.clone()).create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
