//! `bascule release publish`, `withdraw`, `promote`, `refresh` and `sign`: what nodes are offered.

use std::path::PathBuf;

use bascule_image::release::names::Severity;
use bascule_names::{ChannelName, Version};
use bascule_repository::publish::{Notes, Publisher};
use clap::Args;

use super::signing::{SigningArguments, report};
use crate::exit::Exit;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct PublishArguments {
    /// Folder of the repository.
    repository: PathBuf,

    /// Folder that `bascule release build` made.
    build: PathBuf,

    /// Channel to offer it in; made if it is new.
    #[arg(long)]
    channel: ChannelName,

    /// Severity of the worst vulnerability it fixes: None, Low, Medium, High or Critical.
    #[arg(long, default_value = "None", value_parser = severity)]
    severity: Severity,

    /// A vulnerability it fixes, e.g. CVE-2026-12345. May be repeated.
    #[arg(long = "fixes", value_name = "ID")]
    fixes: Vec<String>,

    /// Where people read what changed (https).
    #[arg(long, value_name = "URL")]
    notes_url: Option<String>,

    /// Lowest version that may go straight to this release; older nodes step through that version first.
    #[arg(long, value_name = "VERSION")]
    floor: Option<Version>,

    /// Let nodes that run a newer version go back to this one.
    #[arg(long)]
    allow_downgrade: bool,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn publish(arguments: &PublishArguments) -> anyhow::Result<Exit> {
    let keys = arguments.signing.keys()?;
    let notes = Notes {
        severity: arguments.severity,
        fixes: arguments.fixes.clone(),
        notes_url: arguments.notes_url.clone(),
        floor: arguments.floor.clone(),
        downgrade: arguments.allow_downgrade,
    };
    let mut publisher = Publisher::open(&arguments.repository)?;
    let signing = arguments.signing.signing(&keys);
    let outcome = publisher.add_release(&arguments.channel, &arguments.build, &notes, signing)?;
    report(&format!("published to {}", arguments.channel), &outcome)
}

#[derive(Debug, Args)]
pub(crate) struct WithdrawArguments {
    /// Folder of the repository.
    repository: PathBuf,

    /// Channel that offers it.
    #[arg(long)]
    channel: ChannelName,

    /// The release to take back.
    #[arg(long = "release", value_name = "VERSION")]
    version: Version,

    /// Why, in one sentence; nodes and operators show it.
    #[arg(long)]
    reason: String,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn withdraw(arguments: &WithdrawArguments) -> anyhow::Result<Exit> {
    let keys = arguments.signing.keys()?;
    let mut publisher = Publisher::open(&arguments.repository)?;
    let signing = arguments.signing.signing(&keys);
    let outcome = publisher.withdraw(&arguments.channel, &arguments.version, &arguments.reason, signing)?;
    report(&format!("{} is withdrawn from {}", arguments.version, arguments.channel), &outcome)
}

#[derive(Debug, Args)]
pub(crate) struct PromoteArguments {
    /// Folder of the repository.
    repository: PathBuf,

    /// Channel that offers it now.
    #[arg(long)]
    from: ChannelName,

    /// Channel to offer it in.
    #[arg(long)]
    to: ChannelName,

    /// The release.
    #[arg(long = "release", value_name = "VERSION")]
    version: Version,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn promote(arguments: &PromoteArguments) -> anyhow::Result<Exit> {
    let keys = arguments.signing.keys()?;
    let mut publisher = Publisher::open(&arguments.repository)?;
    let signing = arguments.signing.signing(&keys);
    let outcome = publisher.promote(&arguments.from, &arguments.to, &arguments.version, signing)?;
    report(&format!("{} is offered in {} too", arguments.version, arguments.to), &outcome)
}

#[derive(Debug, Args)]
pub(crate) struct RefreshArguments {
    /// Folder of the repository.
    repository: PathBuf,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn refresh(arguments: &RefreshArguments) -> anyhow::Result<Exit> {
    let keys = arguments.signing.keys()?;
    let mut publisher = Publisher::open(&arguments.repository)?;
    let outcome = publisher.refresh(arguments.signing.signing(&keys))?;
    report("signed afresh", &outcome)
}

#[derive(Debug, Args)]
pub(crate) struct SignArguments {
    /// Folder of the repository.
    repository: PathBuf,

    /// Throw away what waits instead of signing it.
    #[arg(long)]
    discard: bool,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn sign(arguments: &SignArguments) -> anyhow::Result<Exit> {
    let keys = arguments.signing.keys()?;
    let mut publisher = Publisher::open(&arguments.repository)?;
    if arguments.discard {
        publisher.discard_pending()?;
        output::print("nothing waits for signatures any more\n")?;
        return Ok(Exit::Success);
    }
    let outcome = publisher.sign_pending(arguments.signing.signing(&keys))?;
    report("enough signatures: it is published", &outcome)
}

fn severity(text: &str) -> Result<Severity, String> {
    let known = [Severity::None, Severity::Low, Severity::Medium, Severity::High, Severity::Critical];
    known
        .into_iter()
        .find(|severity| severity.as_str().eq_ignore_ascii_case(text))
        .ok_or_else(|| "write None, Low, Medium, High or Critical".to_owned())
}
