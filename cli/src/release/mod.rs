//! `bascule release …`: an OS vendor's way from a root tree to a published release, and a node's view of it.

mod source;
mod verify;

use clap::Subcommand;

use crate::exit::Exit;

/// The steps of a release.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Verify a repository as a node does, and say what a node would choose.
    Verify(verify::Arguments),
}

pub(crate) async fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Verify(arguments) => verify::run(arguments).await,
    }
}
