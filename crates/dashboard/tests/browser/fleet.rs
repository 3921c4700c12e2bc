//! Fleets to look at.

use bascule_api::{
    Counts, DrainProgress, LIVE_REPORT_FORMAT, LiveNode, LiveReport, LiveWait, ObjectRef, RolloutState, Time, Version,
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
        let windows = |left: usize| {
            // Two thirds fit into the first.
            let first = (left * 9).div_ceil(14);
            let window = |week: i64| Window {
                start: ago(OPENED - week * WEEK),
                end: Some(ago(-CLOSES - week * WEEK)),
                in_its_zone: "22:00 Europe/Berlin".to_owned(),
                nodes: if week == 0 { first } else { left - first },
            };
            (0..2).map(window).collect()
        };
        let policies = report.policies.iter().enumerate().map(|(index, policy)| {
            let counts = &policy.status.counts;
            // What failed is not tried again, and who is on trial is done before.
            let left = counts.nodes - counts.updated - counts.failed - on_trial(&report, index);
            PolicyCalendar {
                name: policy.name.clone(),
                always: index == 0,
                foreseen: true,
                done_at: (left > 0).then(|| ago(-WEEK - 9_000)),
                windows: if index == 0 { Vec::new() } else { windows(left as usize) },
            }
        });
        Some(Calendar { made_at: ago(3), policies: policies.collect(), note: None })
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(100)
    }
}

/// How many seconds ago the window opened, in how many it closes, and how long it is from one to the next.
const OPENED: i64 = 3_600;
const CLOSES: i64 = 14_000;
const WEEK: i64 = 7 * 86_400;

fn on_trial(report: &LiveReport, policy: usize) -> u32 {
    report.nodes_of(policy).map(|node| u32::from(node.state == RolloutState::Trial)).sum()
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

/// The wait of who was cordoned by somebody, in [`fleet`].
const CORDONED: usize = 7;

/// What the nodes of a policy come to.
fn counts(nodes: &[LiveNode], policy: usize) -> Counts {
    let mut counts = Counts::default();
    for node in nodes.iter().filter(|node| node.policy == Some(policy)) {
        let is_granted = matches!(
            node.state,
            RolloutState::Draining | RolloutState::Rebooting | RolloutState::Trial | RolloutState::Reverting
        );
        counts.nodes += 1;
        counts.updated += u32::from(node.state == RolloutState::Current);
        counts.staged += u32::from(node.staged.is_some());
        counts.in_progress += u32::from(is_granted);
        counts.waiting += u32::from(node.state == RolloutState::Waiting);
        counts.failed += u32::from(node.state == RolloutState::Failed);
        counts.unavailable += u32::from(is_granted || node.wait == CORDONED);
    }
    counts
}

/// So many nodes in three zones, in the middle of a rollout: two are drained, one is on trial, one has failed. The control plane's
/// are done. What is said of policies follows from their nodes.
pub fn fleet(count: usize) -> LiveReport {
    let mut waits = vec![
        wait(WaitReason::Current, "runs 41.3.0", None, None),
        wait(WaitReason::Wave, "", None, None),
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
    let nodes: Vec<LiveNode> = (0..count)
        .map(|index| {
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
        })
        .collect();
    let digest = format!("sha256:{}", "3".repeat(64));
    let release = |version: &str| json!({"version": version, "digest": digest, "severity": "High", "publishedAt": ago(3 * 86_400)});
    let [control, workers] = [0, 1].map(|policy| counts(&nodes, policy));
    // The canary is done, and half of those after it.
    let early = workers.updated * 4 / 9;
    waits[1].message = format!("wave rest waits for wave early, of which {early} of {} are done", early * 2);
    let policy = |name: &str, counts: &Counts, has_windows: bool| {
        let is_done = counts.updated == counts.nodes;
        let wave = json!({"name": "early", "index": 2, "of": 3, "done": early, "nodes": early * 2});
        let rollout = if is_done {
            json!({"version": "41.3.0", "startedAt": ago(2 * 86_400), "endedAt": ago(2 * 86_400 - 9_000), "outcome": "Done", "nodes": counts.nodes})
        } else {
            json!({"version": "41.3.0", "startedAt": ago(7_200), "outcome": "Running"})
        };
        let failures = json!([{"version": "41.3.0", "node": "node-0013", "at": ago(900), "category": "TrialFailed", "message": "kubelet was not Ready within 10m"}]);
        json!({
            "name": name, "maxUnavailable": 4,
            "status": {
                "target": release("41.3.0"), "previous": release("41.2.0"),
                "counts": counts,
                "columns": {
                    "updated": format!("{}/{}", counts.updated, counts.nodes),
                    "nextWindow": "-", "waitsFor": if is_done { "-" } else { "Wave" },
                },
                "conditions": [{
                    "type": "MaintenancePlanned", "status": if is_done { "True" } else { "False" },
                    "reason": if is_done { "HookFailed" } else { "None" },
                    "message": "hook unset-noout failed (ceph/bascule-unset-noout-control): BackoffLimitExceeded",
                    "lastTransitionTime": ago(600),
                }],
                "wave": if is_done { json!(null) } else { wave },
                "window": if has_windows { json!({"open": true, "start": ago(OPENED), "end": ago(-CLOSES)}) } else { json!(null) },
                "history": [
                    {"version": "41.2.0", "startedAt": ago(40 * 86_400), "endedAt": ago(39 * 86_400), "outcome": "Done", "nodes": counts.nodes},
                    rollout,
                ],
                "failures": if counts.failed > 0 { failures } else { json!([]) },
            },
        })
    };
    let policies = json!([policy("control", &control, false), policy("workers", &workers, true)]);
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
        nodes,
        freezes: serde_json::from_value(freezes).unwrap(),
        ..LiveReport::default()
    }
}
