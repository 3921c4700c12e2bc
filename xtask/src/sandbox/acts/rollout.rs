//! Act 2: an ordinary update. Staged everywhere as a delta before the window opens, then one node after the other.

use anyhow::ensure;
use bascule_api::WaitReason;

use super::{PATIENCE, each_started_at_most, starts_between};
use crate::sandbox::report::size;
use crate::sandbox::story::Story;
use crate::sandbox::workload;

/// How far away the window is while the release is staged: nobody is in a hurry, however slow the machine.
const FAR_SECONDS: i64 = 6 * 3_600;
/// How far away it is at least once the admin has moved it: time for the word to reach everybody.
const NEAR_SECONDS: i64 = 5;

pub(super) async fn play(story: &mut Story) -> anyhow::Result<Vec<String>> {
    let before = story.observer.now();
    let nodes = before.nodes.len();
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
    let waits = |seen: &crate::sandbox::snapshot::Snapshot| {
        seen.nodes.values().any(|node| node.waits_for(WaitReason::MaintenanceWindow))
    };
    let waiting = story.observer.until("a node says that it waits for the window", PATIENCE, waits).await?;
    let started = starts_between(&before, &waiting);
    ensure!(started.values().all(|count| *count == 0), "a machine restarted before the window: {started:?}");
    seen.push("nothing restarted before the window; NodeUpdates said MaintenanceWindow".to_owned());
    let window = workload::next_window(bascule_tests::clock::now(), NEAR_SECONDS);
    story.cluster.apply(&workload::policy(&story.repository.url(), window)).await?;
    story.view.say(&format!("  the admin moves the window: it opens at {} UTC", window.format("%H:%M:%S")));

    story.start_killing();
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
    seen.push(format!("{nodes} nodes rebooted once each into 1.1, committed and uncordoned"));
    Ok(seen)
}
