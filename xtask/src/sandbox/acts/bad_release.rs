//! Act 3: a release that breaks the node. The canary goes back by itself, the release is blocked, nobody else moves.

use anyhow::{Context as _, ensure};

use super::{PATIENCE, starts_between};
use crate::sandbox::snapshot::Snapshot;
use crate::sandbox::story::Story;

pub(super) async fn play(story: &mut Story) -> anyhow::Result<Vec<String>> {
    let before = story.observer.now();
    let nodes = before.nodes.len();
    story.repository.publish("1.2").await?;
    story.observer.until("the canary tries 1.2", PATIENCE, |seen| !seen.ever_ran("1.2").is_empty()).await?;
    story.start_killing();
    let blocked = |seen: &Snapshot| {
        let status = seen.policy.as_ref().and_then(|policy| policy.status.as_ref());
        status.is_some_and(|status| status.blocked.iter().any(|release| release.version.as_str() == "1.2"))
    };
    let after = story
        .observer
        .until("1.2 is blocked and every node runs 1.1 again", PATIENCE, |seen| {
            blocked(seen) && seen.committed_on("1.1") == nodes && seen.calm()
        })
        .await?;
    story.stop_killing().await;
    let tried = after.ever_ran("1.2");
    ensure!(tried.len() == 1, "1.2 ran on {tried:?}; only the canary may try it");
    let canary = tried.first().copied().unwrap_or_default().to_owned();
    for (node, starts) in starts_between(&before, &after) {
        ensure!(node == canary || starts == 0, "{node} restarted {starts} times for a release it never ran");
    }
    let status = after.policy.as_ref().and_then(|policy| policy.status.as_ref()).context("the policy has no status")?;
    let reason = status.blocked.iter().find(|release| release.version.as_str() == "1.2");
    let reason = reason.map(|release| format!("{}: {}", release.by, release.reason)).unwrap_or_default();
    Ok(vec![
        format!("{canary} tried 1.2, went back to 1.1 by itself; {} other nodes never moved", nodes - 1),
        format!("1.2 is blocked ({reason})"),
    ])
}
