//! Figures from the API server's audit log, the operator's metrics and proc(5).

use bascule_tests::bascule::OPERATOR;
use bascule_tests::control_plane::Request;
use chrono::{DateTime, Utc};
use std::collections::BTreeMap;

/// The operator's writes, events and leases apart.
fn own_writes(requests: &[Request]) -> impl Iterator<Item = &Request> {
    requests
        .iter()
        .filter(|one| one.user == OPERATOR && one.writes() && one.resource != "events" && one.resource != "leases")
}

/// Writes about nodes and their NodeUpdates, for each of some nodes. One that meets a newer object is refused
/// (409) and changes nothing; those and evictions, which are pods' affair, stand in the list by kind only.
pub(crate) fn writes(what: &str, requests: &[Request], is_of_them: impl Fn(&str) -> bool) {
    let mut by_node: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut by_kind: BTreeMap<String, u32> = BTreeMap::new();
    for request in own_writes(requests) {
        *by_kind.entry(format!("{} {} {}", request.verb, request.resource, request.code)).or_default() += 1;
        let resource = request.resource.split('/').next().unwrap_or_default();
        let is_counted = request.name.starts_with('k') && is_of_them(&request.name);
        if matches!(resource, "nodes" | "nodeupdates") && is_counted && request.code < 300 {
            by_node.entry(&request.name).or_default().push(format!("{} {}", request.resource, request.code));
        }
    }
    let mut counts: Vec<usize> = by_node.values().map(Vec::len).collect();
    counts.sort_unstable();
    println!(
        "writes by the operator for a node and {what}, events apart: {:.2} on average, median {}, p99 {}, most {}",
        counts.iter().sum::<usize>() as f64 / counts.len() as f64,
        at(&counts, 50),
        at(&counts, 99),
        at(&counts, 100)
    );
    if let Some((node, writes)) = by_node.iter().max_by_key(|(_, writes)| writes.len()) {
        println!("    those of {node}: {}", writes.join(", "));
    }
    for (kind, count) in by_kind {
        println!("    {count:>7}  {kind}");
    }
}

/// How long after `begun` each node was told of for the first time: what one release asks of all nodes at once does not
/// come at once.
pub(crate) fn first_writes(begun: DateTime<Utc>, requests: &[Request]) {
    for resource in ["nodeupdates", "nodes"] {
        let mut first: BTreeMap<&str, f64> = BTreeMap::new();
        for request in own_writes(requests) {
            if let Some(at) = request.at.filter(|_| request.resource == resource && request.code < 300) {
                let after = (at - begun).as_seconds_f64();
                first.entry(&request.name).and_modify(|first| *first = first.min(after)).or_insert(after);
            }
        }
        let mut seconds: Vec<f64> = first.into_values().collect();
        seconds.sort_by(f64::total_cmp);
        println!(
            "from the release until a node's first write to {resource}: median {:.1} s, p99 {:.1} s, most {:.1} s ({} nodes)",
            at(&seconds, 50),
            at(&seconds, 99),
            at(&seconds, 100),
            seconds.len()
        );
    }
}

/// The value at a percentile. A figure that was not taken is none: it ends the benchmark.
pub(crate) fn at<T: Copy>(sorted: &[T], percent: usize) -> T {
    assert!(!sorted.is_empty(), "nothing was measured");
    sorted[(sorted.len() - 1) * percent / 100]
}

/// Which explanations followed which, of those that cost more than a few writes.
pub(crate) fn explanations(changes: &BTreeMap<String, u32>) {
    println!("status updates of nodes, the most frequent:");
    let mut sorted: Vec<_> = changes.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (change, count) in sorted.iter().take(16) {
        println!("    {count:>7}  {change}");
    }
}

pub(crate) fn overheads(what: &str, seconds: &[f64]) {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    println!(
        "{what}, from the grant until it is free: median {:.2} s, p99 {:.2} s ({} nodes)",
        at(&sorted, 50),
        at(&sorted, 99),
        sorted.len()
    );
}

/// Resident memory now and at most so far (proc(5), status).
pub(crate) fn memory(when: &str, pid: u32) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).expect("a process that ended has no memory");
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
    };
    let (now, most) = (kib("VmRSS:") / 1024.0, kib("VmHWM:") / 1024.0);
    println!("the operator's memory, {when}: {now:.0} MiB now, {most:.0} MiB at most");
}

/// From a change of a fact to the actions that it caused, from the operator's histograms: the upper bounds of the buckets
/// that hold the median and the 99th percentile.
pub(crate) fn reaction(metrics: &str) {
    let actions = histograms(metrics, "bascule_reaction_seconds_bucket");
    let mut all: Buckets = Vec::new();
    for buckets in actions.values() {
        for (index, (bound, count)) in buckets.iter().enumerate() {
            match all.get_mut(index) {
                Some((_, sum)) => *sum += count,
                None => all.push((*bound, *count)),
            }
        }
    }
    println!("from a fact's change until an action that it caused is written: {}", spread(&all));
    for (action, buckets) in actions {
        println!("    {action}: {}", spread(&buckets));
    }
    println!("how long what one fact asks of many nodes waited in the queue before that:");
    for (action, buckets) in histograms(metrics, "bascule_queue_wait_seconds_bucket") {
        println!("    {action}: {}", spread(&buckets));
    }
    for plan in histograms(metrics, "bascule_plan_seconds_bucket").values() {
        println!("a plan: {}", spread(plan));
    }
}

/// Upper bounds in seconds, and how many were below.
type Buckets = Vec<(f64, f64)>;

/// The buckets of a histogram, by the value of its other label.
fn histograms(metrics: &str, name: &str) -> BTreeMap<String, Buckets> {
    let mut all: BTreeMap<String, Buckets> = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with(name)) {
        let label = |key: &str| line.split(&format!("{key}=\"")).nth(1)?.split('"').next();
        let bound =
            label("le").and_then(|bound| if bound == "+Inf" { Some(f64::INFINITY) } else { bound.parse().ok() });
        let count = line.rsplit(' ').next().and_then(|count| count.parse().ok());
        let (Some(bound), Some(count)) = (bound, count) else { continue };
        all.entry(label("action").unwrap_or_default().to_owned()).or_default().push((bound, count));
    }
    all
}

fn spread(buckets: &Buckets) -> String {
    let all = buckets.last().map_or(0.0, |(_, count)| *count);
    assert!(all > 0.0, "nothing was measured");
    let within = |share: f64| buckets.iter().find(|(_, count)| *count >= all * share).unwrap().0;
    let second = buckets.iter().rfind(|(bound, _)| *bound <= 1.0).map_or(0.0, |(_, count)| *count);
    format!(
        "median within {} s, p99 within {} s ({all} times, {:.1} % within a second)",
        within(0.5),
        within(0.99),
        100.0 * second / all
    )
}

/// Processor seconds so far of this process, of each program that it or its children started, and of everything else on
/// the machine (proc(5), stat).
pub(crate) struct Processor {
    at: std::time::Instant,
    busy: f64,
    by_program: BTreeMap<String, f64>,
}

/// One line of proc(5) stat.
struct Process {
    parent: String,
    program: String,
    spent: f64,
}

/// USER_HZ, which is 100 wherever Rust runs on Linux.
const TICKS: f64 = 100.0;

impl Processor {
    pub(crate) fn now() -> Self {
        let own = std::process::id().to_string();
        let mut all: BTreeMap<String, Process> = BTreeMap::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(text) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
            let Some((head, tail)) = text.rsplit_once(") ") else { continue };
            let fields: Vec<&str> = tail.split(' ').collect();
            let (pid, program) = head.split_once(" (").unwrap();
            let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
            let spent = (ticks(11) + ticks(12)) / TICKS;
            all.insert(pid.to_owned(), Process { parent: fields[1].to_owned(), program: program.to_owned(), spent });
        }
        let mut by_program: BTreeMap<String, f64> = BTreeMap::new();
        for (pid, process) in &all {
            let line = std::iter::successors(Some(pid), |pid| all.get(*pid).map(|process| &process.parent));
            if line.into_iter().any(|pid| *pid == own) {
                let own = *pid == own;
                let program = if own { "the benchmark, agents and repository included" } else { &process.program };
                *by_program.entry(program.to_owned()).or_default() += process.spent;
            }
        }
        let stat = std::fs::read_to_string("/proc/stat").unwrap();
        let fields: Vec<f64> =
            stat.lines().next().unwrap().split_whitespace().skip(1).map(|one| one.parse().unwrap()).collect();
        // user, nice, system; not idle, waiting for disks, or counted twice.
        let busy = (fields[0] + fields[1] + fields[2]) / TICKS;
        Self { at: std::time::Instant::now(), busy, by_program }
    }

    /// What was used since then.
    pub(crate) fn used(&self, what: &str) {
        let now = Self::now();
        let seconds = self.at.elapsed().as_secs_f64();
        let mut ours = 0.0;
        println!("processor seconds in the {seconds:.0} s of {what}:");
        for (program, spent) in &now.by_program {
            let spent = spent - self.by_program.get(program).copied().unwrap_or_default();
            ours += spent;
            if spent >= 0.1 {
                println!("    {spent:>8.1}  {program}");
            }
        }
        println!("    {:>8.1}  everything else on the machine", now.busy - self.busy - ours);
    }
}

pub(crate) fn quiet(requests: &[Request], seconds: u64) {
    let writes: Vec<&Request> = own_writes(requests).collect();
    let all = requests.iter().filter(|one| one.user == OPERATOR).count();
    println!(
        "{seconds} s of quiet: {} writes by the operator (leases apart), {all} requests of it in all",
        writes.len()
    );
    for request in writes.iter().take(10) {
        println!("    {} {} {} {}", request.verb, request.resource, request.name, request.code);
    }
}
