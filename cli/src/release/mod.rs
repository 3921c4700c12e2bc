//! `bascule release …`: an OS vendor's way from a root tree to a published release, and a node's view of it.

mod inspect;
mod keys;
mod publish;
mod signing;
mod source;
mod verify;

use clap::Subcommand;

use crate::exit::Exit;

/// The steps of a release.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make key pairs for the roles of a repository.
    Keygen(keys::KeygenArguments),
    /// Make a repository without releases.
    Init(keys::InitArguments),
    /// Add a built release to a channel.
    Publish(publish::PublishArguments),
    /// Offer a release of one channel in another, byte for byte.
    Promote(publish::PromoteArguments),
    /// Take a release back: it is not installed any more.
    Withdraw(publish::WithdrawArguments),
    /// Sign timestamp (and, with their keys, snapshot and targets) afresh before they expire.
    Refresh(publish::RefreshArguments),
    /// Add signatures to what waits for more of them.
    Sign(publish::SignArguments),
    /// Publish a new root: other keys, other thresholds, a later expiry.
    Rotate(keys::RotateArguments),
    /// Let other keys sign a channel.
    Delegate(keys::DelegateArguments),
    /// Verify a repository as a node does, and say what a node would choose.
    Verify(verify::Arguments),
    /// Show what a repository, a channel or a release holds.
    Inspect(inspect::Arguments),
}

pub(crate) async fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Keygen(arguments) => keys::keygen(&arguments),
        Command::Init(arguments) => keys::init(&arguments),
        Command::Publish(arguments) => publish::publish(&arguments),
        Command::Promote(arguments) => publish::promote(&arguments),
        Command::Withdraw(arguments) => publish::withdraw(&arguments),
        Command::Refresh(arguments) => publish::refresh(&arguments),
        Command::Sign(arguments) => publish::sign(&arguments),
        Command::Rotate(arguments) => keys::rotate(&arguments),
        Command::Delegate(arguments) => keys::delegate(&arguments),
        Command::Verify(arguments) => verify::run(arguments).await,
        Command::Inspect(arguments) => inspect::run(arguments).await,
    }
}
