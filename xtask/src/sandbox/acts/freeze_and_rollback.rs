//! Act 4: on-call stops a rollout in the middle, lets it go on, and takes it back without a download.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use bascule_api::{RolloutState, WaitReason};
use tokio::time::sleep;

use super::{PATIENCE, starts_between};
use crate::sandbox::report::size;
use crate::sandbox::snapshot::{NodeSeen, Snapshot};
use crate::sandbox::story::Story;
use crate::sandbox::workload::{self, POLICY};

/// How long the story looks at a frozen rollout.
const FROZEN: Duration = Duration::from_secs(6);
/// How far away the window is in the policy that the engineer plans.
const NEXT_SECONDS: i64 = 3_600;

pub(super) async fn play(story: &mut Story) -> anyhow::Result<Vec<String>> {
    let nodes = story.observer.now().nodes.len();
    story.repository.publish("1.3").await?;
    let mut seen = freeze(story, nodes).await?;
    seen.extend(roll_back(story, nodes).await?);
    let node = story.hosts.keys().next().context("there is no machine")?.clone();
    let window = workload::next_window(bascule_tests::clock::now(), NEXT_SECONDS);
    let file = story.on_call.file("policy.yaml", &workload::policy(&story.repository.url(), window))?;
    let reading: [&[&str]; 9] = [
        &["status"],
        &["explain", &node],
        &["explain", POLICY],
        &["history", POLICY],
        &["forecast"],
        &["forecast", "--until", "14d"],
        &["plan", "-f", &file],
        &["doctor"],
        &["version"],
    ];
    seen.push(story.on_call.times(&reading).await?);
    Ok(seen)
}

async fn freeze(story: &mut Story, nodes: usize) -> anyhow::Result<Vec<String>> {
    story.observer.until("the canary runs 1.3", PATIENCE, |seen| seen.committed_on("1.3") >= 1).await?;
    let under_way = |seen: &Snapshot| in_its_middle(seen).is_some() || seen.committed_on("1.3") == nodes;
    let moving = story.observer.until("a node moves and another waits", PATIENCE, under_way).await?;
    let waiting = in_its_middle(&moving).context("the rollout was over before anybody looked")?;
    live(story, &story.on_call.shows(&["status"]).await?)?;
    live(story, &story.on_call.shows(&["explain", &waiting]).await?)?;
    let said = story.on_call.shows(&["freeze", "--for", "10m", "--reason", "checkout incident INC-4711"]).await?;
    story.view.say(&format!("  $ bascule freeze …: {}", said.lines().next().unwrap_or_default()));
    let resting = |seen: &Snapshot| seen.calm() && seen.nodes.values().any(|node| node.waits_for(WaitReason::Freeze));
    let frozen =
        story.observer.until("what moved is finished, the rest waits for the freeze", PATIENCE, resting).await?;
    let done = frozen.committed_on("1.3");
    ensure!(done < nodes, "the freeze came too late: all {nodes} nodes run 1.3");
    live(story, &story.on_call.types(&["status"]).await?)?;
    let held = frozen.nodes.iter().find(|(_, node)| node.waits_for(WaitReason::Freeze));
    let (held, _) = held.context("no node waits for the freeze")?;
    live(story, &story.on_call.types(&["explain", held]).await?)?;
    // Not a wait for something to happen: this is how long nothing may happen.
    sleep(FROZEN).await;
    let still = story.observer.now();
    let started = starts_between(&frozen, &still);
    ensure!(started.values().all(|count| *count == 0), "a machine restarted during the freeze: {started:?}");
    ensure!(still.committed_on("1.3") == done, "a node went on during the freeze");

    story.on_call.types(&["unfreeze", "--all", "--yes"]).await?;
    story.start_killing();
    story
        .observer
        .until("every node runs 1.3", PATIENCE, |seen| seen.committed_on("1.3") == nodes && seen.calm())
        .await?;
    story.stop_killing().await;
    Ok(vec![format!(
        "frozen with {done} of {nodes} nodes on 1.3: nothing moved for {} s, then it went on",
        FROZEN.as_secs()
    )])
}

/// A node that waits for others while one of them moves.
fn in_its_middle(seen: &Snapshot) -> Option<String> {
    // By its grant: what is over within seconds is not written into its status (docs/operator.md, "What it writes").
    // The first one has its grant until it is let go, and runs the release already: it is the next one that is meant.
    let moves = seen.nodes.values().any(|node| node.granted() && !node.runs_committed("1.3"));
    let waits = |node: &NodeSeen| {
        !node.granted() && node.rollout().is_some_and(|rollout| rollout.state == RolloutState::Waiting)
    };
    seen.nodes.iter().find(|(_, node)| moves && waits(node)).map(|(name, _)| name.clone())
}

/// What she reads comes from the operator that leads, wherever its API server reaches the pods: with addresses of their own, on
/// this machine.
fn live(story: &Story, said: &str) -> anyhow::Result<()> {
    let reachable = story.containers.are_reachable() && story.cluster.kubeconfig().is_some();
    ensure!(!said.contains("not live:") || !reachable, "the leader's live report could not be read: {said}");
    Ok(())
}

async fn roll_back(story: &mut Story, nodes: usize) -> anyhow::Result<Vec<String>> {
    let before = story.observer.now();
    let sent = story.repository.packs_sent();
    let reason = ["--reason", "1.3 breaks NIC offload"];
    let said = story.on_call.shows(&["rollback", POLICY, reason[0], reason[1], "--yes"]).await?;
    story.view.say(&format!("  $ bascule rollback …: {}", said.lines().next().unwrap_or_default()));
    let after = story
        .observer
        .until("every node runs 1.1 again, and no grant is left", PATIENCE, |seen| {
            seen.committed_on("1.1") == nodes && seen.calm() && !seen.nodes.values().any(NodeSeen::granted)
        })
        .await?;
    let moved = story.repository.packs_sent() - sent;
    ensure!(moved == 0, "the rollback moved {}; the other slots hold 1.1", size(moved));
    live(story, &story.on_call.types(&["status"]).await?)?;
    let started = starts_between(&before, &after);
    ensure!(story.kills_anything() || started.values().all(|count| *count == 1), "not one restart each: {started:?}");
    Ok(vec![format!("rolled back to 1.1 on {nodes} nodes without a download, one reboot each")])
}
