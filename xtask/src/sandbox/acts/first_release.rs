//! Act 1: disks are installed with release 1.0, machines boot it, kubelets join, the shop opens.

use super::PATIENCE;
use crate::sandbox::story::Story;
use crate::sandbox::workload::{self, REPLICAS};

pub(super) async fn play(story: &mut Story) -> anyhow::Result<Vec<String>> {
    let nodes = story.install_machines().await?;
    story.cluster.apply(&workload::shop()).await?;
    story
        .observer
        .until("every node runs 1.0 and is Ready, the shop is complete", PATIENCE, |seen| {
            seen.nodes.len() == nodes
                && seen.calm()
                && seen.replicas() == REPLICAS
                && seen.nodes.values().all(|node| node.runs() == Some("1.0"))
        })
        .await?;
    story.observer.remember_the_worst();
    Ok(vec![format!("{nodes} machines run 1.0 from slot A, {REPLICAS} replicas are ready")])
}
