//! Act 2: an ordinary update. Staged everywhere as a delta before the window opens, then one node after the other.

use anyhow::ensure;
use bascule_api::WaitReason;

use super::{PATIENCE, each_started_at_most, starts_between};
use crate::sandbox::report::size;
use crate::sandbox::story::Story;
use crate::sandbox::workload;

/// How long before the window opens the release is published, at least: time to stage, and to be seen waiting.
const LEAD_SECONDS: i64 = 30;
/// How long a node has to wait for the window, at least, before its NodeUpdate must say so: a wait is written down once it
/// has lasted a few seconds.
const EXPLAINED_SECONDS: i64 = 10;

pub(super) async fn play(story: &mut Story) -> anyhow::Result<Vec<String>> {
    let before = story.observer.now();
    let nodes = before.nodes.len();
    let window = workload::next_window(bascule_tests::clock::now(), LEAD_SECONDS);
    story.cluster.apply(&workload::policy(&story.repository.url(), window)).await?;
    story.repository.publish("1.1").await?;
    story.view.say(&format!("  1.1 is published; the window opens at {} UTC", window.format("%H:%M:%S")));

    let staged = story
        .observer
        .until("every node has staged 1.1", PATIENCE, |seen| seen.staged("1.1") + seen.committed_on("1.1") == nodes)
        .await?;
    let early = bascule_tests::clock::now() < window;
    let (delta, whole) = (story.repository.sent("1.1"), story.repository.whole("1.1") * nodes as u64);
    let mut seen = vec![format!("staged on {nodes} nodes with {} instead of {}", size(delta), size(whole))];
    if early {
        let started = starts_between(&before, &staged);
        ensure!(started.values().all(|count| *count == 0), "a machine restarted before the window: {started:?}");
        let left = window - bascule_tests::clock::now();
        if left.num_seconds() >= EXPLAINED_SECONDS {
            let waits = |seen: &crate::sandbox::snapshot::Snapshot| {
                seen.nodes.values().any(|node| node.waits_for(WaitReason::MaintenanceWindow))
            };
            story.observer.until("a node says that it waits for the window", PATIENCE, waits).await?;
            seen.push("nothing restarted before the window; NodeUpdates said MaintenanceWindow".to_owned());
        } else {
            seen.push("nothing restarted before the window, which opened a moment after the staging".to_owned());
        }
    }

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
