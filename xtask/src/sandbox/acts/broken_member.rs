//! Act 3 of the other story: a member of etcd is broken before anything begins. One more machine down and the cluster would be
//! gone, so none goes; everybody says why; and once the member is back, the rollout goes on by itself.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bascule_api::WaitReason;
use tokio::time::sleep;

use super::{PATIENCE, each_started_at_most, starts_between};
use crate::sandbox::snapshot::Snapshot;
use crate::sandbox::story::Story;

/// How long the story looks at a cluster in which nothing may move.
const STILL: Duration = Duration::from_secs(10);

pub(super) async fn play(story: &mut Story) -> anyhow::Result<Vec<String>> {
    let before = story.observer.now();
    let nodes = before.nodes.len();
    // Not the operator's own node: that one waits for another reason besides.
    let leader = story.cluster.leader().await?;
    let broken = story.hosts.keys().find(|node| **node != leader.node).context("there is no other node")?.clone();
    let healthy = story.hosts.keys().find(|node| **node != leader.node && **node != broken);
    let healthy = healthy.context("there is no third node")?.clone();
    let plane = story.cluster.plane(&broken).with_context(|| format!("{broken} carries no control plane"))?;
    plane.break_etcd()?;
    story.view.say(&format!("  the disk of etcd on {broken} is broken; its API server has nothing to read from"));
    story.cluster.pod_is_ready("kube-system", &format!("etcd-{broken}"), false).await?;
    story.begin_to_measure();
    story.repository.publish("1.3").await?;

    let says_why = |seen: &Snapshot| {
        seen.staged("1.3") == nodes
            && seen.nodes.iter().all(|(name, node)| {
                node.waits_for(if *name == broken { WaitReason::HealthGate } else { WaitReason::ControlPlane })
            })
    };
    let waiting = story.observer.until("every node has staged 1.3 and says why it waits", PATIENCE, says_why).await?;
    // Not a wait for something to happen: this is how long nothing may happen.
    sleep(STILL).await;
    let still = story.observer.now();
    let started = starts_between(&before, &still);
    ensure!(started.values().all(|count| *count == 0), "a machine restarted without a quorum to spare: {started:?}");
    ensure!(still.calm() && still.committed_on("1.1") == nodes, "a node moved without a quorum to spare");
    let mut seen = vec![format!("etcd on {broken} is broken: nothing moved for {} s", STILL.as_secs())];
    for node in [&healthy, &broken] {
        let rollout = waiting.nodes.get(node).and_then(|node| node.rollout()).context("a reason went away")?;
        seen.push(format!("{node} waits, {}: {}", rollout.reason.as_str(), rollout.message));
    }
    let said = story.on_call.types(&["explain", &healthy]).await?;
    let told = said.lines().take_while(|line| !line.starts_with("since")).map(|line| format!("    {line}"));
    seen.push(format!("$ bascule explain {healthy}"));
    seen.extend(told);
    seen.extend(story.measured());

    plane.mend_etcd()?;
    story.view.say(&format!("  etcd on {broken} has its data back"));
    story.begin_to_measure();
    let after = story
        .observer
        .until("every node runs 1.3, committed, and takes pods", PATIENCE, |seen| {
            seen.committed_on("1.3") == nodes && seen.calm()
        })
        .await?;
    each_started_at_most(&starts_between(&before, &after), 1)?;
    seen.push(format!(
        "with its data back {broken} caught up, and all {nodes} machines went to 1.3 without anybody's word"
    ));
    seen.extend(story.measured());
    Ok(seen)
}
