//! Act 2: an ordinary update. Staged everywhere as a delta before the window opens, then one node after the other. On one machine a unit
//! fails meanwhile, and on one a backup holds back the reboot until it is written.

use anyhow::{Context as _, ensure};
use bascule_api::WaitReason;
use bascule_sim::machine::Command;

use super::{PATIENCE, each_started_at_most, starts_between};
use crate::sandbox::report::size;
use crate::sandbox::snapshot::{NodeSeen, Snapshot};
use crate::sandbox::story::Story;
use crate::sandbox::workload;

/// How far away the window is while the release is staged: nobody is in a hurry, however slow the machine.
const FAR_SECONDS: i64 = 6 * 3_600;
/// How far away it is at least once the admin has moved it: time for the word to reach everybody.
const NEAR_SECONDS: i64 = 5;

pub(super) async fn play(story: &mut Story) -> anyhow::Result<Vec<String>> {
    let before = story.observer.now();
    let nodes = before.nodes.len();
    let mut names = story.hosts.keys().cloned();
    let (held, ailing) = names.next().zip(names.next_back()).context("there are no two machines")?;
    turn(story, &ailing, Command::FailUnits).await?;
    let far = workload::next_window(bascule_tests::clock::now(), FAR_SECONDS);
    story.cluster.apply(&workload::policy(&story.repository.url(), far)).await?;
    story.repository.publish("1.1").await?;
    story.view.say(&format!("  1.1 is published; the window opens at {} UTC", far.format("%H:%M:%S")));

    story
        .observer
        .until("every node has staged 1.1", PATIENCE, |seen| seen.staged("1.1") + seen.committed_on("1.1") == nodes)
        .await?;
    let (delta, whole) = (story.repository.sent("1.1"), story.repository.whole("1.1") * nodes as u64);
    let mut seen = vec![format!("staged on {nodes} nodes with {} instead of {}", size(delta), size(whole))];
    let tells = |seen: &Snapshot| seen.nodes.get(&ailing).is_some_and(NodeSeen::misses_units);
    story.observer.until("a node says that a unit fails on it", PATIENCE, tells).await?;
    turn(story, &ailing, Command::MendUnits).await?;
    let waits = |seen: &Snapshot| seen.nodes.values().any(|node| node.waits_for(WaitReason::MaintenanceWindow));
    let waiting = story.observer.until("a node says that it waits for the window", PATIENCE, waits).await?;
    let started = starts_between(&before, &waiting);
    ensure!(started.values().all(|count| *count == 0), "a machine restarted before the window: {started:?}");
    seen.push("nothing restarted before the window; NodeUpdates said MaintenanceWindow".to_owned());
    // Before the window can open, however slow the machine.
    turn(story, &held, Command::HoldBack).await?;
    let window = workload::next_window(bascule_tests::clock::now(), NEAR_SECONDS);
    story.cluster.apply(&workload::policy(&story.repository.url(), window)).await?;
    story.view.say(&format!("  the admin moves the window: it opens at {} UTC", window.format("%H:%M:%S")));

    story.start_killing();
    let holds =
        |seen: &Snapshot| seen.nodes.get(&held).is_some_and(|node| node.complains("the reboot waits for backup"));
    let waited = story.observer.until("a node says that a backup holds back its reboot", PATIENCE, holds).await?;
    let started = starts_between(&before, &waited);
    ensure!(started.get(&held) == Some(&0), "{held} restarted under its backup: {started:?}");
    turn(story, &held, Command::LetGo).await?;
    let after = story
        .observer
        .until("every node runs 1.1, committed, and takes pods", PATIENCE, |seen| {
            seen.committed_on("1.1") == nodes && seen.calm()
        })
        .await?;
    story.stop_killing().await;
    ensure!(bascule_tests::clock::now() >= window, "the rollout ended before its window opened");
    let started = starts_between(&before, &after);
    each_started_at_most(&started, 1)?;
    ensure!(!after.nodes.values().any(NodeSeen::misses_units), "a unit still fails");
    seen.push(format!("{nodes} nodes rebooted once each into 1.1, committed and uncordoned"));
    seen.push(format!("{held} waited with its reboot for a backup, and said so; {ailing} said that a unit failed"));
    Ok(seen)
}

/// Turns a switch of a machine.
async fn turn(story: &Story, node: &str, switch: Command) -> anyhow::Result<()> {
    let host = story.hosts.get(node).with_context(|| format!("there is no machine {node}"))?;
    host.switches().send(switch).await.with_context(|| format!("the machine of {node} does not listen"))
}
