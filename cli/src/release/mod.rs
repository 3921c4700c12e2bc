//! `bascule release …`: an OS vendor's way from a root tree to a published release, and a node's view of it.

pub(crate) mod build;
mod fetch;
mod inspect;
mod keys;
pub(crate) mod progress;
mod prune;
mod publish;
mod rsa;
pub(crate) mod secure_boot;
mod signing;
mod source;
mod status;
mod verify;

use std::path::Path;

use bascule_repository::publish::Publisher;
use clap::Subcommand;

use crate::exit::Exit;
use crate::output;

/// The steps of a release.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make key pairs for the roles of a repository.
    Keygen(keys::KeygenArguments),
    /// Make a repository without releases.
    Init(keys::InitArguments),
    /// Build a release from a root tree or an image.
    Build(Box<build::BuildArguments>),
    /// Add a delta pack to a build.
    Delta(build::DeltaArguments),
    /// Sign a file that the firmware starts (the boot loader, a UKI) for Secure Boot.
    SignEfi(secure_boot::SignEfiArguments),
    /// Add a built release to a channel.
    Publish(publish::PublishArguments),
    /// Offer a release of one channel in another, byte for byte.
    Promote(publish::PromoteArguments),
    /// Take a release back: it is not installed any more.
    Withdraw(publish::WithdrawArguments),
    /// Leave old releases out of channels and remove files that no reader can want any more.
    Prune(prune::Arguments),
    /// Renew the timestamp (and, with their keys, snapshot and targets) before they expire.
    Refresh(publish::RefreshArguments),
    /// Add signatures to what waits for more of them.
    Sign(publish::SignArguments),
    /// Publish a new root: other keys, other thresholds, a later expiry.
    Rotate(keys::RotateArguments),
    /// Let other keys sign a channel.
    Delegate(keys::DelegateArguments),
    /// Verify a repository as a node does, and say what a node would choose.
    Verify(verify::Arguments),
    /// Get a release as a node does, into a folder.
    Fetch(fetch::Arguments),
    /// Say on one screen until when nodes can update from a repository, and what must be signed by whom.
    Status(status::Arguments),
    /// Show what a repository, a channel or a release holds, expired or not.
    Inspect(inspect::Arguments),
}

pub(crate) async fn run(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Keygen(arguments) => blocking(move || keys::keygen(&arguments)).await,
        Command::Init(arguments) => blocking(move || keys::init(&arguments)).await,
        Command::Build(arguments) => blocking(move || build::build(&arguments)).await,
        Command::Delta(arguments) => blocking(move || build::delta(&arguments)).await,
        Command::SignEfi(arguments) => blocking(move || secure_boot::sign_efi(&arguments)).await,
        Command::Publish(arguments) => blocking(move || publish::publish(&arguments)).await,
        Command::Promote(arguments) => blocking(move || publish::promote(&arguments)).await,
        Command::Withdraw(arguments) => blocking(move || publish::withdraw(&arguments)).await,
        Command::Prune(arguments) => blocking(move || prune::run(&arguments)).await,
        Command::Refresh(arguments) => blocking(move || publish::refresh(&arguments)).await,
        Command::Sign(arguments) => blocking(move || publish::sign(&arguments)).await,
        Command::Rotate(arguments) => blocking(move || keys::rotate(&arguments)).await,
        Command::Delegate(arguments) => blocking(move || keys::delegate(&arguments)).await,
        Command::Status(arguments) => status::run(arguments).await,
        Command::Verify(arguments) => verify::run(arguments).await,
        Command::Fetch(arguments) => fetch::run(arguments).await,
        Command::Inspect(arguments) => inspect::run(arguments).await,
    }
}

/// Opens a repository folder to publish in it, and tells which other teams' roles can't be used: that stops nobody else.
fn open(repository: &Path) -> anyhow::Result<Publisher> {
    let publisher = Publisher::open(repository)?;
    for problem in publisher.problems() {
        output::say(&format!("warning: the role {problem}"));
    }
    Ok(publisher)
}

/// Long work on files and processors, on a thread of its own, so that Ctrl-C is heard.
pub(crate) async fn blocking(work: impl FnOnce() -> anyhow::Result<Exit> + Send + 'static) -> anyhow::Result<Exit> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(anyhow::Error::new(error)))
}
