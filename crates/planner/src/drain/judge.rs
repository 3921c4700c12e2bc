//! What happens to one pod: `kubectl drain`'s filters in its order, where the first "no" decides, and what policies and
//! pods say beyond them.

use super::{DRAIN_LABEL, Pod, Wish};
use bascule_api::{Drain, DrainBehavior, DrainRule, OnTimeout, Time};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::BTreeSet;

/// How long after the end of its grace period a pod that is being deleted is still waited for. Beyond that its kubelet
/// or a finalizer hangs, and a reboot is more likely to help than more waiting. (`kubectl drain` calls this
/// `--skip-wait-for-delete-timeout`.)
pub const STUCK_AFTER: TimeDelta = TimeDelta::seconds(60);

/// When a pod is judged, and what is known of the drain of its node.
#[derive(Debug, Clone, Copy)]
pub struct Hour<'a> {
    /// The time.
    pub now: DateTime<Utc>,
    /// When the node's drain began; absent before that.
    pub begun: Option<DateTime<Utc>>,
    /// The UIDs of pods that this drain gave up, see [`super::Ledger`].
    pub given_up: &'a BTreeSet<String>,
    /// The UID of a pod that has to stay with its node whatever is said of it: the operator's own, where it has nowhere
    /// else to go.
    pub own: Option<&'a str>,
}

/// What a drain does with a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has to go.
    Go,
    /// It is waited for until it has completed.
    Wait {
        /// Until when; then it has to go. Absent: as long as the drain lasts.
        until: Option<Time>,
    },
    /// It stays, or goes by itself; the drain does not wait for it.
    Stay(Stay),
    /// It may not be evicted under the policy's settings, so nothing on the node is.
    Refuse(Refusal),
}

/// Why a drain leaves a pod where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// It should have been gone for longer than [`STUCK_AFTER`].
    Stuck,
    /// A DaemonSet would bring it back at once, since it ignores cordons.
    DaemonSet,
    /// A static pod; only its node's kubelet can end it.
    Mirror,
    /// It came after the drain had begun and tolerates cordons, so another one would come after it.
    Tolerates,
    /// Pods of its owner were evicted from this node and came back more than once.
    ComesBack,
    /// The policy's podSelector leaves it out.
    NotSelected,
    /// A rule of the policy or the pod's own label says to leave it.
    Skipped,
    /// It is the operator itself, which has nowhere else to go.
    Operator,
}

/// Why a pod may not be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has an emptyDir volume, whose data would be lost.
    EmptyDir,
    /// No controller would bring it back.
    NoController,
    /// An annotation of its own asks that it is not disrupted.
    Undisturbed {
        /// The annotation.
        annotation: &'static str,
        /// Until when.
        until: Option<Time>,
    },
}

impl Refusal {
    /// What is wrong and what to change, to be put behind the pod's name.
    #[must_use]
    pub fn hint(self) -> String {
        match self {
            Self::EmptyDir => "has an emptyDir volume (allow with spec.drain.deleteEmptyDirData)".to_owned(),
            Self::NoController => "has no controller that would bring it back (allow with spec.drain.force)".to_owned(),
            Self::Undisturbed { annotation, until } => {
                let until = until.map_or_else(String::new, |until| format!(" until {until}"));
                format!(
                    "is not to be disrupted{until}, says its annotation {annotation} (a rule in spec.drain.rules, \
                     spec.drain.honorPodAnnotations or onTimeout: Delete overrides it)"
                )
            }
        }
    }

    /// When it ends by itself.
    #[must_use]
    pub const fn until(self) -> Option<Time> {
        match self {
            Self::EmptyDir | Self::NoController => None,
            Self::Undisturbed { until, .. } => until,
        }
    }
}

/// The rule of the policy that speaks about a pod.
pub(super) fn rule_for<'a>(pod: &Pod, drain: &'a Drain) -> Option<&'a DrainRule> {
    drain.rules.iter().find(|rule| {
        (rule.namespaces.is_empty() || rule.namespaces.contains(&pod.namespace))
            && rule.selector.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
    })
}

/// Whose word it is that a pod is waited for or left, as reasons name it.
pub(super) fn asked_by(pod: &Pod, drain: &Drain) -> String {
    match (rule_for(pod, drain), pod.wish) {
        (Some(rule), _) => format!("rule {}", rule.name),
        (None, Wish::Undisturbed { annotation, .. }) => format!("its annotation {annotation}"),
        (None, _) => format!("its label {DRAIN_LABEL}"),
    }
}

/// What happens to one pod.
#[must_use]
pub fn judge(pod: &Pod, drain: &Drain, hour: &Hour<'_>) -> Verdict {
    if pod.deletes_at.is_some_and(|end| hour.now > end + STUCK_AFTER) {
        return Verdict::Stay(Stay::Stuck);
    }
    if pod.of_daemon_set() && !pod.finished {
        return Verdict::Stay(Stay::DaemonSet);
    }
    if pod.mirror {
        return Verdict::Stay(Stay::Mirror);
    }
    if hour.own == Some(pod.uid.as_str()) {
        return Verdict::Stay(Stay::Operator);
    }
    // Who was told to go does go, though it tolerates the cordon.
    if pod.deletes_at.is_none() && !pod.finished {
        if pod.tolerates_cordon && hour.begun.is_some_and(|begun| pod.created_at > begun) {
            return Verdict::Stay(Stay::Tolerates);
        }
        if hour.given_up.contains(&pod.uid) {
            return Verdict::Stay(Stay::ComesBack);
        }
    }
    // `kubectl drain --pod-selector` does not even list the others, so they stop nothing.
    if drain.pod_selector.as_ref().is_some_and(|selector| !selector.matches(&pod.labels)) {
        return Verdict::Stay(Stay::NotSelected);
    }
    if !pod.finished
        && pod.deletes_at.is_none()
        && let Some(verdict) = asked_for(pod, drain, hour)
    {
        return verdict;
    }
    if pod.empty_dir && !pod.finished && !drain.delete_empty_dir_data {
        return Verdict::Refuse(Refusal::EmptyDir);
    }
    if pod.controller.is_none() && !pod.finished && !drain.force {
        return Verdict::Refuse(Refusal::NoController);
    }
    Verdict::Go
}

/// What a rule of the policy says about the pod, or else the pod itself; `None`: what is usual.
fn asked_for(pod: &Pod, drain: &Drain, hour: &Hour<'_>) -> Option<Verdict> {
    if let Some(rule) = rule_for(pod, drain) {
        return match rule.behavior {
            DrainBehavior::Drain => None,
            DrainBehavior::Skip => Some(Verdict::Stay(Stay::Skipped)),
            DrainBehavior::WaitCompleted => waits_until(bound_of(rule, hour), hour),
        };
    }
    if !drain.honor_pod_annotations {
        return None;
    }
    match pod.wish {
        Wish::None => None,
        Wish::Skip => Some(Verdict::Stay(Stay::Skipped)),
        Wish::WaitCompleted => waits_until(None, hour),
        Wish::Undisturbed { annotation, until } => {
            let until = until.map(Time::new);
            let wait = waits_until(until, hour)?;
            // Nothing is gained by a cordon where the pod would never end; the policy's Delete is an end.
            let never_ends = !pod.completes && drain.on_timeout != OnTimeout::Delete;
            Some(if never_ends { Verdict::Refuse(Refusal::Undisturbed { annotation, until }) } else { wait })
        }
    }
}

fn waits_until(until: Option<Time>, hour: &Hour<'_>) -> Option<Verdict> {
    until.is_none_or(|until| hour.now < until.get()).then_some(Verdict::Wait { until })
}

/// When pods of a rule are not waited for any more. Before the drain that is not known.
pub(super) fn bound_of(rule: &DrainRule, hour: &Hour<'_>) -> Option<Time> {
    Some(Time::new(hour.begun?).after(rule.timeout?))
}

#[cfg(test)]
mod tests {
    use super::super::Controller;
    use super::*;
    use bascule_api::Selector;
    use std::sync::Arc;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_000_000, 0).unwrap()
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        now() + TimeDelta::seconds(seconds)
    }

    fn controller(kind: &str) -> Option<Arc<Controller>> {
        let of_apps =
            Controller { api_version: "apps/v1".into(), kind: kind.into(), name: "c".into(), uid: "c".into() };
        Some(of_apps.into())
    }

    fn pod() -> Pod {
        Pod {
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u".into(),
            node: "n1".into(),
            labels: Arc::new([("app".to_owned(), "web".to_owned())].into()),
            controller: controller("ReplicaSet"),
            ..Pod::default()
        }
    }

    fn strict() -> Drain {
        Drain { delete_empty_dir_data: false, force: false, ..Drain::default() }
    }

    fn of_app(value: &str) -> Option<Selector> {
        Some(Selector { match_labels: [("app".to_owned(), value.to_owned())].into(), ..Selector::default() })
    }

    fn selecting(value: &str) -> Drain {
        Drain { pod_selector: of_app(value), ..strict() }
    }

    fn verdict(pod: &Pod, drain: &Drain, begun: Option<DateTime<Utc>>) -> Verdict {
        judge(pod, drain, &Hour { now: now(), begun, given_up: &BTreeSet::new(), own: None })
    }

    #[test]
    fn each_filter_decides_in_its_order() {
        let bare = Pod { controller: None, ..pod() };
        let daemon = Pod { controller: controller("DaemonSet"), empty_dir: true, ..pod() };
        let deleting = |seconds| Some(at(seconds));
        let cases: Vec<(&str, Pod, Drain, Verdict)> = vec![
            ("plain", pod(), strict(), Verdict::Go),
            ("deleting", Pod { deletes_at: deleting(30), ..pod() }, strict(), Verdict::Go),
            ("late, not yet stuck", Pod { deletes_at: deleting(-60), ..pod() }, strict(), Verdict::Go),
            (
                "stuck beats all",
                Pod { deletes_at: deleting(-61), ..bare.clone() },
                strict(),
                Verdict::Stay(Stay::Stuck),
            ),
            ("daemon set before emptyDir", daemon.clone(), strict(), Verdict::Stay(Stay::DaemonSet)),
            ("finished daemon passes", Pod { finished: true, ..daemon }, strict(), Verdict::Go),
            (
                "mirror before no controller",
                Pod { mirror: true, ..bare.clone() },
                strict(),
                Verdict::Stay(Stay::Mirror),
            ),
            (
                "emptyDir before no controller",
                Pod { empty_dir: true, ..bare.clone() },
                strict(),
                Verdict::Refuse(Refusal::EmptyDir),
            ),
            ("emptyDir allowed", Pod { empty_dir: true, ..pod() }, Drain::default(), Verdict::Go),
            ("emptyDir, finished", Pod { empty_dir: true, finished: true, ..pod() }, strict(), Verdict::Go),
            ("bare", bare.clone(), strict(), Verdict::Refuse(Refusal::NoController)),
            ("bare, forced", bare.clone(), Drain { force: true, ..strict() }, Verdict::Go),
            ("bare, finished", Pod { finished: true, ..bare.clone() }, strict(), Verdict::Go),
            ("selector before refusal", bare, selecting("other"), Verdict::Stay(Stay::NotSelected)),
            ("not selected", pod(), selecting("other"), Verdict::Stay(Stay::NotSelected)),
            ("selected", pod(), selecting("web"), Verdict::Go),
        ];
        for (name, pod, drain, expected) in cases {
            assert_eq!(verdict(&pod, &drain, None), expected, "{name}");
        }
    }

    #[test]
    fn a_daemon_set_of_another_group_is_a_controller_like_any() {
        let mut pod = pod();
        let mut controller = controller("DaemonSet");
        Arc::make_mut(controller.as_mut().unwrap()).api_version = "example.com/v1".into();
        pod.controller = controller;
        assert_eq!(verdict(&pod, &strict(), None), Verdict::Go);
    }

    #[test]
    fn what_tolerates_the_cordon_goes_once_and_what_comes_after_it_stays() {
        let tolerant = |created: i64| Pod { tolerates_cordon: true, created_at: at(created), ..pod() };
        let begun = Some(at(-60));
        assert_eq!(verdict(&tolerant(-100), &strict(), begun), Verdict::Go, "it stood there");
        assert_eq!(verdict(&tolerant(-30), &strict(), begun), Verdict::Stay(Stay::Tolerates));
        assert_eq!(verdict(&tolerant(-30), &strict(), None), Verdict::Go, "no drain has begun");
        let leaving = Pod { deletes_at: Some(at(10)), ..tolerant(-30) };
        assert_eq!(verdict(&leaving, &strict(), begun), Verdict::Go, "who leaves is waited for");
        let late = Pod { created_at: at(-30), ..pod() };
        assert_eq!(verdict(&late, &strict(), begun), Verdict::Go, "bound before the scheduler saw the cordon");
        let given_up = BTreeSet::from(["u".to_owned()]);
        let hour = Hour { now: now(), begun, given_up: &given_up, own: None };
        assert_eq!(judge(&late, &strict(), &hour), Verdict::Stay(Stay::ComesBack));
        let none = BTreeSet::new();
        let hour = Hour { now: now(), begun, given_up: &none, own: Some("u") };
        assert_eq!(judge(&late, &strict(), &hour), Verdict::Stay(Stay::Operator));
    }

    #[test]
    fn the_first_rule_decides_and_comes_before_the_pods_own_wish() {
        let rule = |name: &str, app: Option<&str>, behavior| DrainRule {
            name: name.to_owned(),
            selector: app.and_then(of_app),
            namespaces: Vec::new(),
            behavior,
            order: 0,
            timeout: None,
        };
        let rules = |rules: Vec<DrainRule>| Drain { rules, ..strict() };
        let bare = Pod { controller: None, ..pod() };
        let waits = Verdict::Wait { until: None };
        let skip = || rule("s", Some("web"), DrainBehavior::Skip);
        assert_eq!(verdict(&bare, &rules(vec![skip()]), None), Verdict::Stay(Stay::Skipped));
        let wait = || rule("w", None, DrainBehavior::WaitCompleted);
        assert_eq!(verdict(&bare, &rules(vec![wait(), skip()]), None), waits);
        let elsewhere = DrainRule { namespaces: vec!["ci".to_owned()], ..wait() };
        assert_eq!(verdict(&pod(), &rules(vec![elsewhere]), None), Verdict::Go);
        let finished = Pod { finished: true, ..pod() };
        assert_eq!(verdict(&finished, &rules(vec![wait()]), None), Verdict::Go, "it has completed");
        // A bound counts from the drain's beginning; beyond it the pod goes like any other.
        let bounded = || rules(vec![DrainRule { timeout: Some(bascule_api::Duration::from_secs(60)), ..wait() }]);
        assert_eq!(verdict(&pod(), &bounded(), Some(at(-59))), Verdict::Wait { until: Some(Time::new(at(1))) });
        assert_eq!(verdict(&pod(), &bounded(), Some(at(-60))), Verdict::Go);
        assert_eq!(verdict(&bare, &bounded(), Some(at(-60))), Verdict::Refuse(Refusal::NoController));
        // The admin's word comes first.
        let protected = |until| Wish::Undisturbed { annotation: super::super::DO_NOT_DISRUPT, until };
        let shy = Pod { wish: protected(None), ..pod() };
        let drained = rules(vec![rule("d", None, DrainBehavior::Drain)]);
        assert_eq!(verdict(&shy, &drained, None), Verdict::Go);
        assert_eq!(verdict(&shy, &Drain { honor_pod_annotations: false, ..strict() }, None), Verdict::Go);
        let refused = |until| Verdict::Refuse(Refusal::Undisturbed { annotation: super::super::DO_NOT_DISRUPT, until });
        assert_eq!(verdict(&shy, &strict(), None), refused(None));
        assert_eq!(verdict(&shy, &Drain { on_timeout: OnTimeout::Delete, ..strict() }, None), waits);
        assert_eq!(verdict(&Pod { completes: true, ..shy }, &strict(), None), waits);
        let for_a_while = |seconds| Pod { wish: protected(Some(at(seconds))), ..pod() };
        assert_eq!(verdict(&for_a_while(10), &strict(), None), refused(Some(Time::new(at(10)))));
        assert_eq!(verdict(&for_a_while(0), &strict(), None), Verdict::Go);
        assert_eq!(verdict(&Pod { wish: Wish::Skip, ..pod() }, &strict(), None), Verdict::Stay(Stay::Skipped));
    }
}
