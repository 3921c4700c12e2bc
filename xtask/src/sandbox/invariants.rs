//! What had to hold, judged by what the sandbox saw itself.

use std::collections::BTreeMap;

use anyhow::Context as _;
use bascule_tests::bascule::OPERATOR;
use bascule_tests::control_plane::Request;
use bascule_tests::rights::{Granted, OPERATOR_ELSEWHERE};
use kube::Client;

use super::acts::Tale;
use super::probes::{DEADLINE, Probes, Requests as Probed, Seen};
use super::report::{Availability, Invariant, Report, Requests, component};
use super::snapshot::{Extremes, Snapshot};
use super::story::Story;
use super::workload::{BUDGET, REPLICAS};

/// Nodes that the policy lets be unavailable at once (`maxUnavailable: 2`, and one zone with one node).
const MOST_UNAVAILABLE: u32 = 1;

/// The longest that etcd or the API may not answer while a machine that carries them reboots. An orderly end leaves hardly a gap
/// (docs/sandbox.md has what was measured); this is the most that Kubernetes' own leaders would bear.
const LONGEST_GAP_MS: u64 = DEADLINE.as_secs() * 1_000;

/// The longest that a watch may be silent: Kubernetes' own clients notice a connection that is dead without a word after 45 s
/// (client-go's HTTP/2 health check: a ping after 30 s, 15 s for its answer). Here it is the balancer that ends the watch of a
/// server that has lost its etcd.
const LONGEST_SILENCE_MS: u64 = 45_000;

/// The account of the agents' pods.
const AGENT: &str = "system:serviceaccount:bascule-agents:bascule-agent";

/// Everything that was measured. `broken` is why the story ended before its end.
///
/// # Errors
/// The audit log can't be read.
pub(crate) async fn report(story: &mut Story, broken: Option<String>) -> anyhow::Result<Report> {
    story.stop_killing().await;
    let seen = story.observer.now();
    let worst = seen.extremes.clone().unwrap_or_default();
    let mut invariants = vec![Invariant {
        what: "the story went to its end".to_owned(),
        held: broken.is_none(),
        seen: broken.unwrap_or_else(|| format!("{} acts", story.acts.len())),
    }];
    invariants.extend(judge(&seen, &worst));
    if story.tale() == Tale::Fleet && story.acts.len() >= 4 {
        invariants.push(judge_end(&seen));
        if let Some(requests) = story.cluster.requests()? {
            invariants.push(judge_rights(&story.cluster.client().await?, &requests).await?);
        }
    }
    let control_plane = story.probes.as_mut().map(Probes::all);
    if let Some(probed) = &control_plane {
        invariants.extend(judge_control_plane(probed, story.hosts.len()));
    }
    Ok(Report {
        machine: machine(),
        kubernetes: story.version().to_owned(),
        nodes: story.hosts.len(),
        kill_seed: story.kill_seed(),
        kills: std::mem::take(&mut story.kills),
        seconds: story.began.elapsed().as_secs_f64(),
        preparation: std::mem::take(&mut story.preparation),
        acts: std::mem::take(&mut story.acts),
        availability: Availability {
            replicas: REPLICAS,
            budget: BUDGET,
            lowest: worst.fewest_replicas.unwrap_or(0),
            most_nodes_unavailable: worst.most_unavailable,
            most_zones_unavailable: worst.most_zones,
        },
        control_plane,
        reboots: seen.starts().into_iter().map(|(node, starts)| (node, starts.saturating_sub(1))).collect(),
        api_requests: story.cluster.requests()?.map(|requests| {
            let mut components: BTreeMap<String, Requests> = BTreeMap::new();
            for request in requests {
                let counts = components.entry(component(&request.user)).or_default();
                if request.writes() {
                    counts.writes += 1;
                    *counts.written.entry(request.resource).or_default() += 1;
                } else {
                    counts.reads += 1;
                }
            }
            components
        }),
        invariants,
    })
}

fn judge(seen: &Snapshot, worst: &Extremes) -> Vec<Invariant> {
    let lowest = worst.fewest_replicas.unwrap_or(0);
    let cordoned: Vec<&str> =
        seen.nodes.iter().filter(|(_, node)| node.cordoned).map(|(name, _)| name.as_str()).collect();
    let tried = seen.ever_ran("1.2");
    let strange: Vec<String> = worst
        .ran
        .iter()
        .filter(|(version, _)| !["1.0", "1.1", "1.2", "1.3"].contains(&version.as_str()))
        .map(|(version, node)| format!("{version} on {node}"))
        .collect();
    let list = |items: &[&str]| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
    vec![
        Invariant {
            what: "the shop never had fewer replicas than its budget".to_owned(),
            held: lowest >= BUDGET,
            seen: format!("lowest {lowest} of {REPLICAS}, budget {BUDGET}"),
        },
        Invariant {
            what: "never more nodes unavailable than the policy allows, in one zone only".to_owned(),
            held: worst.most_unavailable <= MOST_UNAVAILABLE && worst.most_zones <= 1,
            seen: format!("at most {} in {} zone(s)", worst.most_unavailable, worst.most_zones),
        },
        Invariant {
            what: "every machine always had something to boot".to_owned(),
            held: worst.dead.is_empty(),
            seen: format!("dead: {}", list(&worst.dead.iter().map(String::as_str).collect::<Vec<_>>())),
        },
        Invariant {
            what: "the broken release ran on one node at most".to_owned(),
            held: tried.len() <= 1,
            seen: format!("ran on: {}", list(&tried)),
        },
        Invariant {
            what: "nothing ran that was never published".to_owned(),
            held: strange.is_empty(),
            seen: if strange.is_empty() { "nothing".to_owned() } else { strange.join(", ") },
        },
        Invariant {
            what: "no node is left cordoned".to_owned(),
            held: cordoned.is_empty(),
            seen: format!("cordoned: {}", list(&cordoned)),
        },
    ]
}

/// The story from act 4 on has one end, whoever was killed on the way: 1.1 where it was, beside it 1.3 that was taken back, and
/// nothing that still holds a node.
fn judge_end(seen: &Snapshot) -> Invariant {
    let mut other = Vec::new();
    for (name, node) in &seen.nodes {
        let machine = node.machine.as_ref();
        let slots: Vec<&str> =
            machine.map(|machine| machine.slots.iter().map(|slot| slot.label.as_str()).collect()).unwrap_or_default();
        let runs = machine.and_then(|machine| machine.system.as_ref()).map_or("-", |system| system.slot.as_str());
        if slots != ["1.3", "1.1"] || runs != "B" {
            other.push(format!("{name} has {} and runs {runs}", slots.join(" and ")));
        }
        if node.unavailable() || node.granted() {
            other.push(format!("{name} is not free"));
        }
    }
    let status = seen.policy.as_ref().and_then(|policy| policy.status.as_ref());
    let mut blocked: Vec<&str> =
        status.map(|status| status.blocked.iter().map(|one| one.version.as_str()).collect()).unwrap_or_default();
    blocked.sort_unstable();
    if blocked != ["1.2", "1.3"] {
        other.push(format!("blocked are {}", blocked.join(", ")));
    }
    Invariant {
        what: "the end is the only one that the story has".to_owned(),
        held: other.is_empty() && !seen.nodes.is_empty(),
        seen: if other.is_empty() {
            "1.1 runs from slot B everywhere, 1.3 is in slot A, 1.2 and 1.3 are blocked, no grant is left".to_owned()
        } else {
            other.join("; ")
        },
    }
}

/// What the operator does, and not within the hour that a story plays in; with what does it.
const NOT_IN_THE_STORY: [(&str, &str); 1] = [(
    "delete freezes.bascule.dev",
    "a Freeze that ended 90 days ago; a cluster test has one, and holds the right to it",
)];

/// What Bascule's own accounts were granted, against what they asked for in a whole story.
async fn judge_rights(client: &Client, requests: &[Request]) -> anyhow::Result<Invariant> {
    let elsewhere = [OPERATOR_ELSEWHERE, &NOT_IN_THE_STORY].concat();
    let accounts = [("bascule-operator", OPERATOR, elsewhere.as_slice()), ("bascule-agent", AGENT, &[])];
    let mut wrong = Vec::new();
    for (role, user, elsewhere) in accounts {
        let granted = Granted::of(client, role).await.with_context(|| format!("cannot read the role {role}"))?;
        let unused = granted.unused(requests.iter(), user, elsewhere);
        wrong.extend(unused.into_iter().map(|right| format!("{role} never used {right}")));
    }
    let refused =
        requests.iter().filter(|one| one.code == 403 && accounts.iter().any(|(_, user, _)| one.user == *user));
    wrong.extend(refused.map(|one| format!("{} was refused {} {}", component(&one.user), one.verb, one.resource)));
    wrong.sort();
    wrong.dedup();
    Ok(Invariant {
        what: "operator and agents used every right that they have, and were refused nothing".to_owned(),
        held: wrong.is_empty(),
        seen: if wrong.is_empty() { "by the audit log".to_owned() } else { wrong.join("; ") },
    })
}

fn judge_control_plane(probed: &Seen, members: usize) -> Vec<Invariant> {
    let one_away = |fewest: Option<usize>| fewest.is_some_and(|fewest| fewest + 1 >= members);
    let within = |requests: &Probed, most| requests.sent > requests.failed && requests.longest_gap_ms <= most;
    let answers = |requests: &Probed| within(requests, LONGEST_GAP_MS);
    let gap = |requests: &Probed| format!("{:.1} s", requests.longest_gap_ms as f64 / 1e3);
    vec![
        Invariant {
            what: "etcd kept its quorum, with no more than one member away".to_owned(),
            held: one_away(probed.fewest_members) && answers(&probed.quorum),
            seen: format!(
                "never fewer than {} of {members} members; longest without an answer of the quorum {}",
                probed.fewest_members.unwrap_or(0),
                gap(&probed.quorum)
            ),
        },
        Invariant {
            what: "no more than one API server was away".to_owned(),
            held: one_away(probed.fewest_servers),
            seen: format!("never fewer than {} of {members} answered", probed.fewest_servers.unwrap_or(0)),
        },
        Invariant {
            what: format!("the API answered, reading and writing, within {} s at the worst", LONGEST_GAP_MS / 1_000),
            held: answers(&probed.reads) && answers(&probed.writes),
            seen: format!("longest without a read {}, without a write {}", gap(&probed.reads), gap(&probed.writes)),
        },
        Invariant {
            what: "a watch went on through every reboot, and never saw anything older than before".to_owned(),
            held: within(&probed.watch, LONGEST_SILENCE_MS) && probed.went_back == 0,
            seen: format!("longest silence {}, {} older", gap(&probed.watch), probed.went_back),
        },
    ]
}

/// Where the story was played, as docs/on-call.md says it.
pub(super) fn setting(story: &Story) -> String {
    let (nodes, version) = (story.observer.now().nodes.len(), story.version());
    format!("A run of the [sandbox](sandbox.md): {nodes} nodes, Kubernetes {version}, on {}.", machine())
}

/// Processors, memory, operating system: numbers mean nothing without them.
fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let memory = rustix::system::sysinfo();
    let gib = (memory.totalram as u64).saturating_mul(u64::from(memory.mem_unit)) >> 30;
    let os = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name =
        os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown system").trim_matches('"');
    format!("{processors} processors, {gib} GiB, {name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::snapshot::NodeSeen;
    use crate::sandbox::workload::control_plane_policy;
    use bascule_api::{UpdatePolicy, UpdatePolicyStatus};
    use serde_json::json;

    #[test]
    fn another_end_is_found() {
        let machine = |slots: [&str; 2], runs: &str| {
            let slot =
                |(name, label): (&str, &str)| json!({"name": name, "label": label, "dataUuid": "", "verityUuid": ""});
            let slots: Vec<_> = ["A", "B"].into_iter().zip(slots).map(slot).collect();
            serde_json::from_value(json!({
                "name": "n1", "power": "up", "starts": 4, "slots": slots, "agent": 1, "bootLog": [],
                "system": {
                    "bootId": "b", "version": "1.1", "rootHash": "", "slot": runs, "entry": "", "trial": false,
                    "kubeletStarts": true, "becomesReady": true,
                },
            }))
            .unwrap()
        };
        let node = |slots, runs| NodeSeen { ready: true, machine: Some(machine(slots, runs)), ..NodeSeen::default() };
        let policy = |blocked: &[&str]| {
            let mut policy: UpdatePolicy =
                serde_saphyr::from_str(&control_plane_policy("https://localhost:1/")).unwrap();
            let blocked: Vec<_> = blocked
                .iter()
                .map(|version| json!({"version": version, "by": "Rollback", "reason": "r", "at": "2026-11-29T00:00:00Z"}))
                .collect();
            let blocked = serde_json::from_value(json!(blocked)).unwrap();
            policy.status = Some(UpdatePolicyStatus { blocked, ..UpdatePolicyStatus::default() });
            policy
        };
        let end = |node: NodeSeen, blocked: &[&str]| {
            let nodes = [("n1".to_owned(), node)].into();
            judge_end(&Snapshot { nodes, policy: Some(policy(blocked)), ..Snapshot::default() })
        };
        let good = node(["1.3", "1.1"], "B");
        assert!(end(good.clone(), &["1.3", "1.2"]).held);
        assert!(!end(good.clone(), &["1.2"]).held);
        assert!(!end(node(["1.0", "1.1"], "B"), &["1.2", "1.3"]).held);
        assert!(!end(node(["1.1", "1.3"], "A"), &["1.2", "1.3"]).held);
        assert!(!end(NodeSeen { cordoned: true, ..good }, &["1.2", "1.3"]).held);
        assert!(!judge_end(&Snapshot::default()).held);
    }

    #[test]
    fn each_gap_of_the_control_plane_is_found() {
        let requests = |longest_gap_ms| Probed { sent: 9, failed: 1, longest_gap_ms, ..Probed::default() };
        let good = Seen {
            reads: requests(400),
            writes: requests(1_000),
            watch: requests(LONGEST_SILENCE_MS),
            quorum: requests(LONGEST_GAP_MS),
            fewest_members: Some(2),
            fewest_servers: Some(2),
            ..Seen::default()
        };
        let broken = |seen: &Seen| judge_control_plane(seen, 3).iter().filter(|invariant| !invariant.held).count();
        assert_eq!(broken(&good), 0);
        let silent = requests(LONGEST_GAP_MS + 1);
        for bad in [
            Seen { reads: silent.clone(), ..good.clone() },
            Seen { writes: silent.clone(), ..good.clone() },
            Seen { watch: requests(LONGEST_SILENCE_MS + 1), ..good.clone() },
            Seen { quorum: silent, ..good.clone() },
            Seen { reads: Probed { sent: 9, failed: 9, ..Probed::default() }, ..good.clone() },
            Seen { fewest_members: Some(1), ..good.clone() },
            Seen { fewest_members: None, ..good.clone() },
            Seen { fewest_servers: Some(1), ..good.clone() },
            Seen { fewest_servers: None, ..good.clone() },
            Seen { went_back: 1, ..good.clone() },
        ] {
            assert_eq!(broken(&bad), 1, "{bad:?}");
        }
        assert_eq!(broken(&Seen::default()), 4, "whoever measured nothing has seen nothing");
    }

    #[test]
    fn each_broken_promise_is_found() {
        let mut seen = Snapshot::default();
        let good = Extremes { fewest_replicas: Some(9), most_unavailable: 1, most_zones: 1, ..Extremes::default() };
        assert!(judge(&seen, &good).iter().all(|invariant| invariant.held));
        let pair = |version: &str, node: &str| (version.to_owned(), node.to_owned());
        let bad = [
            Extremes { fewest_replicas: Some(8), ..good.clone() },
            Extremes { fewest_replicas: None, ..good.clone() },
            Extremes { most_unavailable: 2, ..good.clone() },
            Extremes { most_zones: 2, ..good.clone() },
            Extremes { dead: ["n1".to_owned()].into(), ..good.clone() },
            Extremes { ran: [pair("6.6", "n1")].into(), ..good.clone() },
        ];
        for worst in bad {
            let broken = judge(&seen, &worst).into_iter().filter(|invariant| !invariant.held).count();
            assert_eq!(broken, 1, "{worst:?}");
        }
        let twice = Extremes { ran: [pair("1.2", "n1"), pair("1.2", "n2")].into(), ..good };
        seen.extremes = Some(twice.clone());
        assert!(judge(&seen, &twice).iter().any(|invariant| !invariant.held));
    }
}
