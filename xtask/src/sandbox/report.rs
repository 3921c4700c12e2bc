//! What the story showed, in numbers: for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use serde::Serialize;

use super::probes::Seen;

/// The whole report; `target/sandbox/report.json`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    /// Where it ran: processors, memory, operating system.
    pub(crate) machine: String,
    /// The API server's version.
    pub(crate) kubernetes: String,
    /// How many nodes took part.
    pub(crate) nodes: usize,
    /// The seed of `--kill`, if processes were killed.
    pub(crate) kill_seed: Option<u64>,
    /// What was killed when, if anything.
    pub(crate) kills: Vec<String>,
    /// From the start of the program to its report, in seconds.
    pub(crate) seconds: f64,
    /// Getting ready: building, starting the control plane, first boots.
    pub(crate) preparation: Vec<Step>,
    /// The acts.
    pub(crate) acts: Vec<Act>,
    /// The workload against its budget, by the sandbox's own watch.
    pub(crate) availability: Availability,
    /// The cluster's own control plane, by the sandbox's own probes; absent where machines carry none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) control_plane: Option<Seen>,
    /// How often each machine started after the first time.
    pub(crate) reboots: BTreeMap<String, u64>,
    /// Requests to the API server by component; absent in a cluster that is not ours.
    pub(crate) api_requests: Option<BTreeMap<String, Requests>>,
    /// What had to hold.
    pub(crate) invariants: Vec<Invariant>,
}

/// A part of the preparation.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Step {
    /// What was done.
    pub(crate) what: String,
    /// How long it took.
    pub(crate) seconds: f64,
}

impl Step {
    /// A step that began at `since` and ends now.
    pub(crate) fn since(what: &str, since: Instant) -> Self {
        Self { what: what.to_owned(), seconds: since.elapsed().as_secs_f64() }
    }
}

/// One act of the story.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Act {
    /// From 1.
    pub(crate) number: u8,
    /// What happens.
    pub(crate) title: String,
    /// Wall time.
    pub(crate) seconds: f64,
    /// Bytes the repository server sent during the act.
    pub(crate) bytes_moved: u64,
    /// What whole images would have moved for the same nodes.
    pub(crate) bytes_whole: u64,
    /// What was seen.
    pub(crate) seen: Vec<String>,
}

/// The workload against its budget.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Availability {
    /// Replicas wanted.
    pub(crate) replicas: u32,
    /// What the PodDisruptionBudget asks for.
    pub(crate) budget: u32,
    /// The lowest number ever seen.
    pub(crate) lowest: u32,
    /// The highest number of nodes that were not Ready or cordoned at once.
    pub(crate) most_nodes_unavailable: u32,
    /// The highest number of zones they were in.
    pub(crate) most_zones_unavailable: u32,
}

/// Requests of one component.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Requests {
    /// get, list, watch.
    pub(crate) reads: u64,
    /// Everything else.
    pub(crate) writes: u64,
    /// Writes by resource.
    pub(crate) written: BTreeMap<String, u64>,
}

/// Something that had to hold.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Invariant {
    /// What.
    pub(crate) what: String,
    /// Whether it did.
    pub(crate) held: bool,
    /// What was seen.
    pub(crate) seen: String,
}

impl Report {
    /// Whether every invariant held.
    pub(crate) fn good(&self) -> bool {
        self.invariants.iter().all(|invariant| invariant.held)
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, to: &mut String) -> std::fmt::Result {
        writeln!(to, "bascule sandbox: {} nodes, kubernetes {}, {}", self.nodes, self.kubernetes, self.machine)?;
        writeln!(to)?;
        for step in &self.preparation {
            writeln!(to, "  {:>7.1} s  {}", step.seconds, step.what)?;
        }
        for act in &self.acts {
            writeln!(to, "\nact {}  {:>5.1} s  {}", act.number, act.seconds, act.title)?;
            if act.bytes_moved > 0 {
                let share = share(act.bytes_moved, act.bytes_whole);
                writeln!(to, "       moved {} of {} ({share})", size(act.bytes_moved), size(act.bytes_whole))?;
            }
            for line in &act.seen {
                writeln!(to, "       {line}")?;
            }
        }
        let shop = &self.availability;
        writeln!(
            to,
            "\navailability  lowest {} of {} replicas (budget: at least {}); at most {} nodes unavailable, in {} zone(s)",
            shop.lowest, shop.replicas, shop.budget, shop.most_nodes_unavailable, shop.most_zones_unavailable
        )?;
        if let Some(seen) = &self.control_plane {
            for (index, line) in seen.lines(self.nodes).iter().enumerate() {
                writeln!(to, "{:<13} {line}", if index == 0 { "control plane" } else { "" })?;
            }
        }
        let reboots: Vec<String> = self.reboots.iter().map(|(node, count)| format!("{node} {count}")).collect();
        writeln!(to, "reboots       {}", reboots.join(", "))?;
        match &self.api_requests {
            None => writeln!(to, "api requests  not measured: the cluster's audit log is not ours")?,
            Some(components) => {
                for (index, (component, requests)) in components.iter().enumerate() {
                    let head = if index == 0 { "api requests" } else { "" };
                    writeln!(
                        to,
                        "{head:<13} {component:<28} {:>6} reads {:>6} writes",
                        requests.reads, requests.writes
                    )?;
                    // What Bascule itself writes is worth reading one by one.
                    if matches!(component.as_str(), "operator" | "agents") {
                        let written: Vec<_> =
                            requests.written.iter().map(|(resource, times)| format!("{resource} {times}")).collect();
                        writeln!(to, "{:<15} {}", "", written.join(", "))?;
                    }
                }
            }
        }
        for kill in &self.kills {
            writeln!(to, "killed        {kill}")?;
        }
        writeln!(to, "\ninvariants")?;
        for invariant in &self.invariants {
            let mark = if invariant.held { "✓" } else { "✗" };
            writeln!(to, "  {mark} {}: {}", invariant.what, invariant.seen)?;
        }
        writeln!(to, "\n{:.0} s in all", self.seconds)
    }
}

/// Bytes in MB of a million, as downloads are usually given.
pub(crate) fn size(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.1} %", part as f64 * 100.0 / whole as f64) }
}

/// The components of the story by the names that authenticate them.
pub(crate) fn component(user: &str) -> String {
    let known = [
        ("system:serviceaccount:bascule-system:bascule-operator", "operator"),
        ("system:serviceaccount:bascule-agents:bascule-agent", "agents"),
        ("bascule-sandbox", "the sandbox's own watch"),
        (super::probes::USER, "the sandbox's own probes"),
        ("alice", "on call (bascule CLI)"),
        ("system:kube-scheduler", "kube-scheduler"),
        ("bascule-admin", "start of the control plane"),
    ];
    if let Some((_, name)) = known.iter().find(|(name, _)| *name == user) {
        return (*name).to_owned();
    }
    let kubelet = user.starts_with("system:node:");
    let name = if kubelet {
        "kubelets (stand-in)"
    } else if user.starts_with("system:apiserver") {
        "kube-apiserver"
    } else {
        "kube-controller-manager"
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_are_told_apart() {
        assert_eq!(component("system:serviceaccount:bascule-system:bascule-operator"), "operator");
        assert_eq!(component("system:node:n1"), "kubelets (stand-in)");
        assert_eq!(component("system:serviceaccount:kube-system:replicaset-controller"), "kube-controller-manager");
    }

    #[test]
    fn one_broken_invariant_spoils_the_report() {
        let invariant = |held| Invariant { what: "w".into(), held, seen: "s".into() };
        let mut report = Report {
            machine: String::new(),
            kubernetes: String::new(),
            nodes: 5,
            kill_seed: None,
            kills: Vec::new(),
            seconds: 1.0,
            preparation: Vec::new(),
            acts: Vec::new(),
            availability: Availability {
                replicas: 12,
                budget: 9,
                lowest: 10,
                most_nodes_unavailable: 1,
                most_zones_unavailable: 1,
            },
            reboots: BTreeMap::new(),
            control_plane: None,
            api_requests: None,
            invariants: vec![invariant(true)],
        };
        assert!(report.good());
        report.invariants.push(invariant(false));
        assert!(!report.good() && report.text().contains('✗'));
    }
}
