//! `bascule release publish`, `withdraw`, `promote`, `refresh` and `sign`: what nodes are offered.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use bascule_image::release::manifest::{MAX_UKI_SIZE, Manifest};
use bascule_image::release::names::Severity;
use bascule_image::uki::{PhasePath, Uki};
use bascule_names::{Architecture, ChannelName, Version};
use bascule_release::{BuildFolder, read_bounded};
use bascule_repository::publish::{Notes, Publisher, Refreshed, WaitingChange};
use clap::Args;

use super::build::check::{self, CheckArguments, Finding, Subject};
use super::secure_boot::read_certificate;
use super::signing::{SigningArguments, missing_table, report};
use crate::clock;
use crate::exit::Exit;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct PublishArguments {
    /// Folder of the repository.
    repository: PathBuf,

    /// Folders that `bascule release build` made: one for each architecture of the release.
    #[arg(required = true, value_name = "BUILD")]
    builds: Vec<PathBuf>,

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
    #[arg(long = "minimum-source", alias = "floor", value_name = "VERSION")]
    floor: Option<Version>,

    /// Let nodes that run a newer version go back to this one. The channel offers it from then on, even if it is lower than
    /// what was offered before.
    #[arg(long)]
    allow_downgrade: bool,

    /// Certificate (PEM) in the db of the nodes' firmware: a boot image for which none of these vouches is refused. May be
    /// repeated.
    #[arg(long, value_name = "FILE", help_heading = "Checks")]
    secure_boot_cert: Vec<PathBuf>,

    #[command(flatten)]
    checks: CheckArguments,

    /// Do not ask.
    #[arg(long, short)]
    yes: bool,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn publish(arguments: &PublishArguments) -> anyhow::Result<Exit> {
    let keys = arguments.signing.keys()?;
    let certificates = arguments.secure_boot_cert.iter().map(|path| read_certificate(path));
    let certificates = certificates.collect::<anyhow::Result<Vec<Vec<u8>>>>()?;
    let mut publisher = super::open(&arguments.repository)?;
    let before = publisher.offered_manifests(&arguments.channel)?;
    let mut findings = Vec::new();
    let mut unsigned = false;
    for build in &arguments.builds {
        let looked = look_at(build, &certificates, &before)?;
        findings.extend(looked.findings);
        unsigned |= looked.signature_lost;
    }
    arguments.checks.judge(&findings)?;
    let notes = Notes {
        severity: arguments.severity,
        fixes: arguments.fixes.clone(),
        notes_url: arguments.notes_url.clone(),
        floor: arguments.floor.clone(),
        downgrade: arguments.allow_downgrade,
    };
    let builds: Vec<&Path> = arguments.builds.iter().map(PathBuf::as_path).collect();
    let version = publisher.version_of(&builds)?;
    if !lower_is_meant(&publisher, &arguments.channel, &version, notes.downgrade, arguments.yes)? {
        return nothing_changed();
    }
    let question = format!(
        "what {} offers is signed for Secure Boot, and {version} is not: nodes whose firmware enforces it refuse {version}. Is \
         that meant",
        arguments.channel
    );
    if unsigned && !output::confirmed(&question, arguments.yes)? {
        return nothing_changed();
    }
    let signing = arguments.signing.signing(&keys);
    let outcome = publisher.add_builds(&arguments.channel, &builds, &notes, signing)?;
    report(&offered(&publisher, &version, &arguments.channel)?, &outcome, &keys)
}

/// What was found in a build.
#[derive(Debug, Default)]
struct Looked {
    findings: Vec<Finding>,
    /// It is not signed for Secure Boot, and what is offered now is.
    signature_lost: bool,
}

/// What the manifest says that a TPM will hold has to be so: who binds a secret to it would be locked out.
#[allow(clippy::ptr_arg, reason = "the reader of UKIs takes a sized thing")]
fn check_measured(manifest: &Manifest, uki: &Vec<u8>) -> anyhow::Result<()> {
    let Some(said) = &manifest.measured else { return Ok(()) };
    // Of a stub that this program does not know it says nothing.
    let Ok(pcr11) = Uki::open(uki)?.pcr11() else { return Ok(()) };
    ensure!(
        *said == pcr11.measured(&phases(manifest)),
        "the manifest has other values of PCR 11 than the boot image would be measured as; it was changed after the build: build \
         the release anew"
    );
    Ok(())
}

/// Phases that the vendor named when it was built, among systemd's own.
fn phases(manifest: &Manifest) -> Vec<PhasePath> {
    let said = manifest.measured.iter().flat_map(|measured| &measured.pcr11);
    said.filter_map(|value| value.phase.parse().ok()).collect()
}

/// What was built elsewhere, or changed since, is looked at once more, and compared with what is offered now.
fn look_at(build: &Path, certificates: &[Vec<u8>], before: &[(Manifest, PathBuf)]) -> anyhow::Result<Looked> {
    let mut looked = Looked::default();
    for architecture in [Architecture::X86_64, Architecture::Arm64] {
        // What is no build folder at all is refused by the publisher, which knows all the ways.
        let Ok((folder, manifest)) = BuildFolder::open(build, architecture) else { continue };
        let subject = Subject { product: &manifest.product, version: &manifest.version, architecture };
        let path = folder.at(manifest.uki.path.as_str());
        let uki = read_bounded(&path, MAX_UKI_SIZE)?;
        let found = check::uki(&uki, &manifest.verity.root_hash, subject)
            .with_context(|| format!("{} is not usable", path.display()))?;
        check_measured(&manifest, &uki).with_context(|| format!("{} is not usable", path.display()))?;
        let policy = check::policy(&uki, &phases(&manifest));
        let policy = policy.with_context(|| format!("{} is not usable", path.display()))?;
        // Warnings were told when it was built.
        looked.findings.extend(found.into_iter().chain(policy).filter(Finding::stops));
        looked.findings.extend(check::vouched(&path.display().to_string(), &uki, certificates));
        let Some((before, boot_image)) = before.iter().find(|(before, _)| before.architecture == architecture) else {
            continue;
        };
        looked.findings.extend(check::growth(&before.version, before.image.size, manifest.image.size));
        // An old file that can't be read says nothing against the new one.
        let was_signed = read_bounded(boot_image, MAX_UKI_SIZE).map_err(anyhow::Error::from);
        let was_signed = was_signed.and_then(|file| check::is_signed(&file));
        looked.signature_lost |= was_signed.unwrap_or(false) && !check::is_signed(&uki)?;
    }
    Ok(looked)
}

/// Nodes take the highest version that a channel offers; whoever publishes a lower one is asked whether he means that.
fn lower_is_meant(
    publisher: &Publisher,
    channel: &ChannelName,
    version: &Version,
    downgrade: bool,
    yes: bool,
) -> anyhow::Result<bool> {
    let Some(offered) = publisher.offers(channel)?.filter(|offered| offered > version) else { return Ok(true) };
    let question = if downgrade {
        format!("{channel} offers {offered}; with {version} every node that runs it goes back. Is that meant")
    } else {
        format!(
            "{channel} offers {offered} and goes on with that: nodes take {version} only where a policy names it. Is that meant"
        )
    };
    output::confirmed(&question, yes)
}

fn nothing_changed() -> anyhow::Result<Exit> {
    output::print("Nothing was changed.\n")?;
    Ok(Exit::Failed)
}

fn offered(publisher: &Publisher, version: &Version, channel: &ChannelName) -> anyhow::Result<String> {
    Ok(match publisher.offers(channel)? {
        Some(newest) if newest != *version => format!("{version} is in {channel}, which offers {newest}"),
        _ => format!("{version} is what {channel} offers now"),
    })
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
    let mut publisher = super::open(&arguments.repository)?;
    let signing = arguments.signing.signing(&keys);
    let outcome = publisher.withdraw(&arguments.channel, &arguments.version, &arguments.reason, signing)?;
    let (version, channel) = (&arguments.version, &arguments.channel);
    let rest = match publisher.offers(channel)? {
        Some(newest) => format!("which offers {newest} now"),
        None => "which offers nothing now".to_owned(),
    };
    report(&format!("{version} is withdrawn from {channel}, {rest}"), &outcome, &keys)
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

    /// Do not ask.
    #[arg(long, short)]
    yes: bool,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn promote(arguments: &PromoteArguments) -> anyhow::Result<Exit> {
    let keys = arguments.signing.keys()?;
    let mut publisher = super::open(&arguments.repository)?;
    let signing = arguments.signing.signing(&keys);
    let source = publisher.channel(&arguments.from)?;
    let downgrade = source.release(&arguments.version).is_some_and(|release| release.downgrade);
    if !lower_is_meant(&publisher, &arguments.to, &arguments.version, downgrade, arguments.yes)? {
        return nothing_changed();
    }
    let outcome = publisher.promote(&arguments.from, &arguments.to, &arguments.version, signing)?;
    report(&offered(&publisher, &arguments.version, &arguments.to)?, &outcome, &keys)
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
    let mut publisher = super::open(&arguments.repository)?;
    let refreshed = publisher.refresh(arguments.signing.signing(&keys))?;
    let renewed: Vec<&str> =
        refreshed.roles.iter().filter(|role| role.renewed).map(|role| role.standing.role.as_str()).collect();
    let exit = report(&format!("renewed: {}", renewed.join(", ")), &refreshed.outcome, &keys)?;
    let (text, refused) = outlook(&refreshed);
    output::print(&text)?;
    Ok(if refused { Exit::Refused } else { exit })
}

/// What a refresh leaves: when each role expires and who must sign it; and whether readers refuse the repository all the same.
fn outlook(refreshed: &Refreshed) -> (String, bool) {
    let now = clock::now();
    let mut rows = vec![["ROLE", "EXPIRES", "IN", "NOW", "SIGNED BY"].map(str::to_owned).to_vec()];
    let mut notes = String::new();
    let mut refused = false;
    for role in &refreshed.roles {
        let standing = &role.standing;
        let expired = standing.is_expired(now);
        let done = match (&role.kept_for, role.renewed) {
            (_, true) => "signed".to_owned(),
            (Some(id), false) => format!("left for {id}"),
            (None, false) if expired => "EXPIRED".to_owned(),
            (None, false) => "left as it is".to_owned(),
        };
        let row = [standing.role.clone(), output::time(standing.expires), output::left(standing.expires, now), done];
        rows.push(row.into_iter().chain([standing.signers()]).collect());
        if expired {
            refused |= standing.channel().is_none();
            let whom = match standing.channel() {
                Some(channel) => format!("nodes refuse channel {channel} and no other"),
                None => "readers refuse the repository".to_owned(),
            };
            // Writing to a String can't fail.
            let _ = writeln!(
                notes,
                "the {} has expired and {whom}: it must be signed by {}{}",
                standing.role,
                standing.signers(),
                if standing.role == "root" { ", with `bascule release rotate`" } else { "" }
            );
        }
    }
    (output::columns(&rows) + &notes, refused)
}

#[derive(Debug, Args)]
pub(crate) struct SignArguments {
    /// Folder of the repository.
    repository: PathBuf,

    /// The waiting change. Default: the only one there is.
    #[arg(long, value_name = "ID")]
    change: Option<String>,

    /// Only show what waits.
    #[arg(long, conflicts_with = "discard")]
    show: bool,

    /// Throw the change away instead of signing it.
    #[arg(long)]
    discard: bool,

    /// Do not ask.
    #[arg(long, short)]
    yes: bool,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn sign(arguments: &SignArguments) -> anyhow::Result<Exit> {
    let keys = arguments.signing.keys()?;
    let mut publisher = super::open(&arguments.repository)?;
    let id = arguments.change.as_deref();
    if arguments.discard {
        let what = publisher.discard_waiting(id)?;
        output::print(&format!("thrown away: {what}\n"))?;
        return Ok(Exit::Success);
    }
    let mut waiting = publisher.waiting(clock::now())?;
    waiting.retain(|change| id.is_none_or(|id| change.id == id));
    if arguments.show {
        return show(&waiting);
    }
    if let [change] = waiting.as_slice() {
        output::print(&described(change))?;
        // Who gives a key in a script has read the difference before; who sits at a terminal reads it now.
        if std::io::stdin().is_terminal() && !output::confirmed("Sign this", arguments.yes)? {
            return nothing_changed();
        }
    }
    let outcome = publisher.sign_waiting(id, arguments.signing.signing(&keys))?;
    report("enough signatures: it is published", &outcome, &keys)
}

fn show(waiting: &[WaitingChange]) -> anyhow::Result<Exit> {
    if waiting.is_empty() {
        output::print("nothing waits for signatures\n")?;
    }
    for change in waiting {
        output::print(&described(change))?;
        output::print(&missing_table(&change.missing))?;
    }
    Ok(Exit::Success)
}

/// A waiting change as its signer reads it.
pub(crate) fn described(change: &WaitingChange) -> String {
    let mut text =
        format!("change {}: {} (asked for at {})\n", change.id, change.summary, output::time(change.made_at));
    for line in &change.difference {
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }
    if change.stale {
        text.push_str(
            "  the repository has moved on since, or the change would expire soon: it is made anew with the next signature,\n  \
             and earlier signatures are void\n",
        );
    }
    text
}

fn severity(text: &str) -> Result<Severity, String> {
    let known = [Severity::None, Severity::Low, Severity::Medium, Severity::High, Severity::Critical];
    known
        .into_iter()
        .find(|severity| severity.as_str().eq_ignore_ascii_case(text))
        .ok_or_else(|| "write None, Low, Medium, High or Critical".to_owned())
}
