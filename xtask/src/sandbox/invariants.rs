//! What had to hold, judged by what the sandbox saw itself.

use std::collections::BTreeMap;

use super::report::{Availability, Invariant, Report, Requests, component};
use super::snapshot::{Extremes, Snapshot};
use super::story::Story;
use super::workload::{BUDGET, REPLICAS};

/// Nodes that the policy lets be unavailable at once (`maxUnavailable: 2`, and one zone with one node).
const MOST_UNAVAILABLE: u32 = 1;

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
    Ok(Report {
        machine: machine(),
        kubernetes: story.cluster.version().await?,
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
