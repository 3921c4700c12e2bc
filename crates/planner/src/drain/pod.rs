//! What drain and gates need to know of a pod, and nothing more: a cluster has many pods and each is kept in memory.

use super::Needs;
use bascule_api::{Duration, ObjectRef};
use chrono::{DateTime, Utc};
use std::{collections::BTreeMap, sync::Arc};

/// One pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Pod {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The UID: another pod of the same name is another pod.
    pub uid: String,
    /// The node it is bound to; empty while it is pending.
    pub node: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// Its labels, which budgets select by. Shared by pods that have the same.
    pub labels: Arc<BTreeMap<String, String>>,
    /// The controller that would bring it back. Shared by its pods.
    pub controller: Option<Arc<Controller>>,
    /// Whether it is only the mirror of a static pod.
    pub mirror: bool,
    /// Whether it has an emptyDir volume.
    pub empty_dir: bool,
    /// Whether it has ended (phase Succeeded or Failed).
    pub finished: bool,
    /// Whether it has not started yet (phase Pending).
    pub pending: bool,
    /// Whether its Ready condition is true.
    pub ready: bool,
    /// Since when the Ready condition is what it is.
    pub ready_since: Option<DateTime<Utc>>,
    /// Why a container does not run, e.g. `CrashLoopBackOff`.
    pub waiting: Option<String>,
    /// What such a container said last: the end of its log, or the runtime's word why it could not be started. One line.
    pub last_words: Option<String>,
    /// When its grace period ends, once it is being deleted.
    pub deletes_at: Option<DateTime<Utc>>,
    /// Whether it tolerates the taint of cordoned nodes, so that the scheduler puts pods like it there all the same.
    pub tolerates_cordon: bool,
    /// Whether it ends by itself some day (its restart policy is not `Always`).
    pub completes: bool,
    /// When it has ended at the latest (`activeDeadlineSeconds`).
    pub ends_by: Option<DateTime<Utc>>,
    /// The PersistentVolumeClaims it uses.
    pub claims: Vec<String>,
    /// What it needs of the node that takes it.
    pub needs: Arc<Needs>,
    /// What it asks of drains.
    pub wish: Wish,
    /// For how long its budget may take to open once the node is cordoned, where it says so.
    pub opens_after_cordon: Option<Duration>,
}

impl Pod {
    /// The Job that it is of.
    #[must_use]
    pub fn job(&self) -> Option<&Controller> {
        self.controller.as_deref().filter(|owner| owner.kind == "Job" && owner.api_version.starts_with("batch/"))
    }
}

/// A pod's controller.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Controller {
    /// E.g. `apps/v1`.
    pub api_version: String,
    /// E.g. `ReplicaSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// What a pod's labels and annotations ask of drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wish {
    /// Nothing.
    #[default]
    None,
    /// To be left where it is.
    Skip,
    /// To be waited for until it has completed.
    WaitCompleted,
    /// Not to be disrupted.
    Undisturbed {
        /// The annotation that says so.
        annotation: &'static str,
        /// Until when; for ever where that is absent.
        until: Option<DateTime<Utc>>,
    },
}

/// Cluster API's label: `skip` or `wait-completed` (proposal "MachineDrainRules").
pub const DRAIN_LABEL: &str = "cluster.x-k8s.io/drain";
/// Karpenter's annotation: `true`, or a time after the pod's start ("Well-Known Annotations").
pub const DO_NOT_DISRUPT: &str = "karpenter.sh/do-not-disrupt";
/// The cluster autoscaler's annotation: `"false"` keeps it from removing the pod's node (its FAQ).
pub const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict";
/// Our annotation of pods and PodDisruptionBudgets: the budget opens only once the node is cordoned; `true`, or within
/// what time it does.
pub const OPENS_AFTER_CORDON: &str = "bascule.dev/opens-after-cordon";
/// That time where the annotation only says `true`.
const OPENS_WITHIN: Duration = Duration::from_minutes(5);

impl Wish {
    /// What labels and annotations ask. `started_at` is what durations count from. A value that can't be read asks for
    /// what the key stands for: who wrote it wanted something.
    #[must_use]
    pub fn of(
        labels: &BTreeMap<String, String>,
        annotations: &BTreeMap<String, String>,
        started_at: DateTime<Utc>,
    ) -> Self {
        if let Some(label) = labels.get(DRAIN_LABEL) {
            match label.replace('-', "").to_ascii_lowercase().as_str() {
                "skip" => return Self::Skip,
                "waitcompleted" => return Self::WaitCompleted,
                _ => {}
            }
        }
        match annotations.get(DO_NOT_DISRUPT).map(String::as_str) {
            None | Some("false" | "") => {}
            Some(text) => {
                let span = text.parse::<Duration>().ok().map(|span| started_at + span.to_chrono());
                return Self::Undisturbed { annotation: DO_NOT_DISRUPT, until: span };
            }
        }
        if annotations.get(SAFE_TO_EVICT).is_some_and(|text| text == "false") {
            return Self::Undisturbed { annotation: SAFE_TO_EVICT, until: None };
        }
        Self::None
    }
}

/// What [`OPENS_AFTER_CORDON`] among some annotations says; at most a day.
#[must_use]
pub fn opens_after_cordon(annotations: &BTreeMap<String, String>) -> Option<Duration> {
    match annotations.get(OPENS_AFTER_CORDON)?.as_str() {
        "false" | "" => None,
        text => Some(text.parse().unwrap_or(OPENS_WITHIN).min(Duration::from_secs(86_400))),
    }
}

impl Pod {
    /// `namespace/name`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The pod as an object to point at.
    #[must_use]
    pub fn reference(&self) -> ObjectRef {
        ObjectRef { kind: "Pod".to_owned(), namespace: Some(self.namespace.clone()), name: self.name.clone() }
    }

    /// Whether a DaemonSet controls it.
    #[must_use]
    pub fn of_daemon_set(&self) -> bool {
        self.controller
            .as_ref()
            .is_some_and(|controller| controller.kind == "DaemonSet" && controller.api_version.starts_with("apps/"))
    }

    /// Who would bring it back: its controller, or whoever gives a pod this name.
    #[must_use]
    pub fn owner(&self) -> String {
        self.controller.as_ref().map_or_else(|| self.path(), |controller| controller.uid.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_annotations_that_people_have_are_understood() {
        let start = DateTime::from_timestamp(1_795_000_000, 0).unwrap();
        let wish = |label: Option<&str>, annotations: &[(&str, &str)]| {
            let labels = label.map(|value| (DRAIN_LABEL.to_owned(), value.to_owned())).into_iter().collect();
            let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
            Wish::of(&labels, &annotations, start)
        };
        let undisturbed = |annotation, seconds: Option<i64>| Wish::Undisturbed {
            annotation,
            until: seconds.map(|seconds| start + chrono::TimeDelta::seconds(seconds)),
        };
        assert_eq!(wish(None, &[]), Wish::None);
        assert_eq!(wish(Some("skip"), &[(DO_NOT_DISRUPT, "true")]), Wish::Skip);
        assert_eq!(wish(Some("wait-completed"), &[]), Wish::WaitCompleted);
        assert_eq!(wish(Some("WaitCompleted"), &[]), Wish::WaitCompleted);
        assert_eq!(wish(Some("no"), &[(SAFE_TO_EVICT, "false")]), undisturbed(SAFE_TO_EVICT, None));
        assert_eq!(wish(None, &[(SAFE_TO_EVICT, "true")]), Wish::None);
        assert_eq!(wish(None, &[(DO_NOT_DISRUPT, "true")]), undisturbed(DO_NOT_DISRUPT, None));
        assert_eq!(wish(None, &[(DO_NOT_DISRUPT, "1h30m")]), undisturbed(DO_NOT_DISRUPT, Some(5_400)));
        assert_eq!(wish(None, &[(DO_NOT_DISRUPT, "false")]), Wish::None);
        let opens = |value: &str| opens_after_cordon(&[(OPENS_AFTER_CORDON.to_owned(), value.to_owned())].into());
        assert_eq!((opens("true"), opens("false")), (Some(Duration::from_minutes(5)), None));
        assert_eq!(opens("90s"), Some(Duration::from_secs(90)));
    }
}
