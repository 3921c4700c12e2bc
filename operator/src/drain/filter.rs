//! Which pods of a node have to go: `kubectl drain`'s filters in its order, where the first "no" decides.

use crate::gather::PodFact;
use bascule_api::Drain;
use chrono::{DateTime, TimeDelta, Utc};

/// How long after the end of its grace period a pod that is being deleted is still waited for. Beyond that its kubelet
/// or a finalizer hangs, and a reboot is more likely to help than more waiting. (`kubectl drain` calls this
/// `--skip-wait-for-delete-timeout`.)
pub const STUCK_AFTER: TimeDelta = TimeDelta::seconds(60);

/// How many pods a message names before it says "and N more".
const NAMED: usize = 5;

/// What a drain does with a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It has to go.
    Go,
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
    /// The policy's podSelector leaves it out.
    NotSelected,
}

/// Why a pod may not be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It has an emptyDir volume, whose data would be lost.
    EmptyDir,
    /// No controller would bring it back.
    NoController,
}

impl Refusal {
    /// What is wrong and what to change, to be put behind the pod's name.
    #[must_use]
    pub const fn hint(self) -> &'static str {
        match self {
            Self::EmptyDir => "has an emptyDir volume (allow with spec.drain.deleteEmptyDirData)",
            Self::NoController => "has no controller that would bring it back (allow with spec.drain.force)",
        }
    }
}

/// What happens to one pod.
#[must_use]
pub fn judge(pod: &PodFact, drain: &Drain, now: DateTime<Utc>) -> Verdict {
    if pod.deletes_at.is_some_and(|end| now > end + STUCK_AFTER) {
        return Verdict::Stay(Stay::Stuck);
    }
    if pod.of_daemon_set() && !pod.finished {
        return Verdict::Stay(Stay::DaemonSet);
    }
    if pod.mirror {
        return Verdict::Stay(Stay::Mirror);
    }
    if pod.empty_dir && !pod.finished && !drain.delete_empty_dir_data {
        return Verdict::Refuse(Refusal::EmptyDir);
    }
    if pod.controller.is_none() && !pod.finished && !drain.force {
        return Verdict::Refuse(Refusal::NoController);
    }
    if drain.pod_selector.as_ref().is_some_and(|selector| !selector.matches(&pod.labels)) {
        return Verdict::Stay(Stay::NotSelected);
    }
    Verdict::Go
}

/// Pods that may not be evicted, so that nothing on their node is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", describe(.0))]
pub struct Undrainable(pub Vec<(String, Refusal)>);

fn describe(refused: &[(String, Refusal)]) -> String {
    let mut text = String::new();
    for (pod, refusal) in refused.iter().take(NAMED) {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&format!("pod {pod} {}", refusal.hint()));
    }
    if refused.len() > NAMED {
        text.push_str(&format!("; and {} more", refused.len() - NAMED));
    }
    text
}

/// The pods of a node that have to go.
///
/// # Errors
/// [`Undrainable`] names every pod that may not be evicted; then nothing is evicted at all.
pub fn drain_set<'a, P>(
    pods: impl IntoIterator<Item = &'a P>,
    drain: &Drain,
    now: DateTime<Utc>,
) -> Result<Vec<&'a PodFact>, Undrainable>
where
    P: AsRef<PodFact> + 'a,
{
    let (mut go, mut refused) = (Vec::new(), Vec::new());
    for pod in pods {
        let pod = pod.as_ref();
        match judge(pod, drain, now) {
            Verdict::Go => go.push(pod),
            Verdict::Stay(_) => {}
            Verdict::Refuse(refusal) => refused.push((pod.path(), refusal)),
        }
    }
    if refused.is_empty() { Ok(go) } else { Err(Undrainable(refused)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gather::Controller;
    use bascule_api::Selector;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_000_000, 0).unwrap()
    }

    fn controller(kind: &str) -> Option<Controller> {
        Some(Controller { api_version: "apps/v1".into(), kind: kind.into(), name: "c".into(), uid: "c".into() })
    }

    fn pod() -> PodFact {
        PodFact {
            namespace: "shop".into(),
            name: "web".into(),
            uid: "u".into(),
            node: "n1".into(),
            labels: [("app".to_owned(), "web".to_owned())].into(),
            controller: controller("ReplicaSet"),
            mirror: false,
            empty_dir: false,
            finished: false,
            pending: false,
            ready: true,
            ready_since: None,
            waiting: None,
            deletes_at: None,
        }
    }

    fn strict() -> Drain {
        Drain { delete_empty_dir_data: false, force: false, ..Drain::default() }
    }

    fn selecting(value: &str) -> Drain {
        let match_labels = [("app".to_owned(), value.to_owned())].into();
        Drain { pod_selector: Some(Selector { match_labels, ..Selector::default() }), ..strict() }
    }

    #[test]
    fn each_filter_decides_in_its_order() {
        let at = |seconds| Some(now() + TimeDelta::seconds(seconds));
        let bare = PodFact { controller: None, ..pod() };
        let daemon = PodFact { controller: controller("DaemonSet"), empty_dir: true, ..pod() };
        let cases: Vec<(&str, PodFact, Drain, Verdict)> = vec![
            ("plain", pod(), strict(), Verdict::Go),
            ("deleting", PodFact { deletes_at: at(30), ..pod() }, strict(), Verdict::Go),
            ("late, not yet stuck", PodFact { deletes_at: at(-60), ..pod() }, strict(), Verdict::Go),
            ("stuck beats all", PodFact { deletes_at: at(-61), ..bare.clone() }, strict(), Verdict::Stay(Stay::Stuck)),
            ("daemon set before emptyDir", daemon.clone(), strict(), Verdict::Stay(Stay::DaemonSet)),
            ("finished daemon passes", PodFact { finished: true, ..daemon }, strict(), Verdict::Go),
            (
                "mirror before no controller",
                PodFact { mirror: true, ..bare.clone() },
                strict(),
                Verdict::Stay(Stay::Mirror),
            ),
            (
                "emptyDir before no controller",
                PodFact { empty_dir: true, ..bare.clone() },
                strict(),
                Verdict::Refuse(Refusal::EmptyDir),
            ),
            ("emptyDir allowed", PodFact { empty_dir: true, ..pod() }, Drain::default(), Verdict::Go),
            ("emptyDir, finished", PodFact { empty_dir: true, finished: true, ..pod() }, strict(), Verdict::Go),
            ("bare", bare.clone(), strict(), Verdict::Refuse(Refusal::NoController)),
            ("bare, forced", bare.clone(), Drain { force: true, ..strict() }, Verdict::Go),
            ("bare, finished", PodFact { finished: true, ..bare.clone() }, strict(), Verdict::Go),
            ("refusal before selector", bare, selecting("other"), Verdict::Refuse(Refusal::NoController)),
            ("not selected", pod(), selecting("other"), Verdict::Stay(Stay::NotSelected)),
            ("selected", pod(), selecting("web"), Verdict::Go),
        ];
        for (name, pod, drain, verdict) in cases {
            assert_eq!(judge(&pod, &drain, now()), verdict, "{name}");
        }
    }

    #[test]
    fn a_daemon_set_of_another_group_is_a_controller_like_any() {
        let mut pod = pod();
        pod.controller = Some(Controller { api_version: "example.com/v1".into(), ..controller("DaemonSet").unwrap() });
        assert_eq!(judge(&pod, &strict(), now()), Verdict::Go);
    }

    #[test]
    fn one_refusal_means_that_nothing_goes_and_every_pod_is_named() {
        let pods: Vec<_> = (0..8)
            .map(|number| {
                let name = format!("web-{number}");
                std::sync::Arc::new(PodFact {
                    name,
                    controller: if number == 0 { controller("ReplicaSet") } else { None },
                    ..pod()
                })
            })
            .collect();
        let refused = drain_set(&pods, &strict(), now()).unwrap_err();
        assert_eq!(refused.0.len(), 7);
        let text = refused.to_string();
        assert!(text.starts_with("pod shop/web-1 has no controller"), "{text}");
        assert!(text.contains("spec.drain.force") && text.ends_with("and 2 more"), "{text}");
        assert_eq!(drain_set(&pods[..1], &strict(), now()).unwrap().len(), 1);
    }
}
