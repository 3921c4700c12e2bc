//! Acts 1 and 3 of the other story: machines that carry the cluster itself, and how all of them are updated under it.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, ensure};

use super::{PATIENCE, each_started_at_most, starts_between};
use crate::sandbox::cluster::Leader;
use crate::sandbox::probes::Probes;
use crate::sandbox::story::Story;
use crate::sandbox::workload::{self, REPLICAS};

/// The machines run already, and with them the cluster. They are told apart as control planes, as kubeadm does once a node
/// has joined; the shop opens; the probes begin.
pub(super) async fn carry(story: &mut Story) -> anyhow::Result<Vec<String>> {
    let nodes = story.hosts.len();
    story
        .observer
        .until("every machine is a node", PATIENCE, |seen| {
            seen.nodes.len() == nodes && seen.nodes.values().all(|node| !node.zone.is_empty())
        })
        .await?;
    let names: Vec<String> = story.hosts.keys().cloned().collect();
    story.cluster.apply(&workload::control_plane_nodes(&names)).await?;
    story.cluster.apply(&workload::shop()).await?;
    story
        .observer
        .until("every node runs 1.0 and is Ready, the shop is complete", PATIENCE, |seen| {
            seen.calm() && seen.replicas() == REPLICAS && seen.nodes.values().all(|node| node.runs() == Some("1.0"))
        })
        .await?;
    story.observer.remember_the_worst();
    let control_planes = story.cluster.control_planes().context("this cluster is not carried by machines")?;
    story.probes = Some(Probes::start(control_planes, &story.cluster.prober()?).await?);
    Ok(vec![
        format!("{nodes} machines run 1.0, each with a member of etcd, an API server, controllers and a scheduler"),
        format!("everybody talks to {}, the balancer; {REPLICAS} replicas are ready", control_planes.server()),
    ])
}

/// The member of etcd that was broken is back, and nobody says a word. Every machine reboots once, and with it a third of the
/// control plane; the operator is drained like everybody else.
pub(super) async fn update(story: &mut Story) -> anyhow::Result<Vec<String>> {
    let before = story.observer.now();
    let nodes = before.nodes.len();
    let leader = story.cluster.leader().await?;
    let control_planes = story.cluster.control_planes().context("this cluster is not carried by machines")?;
    let broken = control_planes.planes().find(|plane| plane.etcd_is_broken());
    let plane = Arc::clone(broken.context("no member of etcd is broken")?);
    plane.mend_etcd()?;
    story.view.say(&format!("  etcd on {} has its data back", plane.machine()));
    // From here on nobody is away who was not switched off with its machine.
    for part in ["etcd", "kube-apiserver"] {
        story.cluster.pod_is_ready("kube-system", &format!("{part}-{}", plane.machine()), true).await?;
    }
    story.begin_to_measure();
    let after = story
        .observer
        .until("every node runs 1.1, committed, and takes pods", PATIENCE, |seen| {
            seen.committed_on("1.1") == nodes && seen.calm()
        })
        .await?;
    each_started_at_most(&starts_between(&before, &after), 1)?;
    story.cluster.control_planes().context("this cluster is not carried by machines")?.wait_until_ready().await?;
    let probed = story.taken().context("nobody asked the control plane")?;
    let all: BTreeSet<String> = before.nodes.keys().cloned().collect();
    for (part, away) in [("member of etcd", &probed.members_away), ("API server", &probed.servers_away)] {
        ensure!(
            *away == all,
            "a {part} went down with its machine on {away:?} only: the others were never asked to end"
        );
    }
    let mut seen = vec![
        format!("{} caught up, and nobody had to say a word", plane.machine()),
        format!("{nodes} machines rebooted once each into 1.1, one at a time, and are whole control planes again"),
        drained(story, &leader).await?,
    ];
    seen.extend(probed.lines(nodes));
    Ok(seen)
}

/// The operator that led went off its own node like any pod, evicted, and another one led after it.
async fn drained(story: &Story, before: &Leader) -> anyhow::Result<String> {
    let after = story.cluster.leader().await?;
    let requests = story.cluster.requests()?.unwrap_or_default();
    let evicted = requests.iter().any(|request| {
        request.resource == "pods/eviction" && request.name == before.pod && (200..300).contains(&request.code)
    });
    ensure!(evicted, "{}, the operator that led, was never evicted from {}", before.pod, before.node);
    ensure!(after.pod != before.pod, "{} still leads, though it was evicted", before.pod);
    Ok(format!(
        "the operator that led from {} was evicted like any pod ({}); {} on {} went on",
        before.node, before.pod, after.pod, after.node
    ))
}
