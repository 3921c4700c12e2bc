//! The checks, as pure functions of what was read.

use super::Finding;
use crate::cluster::{
    live::{Seen, Source},
    picture, remedy, view,
};
use bascule_api as api;
use bascule_api::{Time, WaitReason, conditions};
use bascule_facts::{BudgetFact, Fact as _, PodFact};
use bascule_planner::{
    snapshot::pod_trouble,
    windows::{Opening, opening},
};
use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::{core::v1, policy::v1::PodDisruptionBudget};
use kube::ResourceExt as _;
use std::collections::BTreeMap;

/// The leader plans every minute at the latest.
const PLANS_WITHIN: i64 = 90;
/// Clocks that differ by more are told of.
const SKEW: i64 = 5;
/// Metadata that expires within this time is told of.
const EXPIRES_SOON: TimeDelta = TimeDelta::days(2);
/// Metadata that was not verified for this time is told of.
const STALE: TimeDelta = TimeDelta::hours(1);
/// For how many objects of one finding there is a command.
const SHOWN: usize = 3;
/// How many windows are looked at for one that is long enough.
const WINDOWS: usize = 64;

/// Whether an operator leads, which one, and whether its clock is like this one.
pub(super) fn leader(seen: &Seen, now: DateTime<Utc>, namespace: &str) -> Vec<Finding> {
    let name = match &seen.source {
        Source::Objects { why, .. } => {
            let advice = "What the commands show comes from the objects until then: late by up to a minute while an operator leads, \
                          else as old as the first line of `bascule status` says.";
            let pods = format!("kubectl -n {namespace} get pods -l {}", super::OPERATORS);
            return vec![Finding::wrong("leader", format!("its live report can't be read: {why}"), advice).run(pods)];
        }
        Source::Leader { name } => name,
    };
    let report = &seen.report;
    let mut found = vec![Finding::good("leader", format!("{name}, version {}", report.operator_version))];
    let own = env!("CARGO_PKG_VERSION");
    if report.operator_version != own {
        found.push(Finding::warning(
            "versions",
            format!("this program is {own}, the operator {}", report.operator_version),
            "Use the program of the operator's version.",
        ));
    }
    let zones = bascule_planner::zones::TimeZones::default().version();
    if report.time_zones != zones {
        found.push(Finding::warning(
            "time zones",
            format!("the operator reads windows with {}, this program with {zones}", report.time_zones),
            "Forecasts of windows in zones that changed may differ; the operator's are what counts.",
        ));
    }
    let age = now.signed_duration_since(report.planned_at.get()).num_seconds();
    if !(-SKEW..=PLANS_WITHIN).contains(&age) {
        let far = picture::span(TimeDelta::seconds(age.abs()));
        let what =
            if age < 0 { format!("its last plan lies {far} ahead") } else { format!("its last plan is {far} old") };
        found.push(Finding::warning(
            "clocks",
            what,
            "The operator plans by the API server's clock: set that and this machine's right (NTP).",
        ));
    }
    found.extend(report.clock_skew.map(operators_clock));
    found
}

/// By how many seconds the clock of the operator's machine is ahead.
fn operators_clock(skew: i64) -> Finding {
    let far = TimeDelta::try_seconds(skew.saturating_abs()).unwrap_or(TimeDelta::MAX);
    if far <= TimeDelta::seconds(SKEW) {
        return Finding::good("operator's clock", format!("within {SKEW}s of the API server's"));
    }
    let side = if skew > 0 { "ahead of" } else { "behind" };
    Finding::warning(
        "operator's clock",
        format!("it is {} {side} the API server's", picture::span(far)),
        "The operator plans by the API server's; by its own it judges as well whether a repository's metadata has \
         expired. Set the clocks of both machines right (NTP).",
    )
}

/// The operator's pods, where none of them leads: why they do not run, as far as the kubelet says it.
pub(super) fn operators(pods: &[v1::Pod], namespace: &str) -> Vec<Finding> {
    if pods.is_empty() {
        let advice = "Install it (docs/install.md), or name the namespace that it is in (--namespace).";
        return vec![Finding::wrong("operators", format!("there is no pod of the operator in {namespace}"), advice)];
    }
    let facts = pods.iter().map(PodFact::of);
    let troubles = facts.filter_map(|pod| Some((pod_trouble(&pod, None)?, pod)));
    let told = troubles.map(|(trouble, pod)| {
        Finding::wrong("operators", trouble, "Its events say more.")
            .run(format!("kubectl -n {namespace} describe pod {}", pod.name))
    });
    told.collect()
}

/// What the policies themselves say, and whether their windows are ever long enough.
pub(super) fn policies(policies: &[api::UpdatePolicy], now: DateTime<Utc>) -> Vec<Finding> {
    if policies.is_empty() {
        return vec![Finding::warning("policies", "there is none", "No node is looked after (docs/policies.md).")];
    }
    let mut found = Vec::new();
    for policy in policies {
        let before = found.len();
        let name = policy.name_any();
        let status = policy.status.clone().unwrap_or_default();
        let edit = || format!("kubectl edit updatepolicy {name}");
        let wrong = |what: String, advice: &str| Finding::wrong("policy", format!("{name}: {what}"), advice);
        let warns = |what: String, advice: &str| Finding::warning("policy", format!("{name}: {what}"), advice);
        if status.observed_generation != policy.metadata.generation {
            let what = "the operator has not looked at its last change".to_owned();
            found.push(warns(what, "Is there a leader?").run("bascule version"));
        }
        for (type_, bad, advice, command) in [
            (conditions::ACCEPTED, "False", "An admin fixes the field that is named.", edit()),
            (conditions::POLICY_CONFLICT, "True", "An admin narrows one of the two selectors.", edit()),
            (
                conditions::HALTED,
                "True",
                "See docs/runbooks/BasculeReleaseBlocked.md.",
                format!("bascule history {name}"),
            ),
            (
                conditions::REPOSITORY_HEALTHY,
                "False",
                "See docs/runbooks/BasculeMetadataStale.md.",
                format!("kubectl describe updatepolicy {name}"),
            ),
        ] {
            let condition = conditions::get(&status.conditions, type_).filter(|condition| condition.status == bad);
            if let Some(condition) = condition {
                found.push(wrong(format!("{type_} is {bad}: {}", condition.message), advice).run(command));
            }
        }
        if let Some(repository) = &status.repository {
            metadata(repository, now, |what, advice| found.push(warns(what, advice)));
        }
        if status.counts.nodes == 0 && status.observed_generation.is_some() {
            let advice = "Look at its nodeSelector and at the labels of nodes.";
            let finding = warns("it selects no node".to_owned(), advice);
            found.push(finding.run("kubectl get nodes --show-labels").run(edit()));
        }
        match bascule_planner::validate(&policy.spec) {
            Ok(valid) => {
                if let Some(what) = never_fits(&valid, &status.timings, now) {
                    let advice = "An admin makes a window longer, or the drain's timeout shorter.";
                    found.push(wrong(what, advice).run(edit()));
                }
            }
            Err(error) => {
                found.push(wrong(error.to_string(), "An admin fixes the field that is named.").run(edit()));
            }
        }
        let allowed = policy.spec.budget.max_unavailable.of(status.counts.nodes);
        if status.counts.nodes > 0 && allowed.is_ok_and(|allowed| allowed == 0) {
            let what = "its budget lets no node be unavailable".to_owned();
            found.push(warns(what, "An admin raises budget.maxUnavailable.").run(edit()));
        }
        if found.len() == before {
            found.push(Finding::good("policy", format!("{name}: {} nodes", status.counts.nodes)));
        }
    }
    found
}

fn metadata(repository: &api::RepositoryStatus, now: DateTime<Utc>, mut tell: impl FnMut(String, &'static str)) {
    if let Some(expires) = repository.expires_at.filter(|expires| expires.get() - now < EXPIRES_SOON) {
        tell(
            format!("its repository's metadata expires at {expires}"),
            "The publisher renews it: bascule release refresh.",
        );
    }
    if let Some(verified) = repository.verified_at.filter(|verified| now - verified.get() > STALE)
        && let Some(error) = &repository.error
    {
        tell(
            format!("its repository was verified last at {verified}: {error}"),
            "See docs/runbooks/BasculeMetadataStale.md.",
        );
    }
}

/// Whether what a node takes fits into no window of the coming time.
fn never_fits(valid: &bascule_planner::ValidPolicy, timings: &api::Timings, now: DateTime<Utc>) -> Option<String> {
    let takes = bascule_planner::first_node_takes(valid, timings).to_chrono();
    let mut at = Time::new(now);
    let mut longest = TimeDelta::zero();
    for _ in 0..WINDOWS {
        let span = match opening(&valid.windows, at) {
            Opening::Always | Opening::Closed(None) => return None,
            Opening::Open(span) | Opening::Closed(Some(span)) => span,
        };
        let end = span.end?;
        longest = longest.max(end.get() - span.start.get());
        at = end;
    }
    (takes > longest).then(|| {
        format!(
            "a node takes {} from the drain to the commit, soak and hooks included, and its longest window is {}",
            picture::span(takes),
            picture::span(longest)
        )
    })
}

/// What nodes wait for until a person does something.
const FOR_A_PERSON: [WaitReason; 19] = [
    WaitReason::PolicyConflict,
    WaitReason::InvalidPolicy,
    WaitReason::Unreadable,
    WaitReason::RepositoryUnavailable,
    WaitReason::ReleaseBlocked,
    WaitReason::FailedHere,
    WaitReason::StateVersion,
    WaitReason::VersionSkew,
    WaitReason::StagingFailed,
    WaitReason::WindowTooShort,
    WaitReason::Halted,
    WaitReason::UndrainablePod,
    WaitReason::PodFitsNowhere,
    WaitReason::Cordoned,
    WaitReason::DrainHeld,
    WaitReason::Hook,
    WaitReason::Reverted,
    WaitReason::NodeLost,
    WaitReason::WriteRefused,
];

/// What holds nodes although nothing is broken: what people ordered, and what waits for them.
pub(super) fn orders(seen: &Seen, now: DateTime<Utc>) -> Vec<Finding> {
    let report = &seen.report;
    let by = |user: &Option<String>| user.as_deref().map(|user| format!(" by {user}")).unwrap_or_default();
    let mut found = Vec::new();
    for freeze in report.freezes.iter().filter(|freeze| view::holds(freeze, now)) {
        let (spec, ends) = (&freeze.spec, freeze.created_at.after(freeze.spec.duration));
        let what = format!(
            "{} holds {} until {ends}{}: {}",
            freeze.name,
            view::place(spec),
            by(&spec.requested_by),
            spec.reason
        );
        let finding =
            Finding::warning("freezes", what, "It ends by itself then; whoever may write freezes can end it before.");
        found.push(finding.run(format!("bascule unfreeze {}", freeze.name)));
    }
    for policy in report.policies.iter().filter(|policy| policy.paused) {
        let what = format!("{} is paused by its spec: nothing new starts, nothing is staged", policy.name);
        let advice = "An admin sets spec.paused to false.";
        found.push(Finding::warning("policy", what, advice).run(remedy::go_on(&policy.name)));
    }
    for rollback in report.rollbacks.iter().filter(|rollback| rollback.status.completed_at.is_none()) {
        let (spec, progress) =
            (&rollback.spec, rollback.status.progress.clone().unwrap_or_else(|| "not begun".to_owned()));
        let what = format!(
            "{} takes {} back{}, {progress}: {}",
            rollback.name,
            spec.policy,
            by(&spec.requested_by),
            spec.reason
        );
        let finding = Finding::warning("rollbacks", what, "Nothing: it goes on by itself.");
        found.push(finding.run(format!("kubectl describe rollback {}", rollback.name)));
    }
    for reason in FOR_A_PERSON {
        let (those, commands) = with_reason(seen, reason);
        if !those.is_empty() {
            let what = format!("{} with {reason}", waiting(&those));
            found.push(Finding::warning("nodes", what, reason.remedy()).run_all(commands));
        }
    }
    found
}

/// The nodes of policies that wait for this, and what to type about the first of them.
fn with_reason(seen: &Seen, reason: WaitReason) -> (Vec<&str>, Vec<String>) {
    let report = &seen.report;
    let mut commands = Vec::new();
    let mut names = Vec::new();
    for node in &report.nodes {
        let policy = node.policy.and_then(|index| report.policies.get(index));
        let (Some(policy), Some(wait)) = (policy, report.wait(node).filter(|wait| wait.reason == reason)) else {
            continue;
        };
        if names.is_empty() {
            commands = remedy::commands(wait, &node.name, Some(policy));
        }
        names.push(node.name.as_str());
    }
    (names, commands)
}

/// `3 nodes wait (node-a and 2 others)`.
fn waiting(names: &[&str]) -> String {
    match names {
        [one] => format!("1 node waits ({one})"),
        [first, rest @ ..] => {
            format!("{} nodes wait ({first} and {})", names.len(), picture::count(rest.len(), "other"))
        }
        [] => String::new(),
    }
}

/// Agents that are missing, that can't count boots, or that are of several versions.
pub(super) fn agents(seen: &Seen, nodes: &[api::NodeUpdate]) -> Vec<Finding> {
    let mut found = Vec::new();
    for (reason, what) in [
        (WaitReason::AgentNotReporting, "without a report from the present boot"),
        (WaitReason::BootCountingBroken, "that can't count boots, so that no trial would revert by itself"),
    ] {
        let (those, commands) = with_reason(seen, reason);
        let what = match those[..] {
            [] => continue,
            [one] => format!("1 node {what}: {one}"),
            [first, ref rest @ ..] => {
                format!("{} nodes {what}: {first} and {}", those.len(), picture::count(rest.len(), "other"))
            }
        };
        found.push(Finding::wrong("agents", what, reason.remedy()).run_all(commands));
    }
    let mut versions: BTreeMap<String, usize> = BTreeMap::new();
    for version in nodes.iter().filter_map(|node| node.status.as_ref()?.agent_version.clone()) {
        *versions.entry(version).or_default() += 1;
    }
    if versions.len() > 1 {
        let versions: Vec<_> = versions.iter().map(|(version, count)| format!("{version} on {count}")).collect();
        let what = format!("are of several versions: {}", versions.join(", "));
        found.push(Finding::warning("agents", what, "Fine while they are being replaced; else finish that."));
    }
    let operator = &seen.report.operator_version;
    if let (Some((only, _)), true) = (versions.first_key_value(), versions.len() == 1)
        && matches!(seen.source, Source::Leader { .. })
        && only != operator
    {
        let what = format!("are all {only}, and the operator is {operator}");
        found.push(Finding::warning(
            "agents",
            what,
            "Bring the newer of the two everywhere (docs/install.md, Upgrade).",
        ));
    }
    if found.is_empty() {
        let reported = versions.values().sum();
        let missing = nodes.len().saturating_sub(reported);
        let yet = if missing == 0 { String::new() } else { format!(", {missing} not yet") };
        found.push(Finding::good("agents", format!("{} reported{yet}", picture::count(reported, "node"))));
    }
    found
}

/// Budgets that allow no disruption although every pod is healthy: no drain of their nodes ever succeeds.
pub(super) fn budgets(budgets: &[PodDisruptionBudget]) -> Vec<Finding> {
    let never: Vec<BudgetFact> = budgets.iter().map(BudgetFact::of).filter(BudgetFact::never_opens).collect();
    if never.is_empty() {
        return vec![Finding::good("budgets", "each allows a disruption when its pods are healthy")];
    }
    let advice = "Nodes with their pods wait with DisruptionBudget. Give the workload a replica more, or have its owner change the budget.";
    let names: Vec<String> = never.iter().map(BudgetFact::path).collect();
    let show = |budget: &BudgetFact| format!("kubectl -n {} describe pdb {}", budget.namespace, budget.name);
    let show = never.iter().take(SHOWN).map(show);
    let finding = Finding::wrong("budgets", format!("can never allow a disruption: {}", names.join(", ")), advice);
    vec![finding.run_all(show.collect())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixture;
    use serde_json::json;

    fn weights(found: &[Finding]) -> Vec<super::super::Weight> {
        found.iter().map(|finding| finding.weight).collect()
    }

    fn policy(spec: serde_json::Value, status: serde_json::Value) -> api::UpdatePolicy {
        let mut whole =
            json!({"nodeSelector": {}, "source": {"repository": "https://a.example/os", "channel": "stable"}});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": "workers", "generation": 1},
            "spec": whole, "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_window_that_nothing_fits_into_is_found() {
        let window = json!({"maintenanceWindows": [{"schedule": "0 2 * * *", "duration": "10m"}]});
        let slow = json!({"observedGeneration": 1, "counts": {"nodes": 3}, "timings": {"drainSeconds": 400, "bootSeconds": 300}});
        let found = policies(&[policy(window.clone(), slow)], fixture::now());
        assert!(found[0].what.contains("longest window is 10m") && found[0].what.contains("takes "), "{found:?}");
        let quick = json!({"observedGeneration": 1, "counts": {"nodes": 3}, "timings": {"drainSeconds": 100, "bootSeconds": 100}});
        let short = json!({"health": {"nodeSoak": "1m"}});
        let both = |more: &serde_json::Value| {
            let mut spec = window.clone();
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        let found = policies(&[policy(both(&short), quick.clone())], fixture::now());
        assert_eq!(weights(&found), [super::super::Weight::Good], "{found:?}");
        // The nodes of such a policy wait with WindowTooShort, whatever was learned.
        let found = policies(&[policy(both(&json!({"health": {"nodeSoak": "15m"}})), quick)], fixture::now());
        assert!(found[0].what.contains("soak"), "{found:?}");
    }

    #[test]
    fn a_budget_of_the_policy_that_allows_nothing_is_told() {
        let status = json!({"observedGeneration": 1, "counts": {"nodes": 3}});
        let found = policies(&[policy(json!({"budget": {"maxUnavailable": 0}}), status)], fixture::now());
        assert!(found.iter().any(|finding| finding.what.contains("lets no node be unavailable")), "{found:?}");
    }

    #[test]
    fn conditions_metadata_and_bad_fields_are_found() {
        let status = json!({
            "observedGeneration": 1, "counts": {"nodes": 3},
            "repository": {"expiresAt": "2026-11-24T00:00:00Z", "verifiedAt": "2026-11-23T10:00:00Z", "error": "no route"},
            "conditions": [{"type": "Halted", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        });
        let zone =
            json!({"maintenanceWindows": [{"schedule": "0 2 * * *", "duration": "1h", "timeZone": "Europe/Berln"}]});
        let found = policies(&[policy(zone, status)], fixture::now());
        let all: Vec<_> = found.iter().map(|finding| finding.what.as_str()).collect();
        for part in ["Halted is True", "expires at", "verified last", "Europe/Berln"] {
            assert!(all.iter().any(|what| what.contains(part)), "{part} in {all:?}");
        }
    }

    #[test]
    fn a_budget_that_can_never_allow_anything_is_told_from_one_that_does_not_now() {
        let budget = |name: &str, allowed: i32, healthy: i32, desired: i32, expected: i32| -> PodDisruptionBudget {
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": "shop"},
                "status": {"disruptionsAllowed": allowed, "currentHealthy": healthy, "desiredHealthy": desired, "expectedPods": expected},
            }))
            .unwrap()
        };
        let fine = [budget("ok", 1, 3, 2, 3), budget("ill", 0, 2, 2, 3), budget("empty", 0, 0, 0, 0)];
        assert_eq!(weights(&budgets(&fine)), [super::super::Weight::Good]);
        let found = budgets(&[budget("never", 0, 1, 1, 1)]);
        assert!(found[0].what.contains("shop/never"), "{found:?}");
    }

    #[test]
    fn an_operator_that_never_began_is_told_by_its_pod() {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "bascule-operator-1", "namespace": "bascule-system"},
            "status": {"containerStatuses": [{"name": "operator", "image": "", "imageID": "", "ready": false, "restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 255, "message": "exec /bascule-operator: exec format error"}}}]},
        }))
        .unwrap();
        let found = operators(&[pod], "bascule-system");
        assert!(
            found[0].what.contains("for another architecture")
                && found[0].commands == ["kubectl -n bascule-system describe pod bascule-operator-1"],
            "{found:?}"
        );
        assert!(operators(&[v1::Pod::default()], "bascule-system").is_empty(), "it begins");
        assert!(operators(&[], "elsewhere")[0].what.contains("no pod of the operator in elsewhere"));
    }

    #[test]
    fn agents_and_the_leader_are_looked_at() {
        let mut seen = fixture::seen();
        assert_eq!(weights(&agents(&seen, &[])), [super::super::Weight::Good]);
        seen.report.waits[2].reason = WaitReason::AgentNotReporting;
        assert!(agents(&seen, &[])[0].what.starts_with("2 nodes without a report from the present boot: "));
        seen.report.time_zones = bascule_planner::zones::TimeZones::default().version();
        assert_eq!(weights(&leader(&seen, fixture::now(), "bascule-system")), [super::super::Weight::Good]);
        seen.report.planned_at = fixture::ago(-40);
        assert!(leader(&seen, fixture::now(), "bascule-system")[1].what.contains("40s ahead"));
        seen.report.planned_at = fixture::ago(2);
        for (skew, weight, says) in [
            (-5, super::super::Weight::Good, "within 5s"),
            (125, super::super::Weight::Warning, "2m5s ahead of the API server's"),
            (-480, super::super::Weight::Warning, "8m behind the API server's"),
            (i64::MIN, super::super::Weight::Warning, "behind"),
        ] {
            seen.report.clock_skew = Some(skew);
            let found = leader(&seen, fixture::now(), "bascule-system");
            assert_eq!((found.len(), found[1].weight), (2, weight), "{skew}: {found:?}");
            assert!(found[1].what.contains(says), "{skew}: {found:?}");
        }
        seen.source = Source::Objects { why: "no operator leads".into(), written_at: None };
        assert_eq!(weights(&leader(&seen, fixture::now(), "bascule-system")), [super::super::Weight::Wrong]);
    }

    /// "Nothing told you and no update is in progress": whoever asks the doctor then must read of the freeze.
    #[test]
    fn what_people_ordered_is_told_and_what_waits_for_them() {
        let mut seen = fixture::seen();
        let told = |seen: &Seen| -> Vec<String> {
            orders(seen, fixture::now())
                .into_iter()
                .map(|finding| format!("{}: {}", finding.about, finding.what))
                .collect()
        };
        let before = told(&seen);
        assert!(
            before.iter().any(|one| one.starts_with("freezes: freeze-x7k2 holds ") && one.contains("by alice")),
            "{before:?}"
        );
        assert!(!before.iter().any(|one| one.contains("Cordoned") || one.contains("paused")), "{before:?}");
        seen.report.waits[2] = fixture::wait(WaitReason::Cordoned, "alice cordoned it", None);
        seen.report.policies[0].paused = true;
        let after = told(&seen);
        assert!(after.iter().any(|one| one.contains("nodes wait (") && one.ends_with("with Cordoned")), "{after:?}");
        assert!(after.iter().any(|one| one.contains("is paused by its spec")), "{after:?}");
        seen.report.freezes.clear();
        assert!(!told(&seen).iter().any(|one| one.starts_with("freezes")));
    }
}
