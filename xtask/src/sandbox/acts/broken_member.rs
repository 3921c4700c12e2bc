//! Act 2 of the other story: a member of etcd is broken before anything begins. One more machine down and the cluster would be
//! gone, so none goes, and everybody says why.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bascule_api::WaitReason;
use tokio::time::sleep;

use super::{PATIENCE, starts_between};
use crate::sandbox::report::size;
use crate::sandbox::snapshot::{NodeSeen, Snapshot};
use crate::sandbox::story::Story;
use crate::sandbox::workload;

/// How long the story looks at a cluster in which nothing may move.
const STILL: Duration = Duration::from_secs(10);

pub(super) async fn play(story: &mut Story) -> anyhow::Result<Vec<String>> {
    let before = story.observer.now();
    let nodes = before.nodes.len();
    story.cluster.apply(&workload::control_plane_gate()).await?;
    story.cluster.apply(&workload::control_plane_policy(&story.repository.url())).await?;
    story.observer.until("the policy is accepted", PATIENCE, |seen| seen.policy_accepted()).await?;

    // Not the operator's own node: that one waits for another reason besides.
    let leader = story.cluster.leader().await?;
    let mut others = story.hosts.keys().filter(|node| **node != leader.node).cloned();
    let (broken, healthy) = others.next().zip(others.next()).context("there are no two other nodes")?;
    let plane = story.cluster.plane(&broken).with_context(|| format!("{broken} carries no control plane"))?;
    plane.break_etcd()?;
    story.view.say(&format!("  the disk of etcd on {broken} is broken; its API server has nothing to read from"));
    story.cluster.pod_is_ready("kube-system", &format!("etcd-{broken}"), false).await?;
    story.repository.publish("1.1").await?;

    let says_why = |seen: &Snapshot| {
        seen.staged("1.1") == nodes
            && seen.nodes.iter().all(|(name, node)| {
                node.waits_for(if *name == broken { WaitReason::HealthGate } else { WaitReason::ControlPlane })
            })
    };
    let waiting = story.observer.until("every node has staged 1.1 and says why it waits", PATIENCE, says_why).await?;
    let (delta, whole) = (story.repository.sent("1.1"), story.repository.whole("1.1") * nodes as u64);
    let mut seen = vec![format!("staged on {nodes} nodes with {} instead of {}", size(delta), size(whole))];
    // Not a wait for something to happen: this is how long nothing may happen.
    sleep(STILL).await;
    let still = story.observer.now();
    let started = starts_between(&before, &still);
    ensure!(started.values().all(|count| *count == 0), "a machine restarted without a quorum to spare: {started:?}");
    ensure!(still.calm() && still.committed_on("1.0") == nodes, "a node moved without a quorum to spare");
    // Nor was one of them taken and given back in between: the worst since the first act is remembered.
    let away = still.extremes.as_ref().map_or(0, |worst| worst.most_unavailable);
    let granted = still.nodes.values().any(NodeSeen::granted);
    let evicted = story.cluster.requests()?.unwrap_or_default();
    let evicted = evicted.iter().any(|one| one.resource == "pods/eviction" && (200..300).contains(&one.code));
    ensure!(away == 0 && !granted && !evicted, "a node was taken without a quorum to spare");
    seen.push(format!("etcd on {broken} is broken: nothing moved for {} s", STILL.as_secs()));
    for node in [&healthy, &broken] {
        let rollout = waiting.nodes.get(node).and_then(|node| node.rollout()).context("a reason went away")?;
        ensure!(rollout.message.contains(&broken), "the reason of {node} does not name {broken}: {}", rollout.message);
        seen.push(format!("{node} waits, {}: {}", rollout.reason.as_str(), rollout.message));
    }
    let said = story.on_call.types(&["explain", &healthy]).await?;
    let told = said.lines().take_while(|line| !line.starts_with("since")).map(|line| format!("    {line}"));
    seen.push(format!("$ bascule explain {healthy}"));
    seen.extend(told);
    story.on_call.types(&["explain", &broken]).await?;
    seen.extend(story.measured());
    Ok(seen)
}
