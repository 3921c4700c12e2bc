//! Figures from the API server's audit log, the operator's metrics and proc(5).

use bascule_tests::bascule::OPERATOR;
use bascule_tests::control_plane::Request;
use std::collections::BTreeMap;

/// The operator's writes, events and leases apart.
fn own_writes(requests: &[Request]) -> impl Iterator<Item = &Request> {
    requests
        .iter()
        .filter(|one| one.user == OPERATOR && one.writes() && one.resource != "events" && one.resource != "leases")
}

/// Writes about nodes and their NodeUpdates. One that meets a newer object is refused
/// (409) and changes nothing; those and evictions, which are pods' affair, stand in the list by kind only.
pub(crate) fn writes(what: &str, requests: &[Request]) {
    let mut by_node: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut by_kind: BTreeMap<String, u32> = BTreeMap::new();
    for request in own_writes(requests) {
        *by_kind.entry(format!("{} {} {}", request.verb, request.resource, request.code)).or_default() += 1;
        let resource = request.resource.split('/').next().unwrap_or_default();
        if matches!(resource, "nodes" | "nodeupdates") && request.name.starts_with('k') && request.code < 300 {
            by_node.entry(&request.name).or_default().push(format!("{} {}", request.resource, request.code));
        }
    }
    let mut counts: Vec<usize> = by_node.values().map(Vec::len).collect();
    counts.sort_unstable();
    println!(
        "writes by the operator for a node and {what}, events apart: {:.2} on average, median {}, p99 {}, most {}",
        counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64,
        at(&counts, 50),
        at(&counts, 99),
        counts.last().copied().unwrap_or_default()
    );
    if let Some((node, writes)) = by_node.iter().max_by_key(|(_, writes)| writes.len()) {
        println!("    those of {node}: {}", writes.join(", "));
    }
    for (kind, count) in by_kind {
        println!("    {count:>7}  {kind}");
    }
}

fn at<T: Copy + Default>(sorted: &[T], percent: usize) -> T {
    sorted.get((sorted.len().saturating_sub(1)) * percent / 100).copied().unwrap_or_default()
}

/// Which explanations followed which, of those that cost more than a few writes.
pub(crate) fn explanations(changes: &BTreeMap<String, u32>) {
    println!("explanations of nodes, the most frequent:");
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

/// Resident memory now and at most (proc(5), status).
pub(crate) fn memory(pid: u32) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let kib = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|number| number.parse::<f64>().ok()).unwrap_or_default()
    };
    println!("the operator's memory: {:.0} MiB now, {:.0} MiB at most", kib("VmRSS:") / 1024.0, kib("VmHWM:") / 1024.0);
}

/// From a change of a fact to the resulting writes, from the operator's histogram: the upper bounds of the buckets that
/// hold the median and the 99th percentile.
pub(crate) fn reaction(metrics: &str) {
    for (what, name) in [
        ("from a fact's change to the end of the resulting writes", "bascule_reaction_seconds_bucket"),
        ("a plan", "bascule_plan_seconds_bucket"),
    ] {
        let buckets: Vec<(f64, f64)> = metrics
            .lines()
            .filter(|line| line.starts_with(name))
            .filter_map(|line| {
                let bound = line.split("le=\"").nth(1)?.split('"').next()?;
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
                Some((bound, line.rsplit(' ').next()?.parse().ok()?))
            })
            .collect();
        let all = buckets.last().map_or(0.0, |(_, count)| *count);
        let within = |share: f64| buckets.iter().find(|(_, count)| *count >= all * share).map_or(0.0, |(le, _)| *le);
        println!("{what}: median within {} s, p99 within {} s ({all} times)", within(0.5), within(0.99));
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
