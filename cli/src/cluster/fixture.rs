//! A fleet for tests of what is shown.

use super::{
    SameCluster,
    live::{Seen, Source},
    picture::Look,
    view::Page,
};
use bascule_api::{
    LIVE_REPORT_FORMAT, LiveNode, LiveReport, LiveWait, ObjectRef, RolloutState, Time, Version, WaitReason,
};
use chrono::{DateTime, TimeZone as _, Utc};
use serde_json::json;

/// The page that shows this fleet.
pub(super) const PAGE: &str = include_str!("../../../docs/cli.md");

/// What a run of the sandbox put into docs/on-call.md: the lines that were typed, each with what was read.
pub(super) fn sandbox_typed() -> Vec<(&'static str, &'static str)> {
    let page = include_str!("../../../docs/on-call.md");
    let made = page.split_once("<!-- sandbox: begin").unwrap().1.split_once("<!-- sandbox: end -->").unwrap().0;
    let block =
        made.split("```").nth(1).expect("a run of the sandbox is in docs/on-call.md (docs/sandbox.md tells how)");
    let typed = block.split("$ bascule ").skip(1).map(|one| one.split_once('\n').unwrap());
    typed.map(|(line, read)| (line, read.trim_end())).collect()
}

/// The answer to one of these lines.
pub(super) fn sandbox_read(command: &str) -> &'static str {
    sandbox_typed().into_iter().find(|(line, _)| line.starts_with(command)).unwrap().1
}

/// How she looks at it.
pub(super) const SANDBOX: Look = Look { unicode: true, ..Look::PLAIN };

pub(super) fn now() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 23, 22, 0, 0).unwrap()
}

pub(super) fn page(look: Look) -> Page<'static, Utc> {
    Page { look, now: now(), zone: &Utc }
}

/// What `-o json` prints.
pub(super) fn json(answer: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(answer).unwrap()
}

pub(super) const TERMINAL: Look = Look { colour: false, unicode: true, width: 100 };

pub(super) fn ago(seconds: i64) -> Time {
    Time::new(now() - chrono::TimeDelta::seconds(seconds))
}

pub(super) fn wait(reason: WaitReason, message: &str, object: Option<(&str, &str)>) -> LiveWait {
    let object = object.map(|(kind, name)| ObjectRef {
        kind: kind.into(),
        namespace: name.split_once('/').map(|(namespace, _)| namespace.into()),
        name: name.split_once('/').map_or(name, |(_, name)| name).into(),
    });
    LiveWait { reason, message: message.into(), object, until: None }
}

pub(super) fn node(name: &str, state: RolloutState, wait: usize) -> LiveNode {
    LiveNode {
        name: name.into(),
        policy: Some(0),
        zone: Some("a".into()),
        state,
        wait,
        since: Some(ago(125)),
        gates_passed: None,
        drain: None,
        booted: Version::parse("41.2.0").ok(),
        staged: Version::parse("41.3.0").ok(),
        percent: None,
    }
}

/// Six nodes of one policy, each in another state.
pub(super) fn seen() -> Seen {
    let gates = bascule_planner::GATES.iter().map(|gate| gate.name().to_owned()).collect();
    let waits = vec![
        wait(WaitReason::Draining, "12 of 14 pods are gone", None),
        wait(
            WaitReason::DisruptionBudget,
            "2 of 3 pods healthy, 3 wanted; not healthy: shop/checkout-7f9c6 on node-c3",
            Some(("PodDisruptionBudget", "shop/checkout")),
        ),
        wait(WaitReason::Wave, "wave rest waits for wave early", None),
        wait(WaitReason::Reverted, "41.3.0 failed here: kubelet was not Ready within 10m", Some(("NodeUpdate", "n3"))),
        LiveWait { until: Some(ago(-300)), ..wait(WaitReason::NodeSoak, "healthy, soaking", None) },
    ];
    let mut draining = node("node-b4", RolloutState::Draining, 0);
    draining.drain = Some(bascule_api::DrainProgress { pods: 14, gone: 12 });
    let mut held = node("node-b2", RolloutState::Waiting, 1);
    held.gates_passed = Some(usize::from(bascule_planner::Gate::DisruptionBudget.index()));
    let digest = format!("sha256:{}", "3".repeat(64));
    let release = |version: &str| json!({"version": version, "digest": digest, "severity": "High", "publishedAt": "2026-11-20T00:00:00Z"});
    let policies = serde_json::from_value(json!([{
        "name": "workers",
        "maxUnavailable": 4,
        "forecast": {"inWindow": 14, "doneAt": "2026-11-28T10:20:00Z"},
        "status": {
            "target": release("41.3.0"), "previous": release("41.2.0"),
            "counts": {"nodes": 40, "updated": 12, "unavailable": 2, "inProgress": 2, "failed": 1},
            "columns": {"updated": "12/40", "nextWindow": "open until Tue 2026-11-24 03:00 CET", "waitsFor": "Wave"},
            "wave": {"name": "early", "index": 2, "of": 3, "done": 4, "nodes": 8},
            "window": {"open": true, "start": "2026-11-23T21:00:00Z", "end": "2026-11-24T02:00:00Z"},
            "history": [
                {"version": "41.2.0", "startedAt": "2026-11-02T21:00:00Z", "endedAt": "2026-11-03T01:30:00Z", "outcome": "Done", "nodes": 40},
                {"version": "41.3.0", "startedAt": "2026-11-23T21:00:00Z", "outcome": "Running"},
            ],
            "conditions": [
                {"type": "Accepted", "status": "True", "reason": "Valid", "message": "", "lastTransitionTime": "2026-11-20T00:00:00Z"},
                {"type": "Halted", "status": "False", "reason": "Observed", "message": "", "lastTransitionTime": "2026-11-20T00:00:00Z"},
            ],
        },
    }]))
    .unwrap();
    let freezes = serde_json::from_value(json!([
        {"name": "freeze-x7k2", "createdAt": "2026-11-23T21:30:00Z", "status": {},
            "spec": {"reason": "checkout incident INC-4711", "duration": "2h", "requestedBy": "alice", "policies": ["control"]}},
        {"name": "freeze-old", "createdAt": "2026-11-01T21:30:00Z", "status": {},
            "spec": {"reason": "over", "duration": "2h"}},
        {"name": "freeze-b1c2", "createdAt": "2026-11-10T08:00:00Z", "status": {"endedAt": "2026-11-10T08:12:00Z"},
            "spec": {"reason": "payments are slow", "duration": "2h", "requestedBy": "alice", "endedBy": "bob"}},
    ]))
    .unwrap();
    let report = LiveReport {
        format: LIVE_REPORT_FORMAT,
        planned_at: ago(2),
        planned_by: "bascule-operator-5d9f".into(),
        operator_version: "0.1.0".into(),
        gates,
        waits,
        policies,
        nodes: vec![
            node("n3", RolloutState::Failed, 3),
            node("node-a1", RolloutState::Trial, 4),
            held,
            draining,
            node("node-c1", RolloutState::Waiting, 2),
            node("node-c2", RolloutState::Waiting, 2),
        ],
        freezes,
        ..LiveReport::default()
    };
    let source = Source::Leader { name: "bascule-operator-5d9f".into() };
    Seen { report, source, cluster: SameCluster::default() }
}

/// Five hundred nodes of a policy under way, and as many waiting for reasons of their own.
pub(super) fn crowd() -> Seen {
    let mut seen = seen();
    for index in 0..500 {
        let mut one = node(&format!("worker-{index:03}"), RolloutState::Draining, 0);
        one.since = Some(ago(index));
        seen.report.nodes.push(one);
        let budget = format!("shop/app-{index:03}");
        seen.report.waits.push(wait(WaitReason::DisruptionBudget, "no", Some(("PodDisruptionBudget", &budget))));
        seen.report.nodes.push(node(&format!("other-{index:03}"), RolloutState::Waiting, seen.report.waits.len() - 1));
    }
    seen
}
