//! Fleets to look at.

use bascule_api::{
    DrainProgress, LIVE_REPORT_FORMAT, LiveNode, LiveReport, LiveWait, ObjectRef, RolloutState, Time, Version,
    WaitReason,
};
use bascule_dashboard::{Calendar, Look, PolicyCalendar, Source, Window};
use serde_json::json;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A source whose fleet a test changes.
#[derive(Clone, Default)]
pub struct Stage(Arc<Mutex<(u64, Option<LiveReport>)>>);

impl Stage {
    pub fn show(&self, report: LiveReport) {
        let mut shown = self.0.lock().unwrap();
        *shown = (shown.0 + 1, Some(report));
    }

    pub fn hide(&self) {
        let mut shown = self.0.lock().unwrap();
        *shown = (shown.0 + 1, None);
    }
}

impl Source for Stage {
    async fn look(&self, since: Option<u64>) -> Look {
        let shown = self.0.lock().unwrap();
        match &shown.1 {
            Some(_) if since == Some(shown.0) => Look::Same,
            Some(report) => Look::New { report: Box::new(report.clone()), stamp: shown.0, note: None },
            None => Look::Away("this replica does not lead: the other does".to_owned()),
        }
    }

    async fn calendar(&self) -> Option<Calendar> {
        let report = self.0.lock().unwrap().1.clone()?;
        let windows = |first: i64| {
            let window = |week: i64| Window {
                start: ago(-first - week * 7 * 86_400),
                end: Some(ago(-first - week * 7 * 86_400 - 18_000)),
                in_its_zone: "22:00 Europe/Berlin".to_owned(),
                nodes: if week == 0 { 18 } else { 10 },
            };
            (0..2).map(window).collect()
        };
        let policies = report.policies.iter().enumerate().map(|(index, policy)| PolicyCalendar {
            name: policy.name.clone(),
            always: index == 0,
            foreseen: true,
            done_at: Some(ago(-9 * 86_400)),
            windows: if index == 0 { Vec::new() } else { windows(index as i64 * 7_200) },
        });
        Some(Calendar { made_at: ago(3), policies: policies.collect(), note: None })
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(100)
    }
}

fn ago(seconds: i64) -> Time {
    Time::new(bascule_now() - chrono::TimeDelta::seconds(seconds))
}

#[allow(
    clippy::disallowed_methods,
    reason = "a browser has the clock of this machine, and shows how old things are by it"
)]
fn bascule_now() -> chrono::DateTime<chrono::Utc> {
    chrono::Utc::now()
}

fn wait(reason: WaitReason, message: &str, object: Option<(&str, &str)>, until: Option<i64>) -> LiveWait {
    let object = object.map(|(kind, name)| ObjectRef {
        kind: kind.into(),
        namespace: name.split_once('/').map(|(namespace, _)| namespace.into()),
        name: name.split_once('/').map_or(name, |(_, name)| name).into(),
    });
    LiveWait { reason, message: message.into(), object, until: until.map(|seconds| ago(-seconds)) }
}

/// Markup in what others write: it is to be read, not to be carried out.
pub const MARKUP: &str = "<img src=x onerror=\"window.hurt=1\"> & <script>window.hurt=1</script>";

/// The same with what people and agents write in a fleet that is nobody's test.
pub fn without_markup(mut report: LiveReport) -> LiveReport {
    for wait in report.waits.iter_mut().filter(|wait| wait.message == MARKUP) {
        wait.message = "somebody cordoned the node".to_owned();
        wait.object = Some(ObjectRef {
            kind: "Node".to_owned(),
            namespace: None,
            name: "node-0017.eu-central-1.compute.internal".to_owned(),
        });
    }
    report
}

/// A node has been drained and reboots.
pub fn reboots(report: &mut LiveReport, node: usize) {
    let why = wait(WaitReason::Rebooting, "the agent arms the release and the machine reboots", None, None);
    report.waits.push(why);
    let node = &mut report.nodes[node];
    (node.state, node.wait, node.drain) = (RolloutState::Rebooting, report.waits.len() - 1, None);
}

/// So many nodes in three zones, in the middle of a rollout: two are drained, one is on trial, one has failed.
pub fn fleet(count: usize) -> LiveReport {
    let waits = vec![
        wait(WaitReason::Current, "runs 41.3.0", None, None),
        wait(WaitReason::Wave, "wave rest waits for wave early, of which 4 of 8 are done", None, None),
        wait(
            WaitReason::DisruptionBudget,
            "2 of 3 pods healthy, 3 wanted; not healthy: shop/checkout-7f9c6 on node-c3",
            Some(("PodDisruptionBudget", "shop/checkout")),
            None,
        ),
        wait(WaitReason::Draining, "12 of 14 pods are gone", None, None),
        wait(WaitReason::NodeSoak, "healthy, soaking", None, Some(300)),
        wait(
            WaitReason::Reverted,
            "41.3.0 failed here: kubelet was not Ready within 10m",
            Some(("NodeUpdate", "x")),
            None,
        ),
        wait(WaitReason::Transferring, "61 % is written", None, Some(600)),
        wait(WaitReason::Cordoned, MARKUP, Some(("Node", "x")), None),
    ];
    let nodes = (0..count).map(|index| {
        let (state, wait) = match index {
            5 | 7 => (RolloutState::Draining, 3),
            11 => (RolloutState::Trial, 4),
            13 => (RolloutState::Failed, 5),
            14..17 => (RolloutState::Staging, 6),
            17 => (RolloutState::Waiting, 7),
            18..20 => (RolloutState::Waiting, 2),
            _ if index % 10 < 3 => (RolloutState::Current, 0),
            _ => (RolloutState::Waiting, 1),
        };
        let current = matches!(state, RolloutState::Current | RolloutState::Trial);
        LiveNode {
            name: format!("node-{index:04}.eu-central-1.compute.internal"),
            policy: Some(usize::from(index % 20 != 0)),
            zone: Some(format!("eu-central-1{}", ["a", "b", "c"][index % 3])),
            state,
            wait,
            since: Some(ago(60 + index as i64 % 600)),
            gates_passed: None,
            drain: (state == RolloutState::Draining).then_some(DrainProgress { pods: 14, gone: 12 }),
            booted: Version::parse(if current { "41.3.0" } else { "41.2.0" }).ok(),
            staged: Version::parse("41.3.0").ok().filter(|_| !current && state != RolloutState::Staging),
            percent: (state == RolloutState::Staging).then_some(61),
        }
    });
    let digest = format!("sha256:{}", "3".repeat(64));
    let release = |version: &str| json!({"version": version, "digest": digest, "severity": "High", "publishedAt": ago(3 * 86_400)});
    let policy = |name: &str, nodes: usize, updated: usize| {
        json!({
            "name": name, "maxUnavailable": 4,
            "status": {
                "target": release("41.3.0"), "previous": release("41.2.0"),
                "counts": {"nodes": nodes, "updated": updated, "unavailable": 3, "inProgress": 3, "failed": 1},
                "columns": {"updated": format!("{updated}/{nodes}"), "nextWindow": "-", "waitsFor": "Wave"},
                "conditions": [{
                    "type": "MaintenancePlanned", "status": if name == "control" { "True" } else { "False" },
                    "reason": if name == "control" { "HookFailed" } else { "None" },
                    "message": "hook unset-noout failed (ceph/bascule-unset-noout-control): BackoffLimitExceeded",
                    "lastTransitionTime": ago(600),
                }],
                "wave": {"name": "early", "index": 2, "of": 3, "done": 4, "nodes": 8},
                "window": {"open": true, "start": ago(3_600), "end": ago(-14_000)},
                "history": [
                    {"version": "41.2.0", "startedAt": ago(40 * 86_400), "endedAt": ago(39 * 86_400), "outcome": "Done", "nodes": nodes},
                    {"version": "41.3.0", "startedAt": ago(7_200), "outcome": "Running"},
                ],
                "failures": [{"version": "41.3.0", "node": "node-0013", "at": ago(900), "category": "TrialFailed", "message": "kubelet was not Ready within 10m"}],
            },
        })
    };
    let control = count.div_ceil(20);
    let policies = json!([policy("control", control, control), policy("workers", count - control, count * 3 / 10)]);
    let freezes = json!([{"name": "freeze-x7k2", "createdAt": ago(1_800), "status": {},
        "spec": {"reason": "checkout incident INC-4711", "duration": "2h", "requestedBy": "alice", "policies": ["control"]}},
        {"name": "freeze-b1c2", "createdAt": ago(9_000), "status": {"endedAt": ago(8_280)},
        "spec": {"reason": "payments are slow", "duration": "4h", "requestedBy": "alice", "endedBy": "bob"}}]);
    LiveReport {
        format: LIVE_REPORT_FORMAT,
        planned_at: ago(1),
        planned_by: "bascule-operator-5d9f".into(),
        operator_version: "0.1.0".into(),
        waits,
        policies: serde_json::from_value(policies).unwrap(),
        nodes: nodes.collect(),
        freezes: serde_json::from_value(freezes).unwrap(),
        ..LiveReport::default()
    }
}
