//! The pods of a node, sorted by what a drain does with them, and what of it the planner has to know.

use super::{
    Hour, Pod, Refusal, Stay, Verdict, judge,
    judge::{asked_by, bound_of, rule_for},
};
use crate::snapshot::{Completing, NodePods, UndrainablePod};
use bascule_api::{Drain, Duration, Time};
use chrono::{DateTime, Utc};
use std::{collections::BTreeMap, sync::Arc};

/// How many pods a fact or message names before it says "and N more".
pub(crate) const NAMED: usize = 5;

/// The pods of a node, by what a drain does with them.
#[derive(Debug, Default)]
pub struct Sorted<'a> {
    /// They have to go, and it is their turn.
    pub go: Vec<&'a Pod>,
    /// They have to go when those of a lower order are gone.
    pub later: Vec<&'a Pod>,
    /// They are waited for, and until when.
    pub completing: Vec<(&'a Pod, Option<Time>)>,
    /// They stay although their owner was told, because they come back.
    pub coming_back: Vec<&'a Pod>,
    /// They stay because a rule or they themselves say so.
    pub skipped: Vec<&'a Pod>,
    /// They may not be evicted.
    pub refused: Vec<(&'a Pod, Refusal)>,
}

impl<'a> Sorted<'a> {
    /// Every pod that has to leave the node.
    pub fn leaving(&self) -> impl Iterator<Item = &'a Pod> + '_ {
        let completing = self.completing.iter().map(|(pod, _)| *pod);
        self.go.iter().chain(&self.later).copied().chain(completing)
    }

    /// Every pod that has to leave the node, asked now whatever is said of turns and waits; nothing where a pod may not
    /// be evicted.
    #[must_use]
    pub fn all_at_once(mut self) -> Self {
        let completing = std::mem::take(&mut self.completing);
        self.go.append(&mut self.later);
        self.go.extend(completing.into_iter().map(|(pod, _)| pod));
        self
    }

    /// The pods to ask now.
    ///
    /// # Errors
    /// [`Undrainable`] names the pods that may not be evicted; then nothing is evicted at all.
    pub fn asked(&self) -> Result<&[&'a Pod], Undrainable> {
        if self.refused.is_empty() {
            return Ok(&self.go);
        }
        Err(Undrainable(self.refused.iter().map(|(pod, refusal)| (pod.path(), *refusal)).collect()))
    }
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

/// Sorts the pods of a node.
pub fn sort<'a>(pods: impl IntoIterator<Item = &'a Pod>, drain: &Drain, hour: &Hour<'_>) -> Sorted<'a> {
    let mut sorted = Sorted::default();
    let mut go: Vec<(i32, &Pod)> = Vec::new();
    // The lowest order of a pod that is there and that the others still wait for.
    let mut lowest: Option<i32> = None;
    for pod in pods {
        let verdict = judge(pod, drain, hour);
        if matches!(verdict, Verdict::Go | Verdict::Wait { .. }) && !drain.rules.is_empty() {
            let rule = rule_for(pod, drain);
            let over = rule.and_then(|rule| bound_of(rule, hour)).is_some_and(|bound| hour.now >= bound.get());
            let order = rule.map_or(0, |rule| rule.order);
            if !over {
                lowest = Some(lowest.map_or(order, |lowest| lowest.min(order)));
            }
            if verdict == Verdict::Go {
                go.push((order, pod));
                continue;
            }
        }
        match verdict {
            Verdict::Go => sorted.go.push(pod),
            Verdict::Wait { until } => sorted.completing.push((pod, until)),
            Verdict::Refuse(refusal) => sorted.refused.push((pod, refusal)),
            Verdict::Stay(Stay::Tolerates | Stay::ComesBack) => sorted.coming_back.push(pod),
            Verdict::Stay(Stay::Skipped) => sorted.skipped.push(pod),
            Verdict::Stay(_) => {}
        }
    }
    for (order, pod) in go {
        // What leaves already needs no turn.
        let turn = lowest.is_none_or(|lowest| order <= lowest) || pod.deletes_at.is_some();
        if turn { sorted.go.push(pod) } else { sorted.later.push(pod) }
    }
    sorted
}

/// A PodDisruptionBudget whose permission a pod needs: its key, and within what time it opens after a cordon, where that
/// is said of it.
pub type Needed = (String, Option<Duration>);

/// What the planner has to know of a node's pods. `needs` gives the budgets whose permission a pod's eviction needs,
/// `job_ends_by` when the Job of a pod has ended at the latest.
pub fn node_pods<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    drain: &Drain,
    hour: &Hour<'_>,
    mut needs: impl FnMut(&Pod) -> Vec<Needed>,
    job_ends_by: impl Fn(&Pod) -> Option<DateTime<Utc>>,
) -> NodePods {
    let sorted = sort(pods, drain, hour);
    let mut facts = NodePods::default();
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    let mut opening: BTreeMap<String, Duration> = BTreeMap::new();
    for pod in sorted.leaving() {
        facts.remaining = facts.remaining.saturating_add(1);
        // Who completes by itself needs nobody's permission.
        let completes = sorted.completing.iter().any(|(other, _)| other.uid == pod.uid);
        for (budget, opens) in if completes { Vec::new() } else { needs(pod) } {
            if let Some(within) = opens.max(pod.opens_after_cordon) {
                let known = opening.entry(budget.clone()).or_default();
                *known = within.max(*known);
            }
            *counts.entry(budget).or_default() += 1;
        }
    }
    // While it is being emptied too: another node must not go that is the last place of what is still to come.
    for pod in sorted.go.iter().chain(&sorted.later).filter(|_| drain.wait_for_places) {
        let comes_back = pod.controller.is_some() && !pod.finished && pod.deletes_at.is_none();
        // What tolerates the cordon has a place here.
        if comes_back && !pod.tolerates_cordon && !facts.needs.iter().any(|(_, known)| *known == pod.needs) {
            facts.needs.push((pod.path(), Arc::clone(&pod.needs)));
        }
    }
    facts.budgets = counts.into_iter().collect();
    facts.opening = opening.into_iter().collect();
    let named = sorted.refused.iter().take(NAMED).map(|(pod, refusal)| UndrainablePod {
        pod: pod.path(),
        why: refusal.hint(),
        until: refusal.until(),
    });
    facts.undrainable = named.collect();
    let back = sorted.coming_back.iter().take(NAMED).map(|pod| pod.path());
    facts.coming_back = back.collect();
    let skipped = sorted.skipped.iter().take(NAMED);
    facts.skipped = skipped.map(|pod| format!("{} ({})", pod.path(), asked_by(pod, drain))).collect();
    let more = sorted.completing.len().saturating_sub(1);
    // The one that is waited for longest, as far as is known.
    let last = sorted.completing.iter().map(|(pod, until)| {
        let by = [*until, pod.ends_by.map(Time::new), job_ends_by(pod).map(Time::new)].into_iter().flatten().min();
        (by.is_none(), by, *pod)
    });
    facts.completing =
        last.max_by(|one, other| (one.0, one.1).cmp(&(other.0, other.1))).map(|(_, by, pod)| Completing {
            pod: pod.reference(),
            by,
            asked_by: asked_by(pod, drain),
            more: u32::try_from(more).unwrap_or(u32::MAX),
        });
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::{DrainBehavior, DrainRule, Selector};
    use chrono::TimeDelta;
    use std::collections::BTreeSet;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_795_000_000, 0).unwrap()
    }

    fn pod(name: &str, app: &str, controlled: bool) -> Pod {
        let controller = super::super::Controller {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: app.into(),
            uid: app.into(),
        };
        Pod {
            namespace: "shop".into(),
            name: name.into(),
            uid: name.into(),
            labels: std::sync::Arc::new([("app".to_owned(), app.to_owned())].into()),
            controller: controlled.then(|| controller.into()),
            ..Pod::default()
        }
    }

    fn rule(app: &str, behavior: DrainBehavior, order: i32, seconds: Option<u64>) -> DrainRule {
        let match_labels = [("app".to_owned(), app.to_owned())].into();
        DrainRule {
            name: app.to_owned(),
            selector: Some(Selector { match_labels, ..Selector::default() }),
            namespaces: Vec::new(),
            behavior,
            order,
            timeout: seconds.map(Duration::from_secs),
        }
    }

    fn names(pods: &[&Pod]) -> Vec<String> {
        pods.iter().map(|pod| pod.name.clone()).collect()
    }

    fn sorted<'a>(pods: &'a [Pod], drain: &Drain, begun: i64) -> Sorted<'a> {
        let begun = Some(now() - TimeDelta::seconds(begun));
        sort(pods, drain, &Hour { now: now(), begun, given_up: &BTreeSet::new(), own: None })
    }

    #[test]
    fn one_refusal_means_that_nothing_goes_and_every_pod_is_named() {
        let pods: Vec<_> = (0..8).map(|number| pod(&format!("web-{number}"), "web", number == 0)).collect();
        let refused = sorted(&pods, &Drain::default(), 0).asked().unwrap_err();
        assert_eq!(refused.0.len(), 7);
        let text = refused.to_string();
        assert!(text.starts_with("pod shop/web-1 has no controller"), "{text}");
        assert!(text.contains("spec.drain.force") && text.ends_with("and 2 more"), "{text}");
        assert_eq!(sorted(&pods[..1], &Drain::default(), 0).asked().unwrap().len(), 1);
    }

    #[test]
    fn lower_orders_leave_first_and_bounds_end_the_wait_for_them() {
        let rules = vec![
            rule("build", DrainBehavior::WaitCompleted, -1, Some(60)),
            rule("storage", DrainBehavior::Drain, 5, None),
        ];
        let drain = Drain { rules, ..Drain::default() };
        let pods = [pod("s", "storage", true), pod("w", "web", true), pod("b", "build", true)];
        let first = sorted(&pods, &drain, 10);
        assert_eq!((names(&first.go), names(&first.later)), (vec![], vec!["s".to_owned(), "w".to_owned()]));
        assert_eq!(first.completing.len(), 1);
        // The build's bound is over: it goes now, and nobody waits for it any more.
        let second = sorted(&pods, &drain, 60);
        assert_eq!((names(&second.go), names(&second.later)), (vec!["w".into(), "b".into()], vec!["s".to_owned()]));
        let third = sorted(&pods[..1], &drain, 60);
        assert_eq!(names(&third.go), ["s"]);
        assert_eq!(sorted(&pods, &drain, 10).all_at_once().go.len(), 3);
    }

    #[test]
    fn facts_name_what_is_waited_for_and_until_when() {
        let mut build = pod("b", "build", true);
        build.ends_by = Some(now() + TimeDelta::seconds(900));
        let drain = Drain { rules: vec![rule("build", DrainBehavior::WaitCompleted, 0, None)], ..Drain::default() };
        let hour = Hour { now: now(), begun: None, given_up: &BTreeSet::new(), own: None };
        let mut web = pod("w", "web", true);
        web.opens_after_cordon = Some(Duration::from_secs(30));
        let facts = node_pods([&build, &web], &drain, &hour, |_| vec![("shop/all".to_owned(), None)], |_| None);
        assert_eq!((facts.remaining, facts.budgets), (2, vec![("shop/all".to_owned(), 1)]));
        assert_eq!(facts.opening, [("shop/all".to_owned(), Duration::from_secs(30))]);
        let completing = facts.completing.unwrap();
        assert_eq!((completing.by, completing.more), (Some(Time::new(now() + TimeDelta::seconds(900))), 0));
    }

    #[test]
    fn whoever_asks_for_a_wait_or_to_leave_a_pod_is_named() {
        use super::super::{DO_NOT_DISRUPT, DRAIN_LABEL, Wish};
        let rules =
            vec![rule("build", DrainBehavior::WaitCompleted, 0, None), rule("debug", DrainBehavior::Skip, 0, None)];
        let drain = Drain { rules, ..Drain::default() };
        let hour = Hour { now: now(), begun: None, given_up: &BTreeSet::new(), own: None };
        let facts = |pods: &[Pod]| node_pods(pods, &drain, &hour, |_| Vec::new(), |_| None);
        let waited = |pods: &[Pod]| facts(pods).completing.unwrap().to_string();
        assert_eq!(waited(&[pod("b", "build", true)]), "Pod shop/b (rule build)");
        assert_eq!(waited(&[pod("b", "build", true), pod("b", "build", true)]), "Pod shop/b (rule build) and 1 more");
        let says = |wish| Pod { wish, completes: true, ..pod("w", "web", true) };
        assert_eq!(waited(&[says(Wish::WaitCompleted)]), format!("Pod shop/w (its label {DRAIN_LABEL})"));
        let undisturbed = Wish::Undisturbed { annotation: DO_NOT_DISRUPT, until: None };
        assert_eq!(waited(&[says(undisturbed)]), format!("Pod shop/w (its annotation {DO_NOT_DISRUPT})"));
        let left = facts(&[pod("d", "debug", true), says(Wish::Skip)]).skipped;
        assert_eq!(left, ["shop/d (rule debug)".to_owned(), format!("shop/w (its label {DRAIN_LABEL})")]);
    }
}
