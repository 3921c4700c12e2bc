//! `bascule freeze` and `bascule unfreeze`: the stop switch.

use super::{Cluster, Connection, generated_name, picture, whoami};
use crate::{clock, exit::Exit, output};
use anyhow::Context as _;
use bascule_api as api;
use bascule_api::{RolloutState, Selector};
use clap::Args;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, PostParams},
};

/// Stop new disruptions, everywhere or for some policies, until the time is over.
#[derive(Debug, Args)]
pub(crate) struct Freeze {
    #[command(flatten)]
    connection: Connection,
    /// How long, e.g. 90m or 2h.
    #[arg(long = "for", value_name = "DURATION")]
    duration: api::Duration,
    /// Why. Everybody who waits will read it.
    #[arg(long)]
    reason: String,
    /// Only policies with this label (repeat for several, all must match).
    #[arg(long = "policy-label", value_name = "KEY=VALUE", value_parser = label)]
    policy_labels: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

impl Freeze {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client = self.connection.client().await?;
        let policy_selector = (!self.policy_labels.is_empty())
            .then(|| Selector { match_labels: self.policy_labels.into_iter().collect(), ..Selector::default() });
        let everywhere = policy_selector.is_none();
        let spec = api::FreezeSpec {
            reason: self.reason,
            duration: self.duration,
            policy_selector,
            requested_by: whoami(&client).await?,
        };
        let freeze = api::Freeze { metadata: generated_name("freeze"), spec, status: None };
        let api: Api<api::Freeze> = Api::all(client.clone());
        let freeze = api.create(&PostParams::default(), &freeze).await.context("the Freeze was not accepted")?;
        let moving = Cluster::read(&client).await?.nodes.iter().filter(|node| in_motion(node)).count();
        let now = clock::now();
        let end = now + self.duration.to_chrono();
        output::print(&format!(
            "Frozen {} until {}. {}; nothing new starts. Undo: bascule unfreeze {}\n",
            if everywhere { "everywhere" } else { "for the policies with these labels" },
            picture::moment(end, now, &chrono::Local),
            if moving == 1 {
                "1 node in motion finishes".to_owned()
            } else {
                format!("{} in motion finish", picture::count(moving, "node"))
            },
            freeze.name_any(),
        ))?;
        Ok(Exit::Success)
    }
}

/// Whether a node has a grant and is on its way.
fn in_motion(node: &api::NodeUpdate) -> bool {
    node.status.as_ref().and_then(|status| status.rollout.as_ref()).is_some_and(|rollout| {
        matches!(
            rollout.state,
            RolloutState::Draining | RolloutState::Rebooting | RolloutState::Trial | RolloutState::Reverting
        )
    })
}

/// End freezes before their time.
#[derive(Debug, Args)]
pub(crate) struct Unfreeze {
    #[command(flatten)]
    connection: Connection,
    /// The names of the freezes, as `bascule status` shows them.
    #[arg(required_unless_present = "all")]
    names: Vec<String>,
    /// End all of them.
    #[arg(long, conflicts_with = "names")]
    all: bool,
}

impl Unfreeze {
    pub(crate) async fn run(self) -> anyhow::Result<Exit> {
        let client: Client = self.connection.client().await?;
        let api: Api<api::Freeze> = Api::all(client.clone());
        let names = if self.all {
            Cluster::read(&client).await?.freezes.iter().map(|freeze| freeze.name_any()).collect()
        } else {
            self.names
        };
        for name in &names {
            api.delete(name, &DeleteParams::default()).await.with_context(|| format!("can't delete Freeze {name}"))?;
        }
        output::print(&format!("{} ended\n", picture::count(names.len(), "freeze")))?;
        Ok(Exit::Success)
    }
}
