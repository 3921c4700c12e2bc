//! `bascule release verify`: walk the whole way that a node walks, and say what it would choose.

use std::fmt::Write as _;

use bascule_image::release::manifest::PackKind;
use bascule_names::{Architecture, ChannelName, RootHash, Version};
use bascule_repository::select::{self, Choice, Held, Host, MissingPack, Wanted};
use bascule_repository::{ReadOptions, Repository, VerifiedChannel};
use clap::Args;
use serde::Serialize;

use super::source::{self, SourceArguments};
use crate::exit::Exit;
use crate::output::{self, Format};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: SourceArguments,

    /// Channel that the node follows.
    #[arg(long, default_value = "stable")]
    channel: ChannelName,

    /// Architecture of the node.
    #[arg(long, default_value = "x86-64")]
    architecture: Architecture,

    /// Version the node runs. Default: none, a first installation.
    #[arg(long, value_name = "VERSION")]
    running: Option<Version>,

    /// Verity root hash of what the node runs, to choose a delta by. Default: looked up by --running.
    #[arg(long, value_name = "HEX", requires = "running")]
    running_root_hash: Option<RootHash>,

    /// Version to go to. Default: what the channel offers.
    #[arg(long, value_name = "VERSION")]
    wanted: Option<Version>,

    /// Refuse to fall back to a more expensive pack when the cheapest is missing on the server.
    #[arg(long)]
    no_fallback: bool,

    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What is printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    product: String,
    channel: String,
    metadata: Vec<RoleLine>,
    decision: String,
    /// The decision as a person says it.
    #[serde(skip)]
    sentence: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<ReleaseLine>,
    missing_packs: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RoleLine {
    role: String,
    version: u64,
    expires: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ReleaseLine {
    version: String,
    digest: String,
    root_hash: String,
    image_bytes: u64,
    pack: String,
    pack_kind: &'static str,
    transfer_bytes: u64,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let repository = arguments.source.open().await?;
    let channel = source::channel(&repository, &arguments.channel).await?;
    let booted = booted(&arguments, &repository, &channel).await?;
    let host = Host { product: channel.product.clone(), architecture: arguments.architecture, booted, other: None };
    let wanted = arguments.wanted.clone().map_or(Wanted::Newest, Wanted::Version);
    let choice = select::decide(&channel, &wanted, &host)?;
    let mut report = Report {
        product: channel.product.to_string(),
        channel: channel.channel.to_string(),
        metadata: roles(&repository),
        decision: describe(&choice),
        sentence: sentence(&choice, host.booted.as_ref()),
        release: None,
        missing_packs: Vec::new(),
    };
    if let Choice::Install(release) | Choice::StepThrough { step: release, .. } = choice {
        let verified = repository.manifest(&channel, release, arguments.architecture).await?;
        let missing = if arguments.no_fallback { MissingPack::Refuse } else { MissingPack::FallBack };
        let open = repository.open_pack(&verified, &host.bases(), missing, &ReadOptions::default()).await?;
        report.missing_packs = open.missing.iter().map(|(path, error)| format!("{path}: {error}")).collect();
        report.release = Some(ReleaseLine {
            version: release.version.to_string(),
            digest: verified.digest.to_string(),
            root_hash: verified.manifest.verity.root_hash.to_string(),
            image_bytes: verified.manifest.image.size,
            pack: open.pack.path.to_string(),
            pack_kind: match open.pack.kind {
                PackKind::Full => "full",
                PackKind::Delta { .. } => "delta",
            },
            transfer_bytes: open.pack.transfer_bytes,
        });
    }
    output::show(arguments.output, &report, table)?;
    Ok(Exit::Success)
}

async fn booted(
    arguments: &Arguments,
    repository: &Repository,
    channel: &VerifiedChannel,
) -> anyhow::Result<Option<Held>> {
    let Some(version) = &arguments.running else { return Ok(None) };
    let root_hash = match (&arguments.running_root_hash, channel.release(version)) {
        (Some(root_hash), _) => root_hash.clone(),
        (None, Some(release)) => {
            repository.manifest(channel, release, arguments.architecture).await?.manifest.verity.root_hash
        }
        (None, None) => anyhow::bail!("the channel does not hold {version}; give its --running-root-hash"),
    };
    Ok(Some(Held { version: version.clone(), root_hash }))
}

fn roles(repository: &Repository) -> Vec<RoleLine> {
    let line = |role: &bascule_repository::RoleExpiry| RoleLine {
        role: role.role.clone(),
        version: role.version,
        expires: role.expires.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
    };
    repository.metadata().roles.iter().chain(&repository.delegated_roles()).map(line).collect()
}

fn describe(choice: &Choice<'_>) -> String {
    match choice {
        Choice::Booted(release) => format!("nothing to do, the node runs {} already", release.version),
        Choice::InOtherSlot(release) => format!("boot {} from the other slot, no download", release.version),
        Choice::Install(release) => format!("install {}", release.version),
        Choice::StepThrough { step, target } => {
            format!("install {} first, because {} accepts no older node", step.version, target.version)
        }
        Choice::Stay { newest: Some(release) } => {
            format!("stay, the newest offered release {} is older than what the node runs", release.version)
        }
        Choice::Stay { newest: None } => "stay, the channel offers nothing".to_owned(),
    }
}

/// What a node does, as a whole sentence.
fn sentence(choice: &Choice<'_>, booted: Option<&Held>) -> String {
    let node = booted.map_or("a new node".to_owned(), |held| format!("a node that runs {}", held.version));
    match choice {
        Choice::Booted(_) => format!("{node} has nothing to do: it runs what is wanted"),
        Choice::InOtherSlot(release) => {
            format!("{node} would boot {} from its other slot, without a download", release.version)
        }
        Choice::Install(release) => format!("{node} would install {}", release.version),
        Choice::StepThrough { step, target } => {
            format!("{node} would install {} first: {} accepts no older node", step.version, target.version)
        }
        Choice::Stay { newest: Some(release) } => {
            format!("{node} would stay: the newest offered release {} is older", release.version)
        }
        Choice::Stay { newest: None } => format!("{node} would stay: the channel offers nothing for it"),
    }
}

fn table(report: &Report) -> String {
    let mut text = format!("{} {}: the metadata is signed and current\n", report.product, report.channel);
    let mut rows = vec![["ROLE", "VERSION", "EXPIRES"].map(str::to_owned).to_vec()];
    rows.extend(
        report.metadata.iter().map(|role| vec![role.role.clone(), role.version.to_string(), role.expires.clone()]),
    );
    text.push_str(&output::columns(&rows));
    // Writing to a String can't fail.
    let _ = writeln!(text, "{}", report.sentence);
    for missing in &report.missing_packs {
        let _ = writeln!(text, "missing on the server: {missing}");
    }
    if let Some(release) = &report.release {
        let _ = writeln!(
            text,
            "  from {} ({}, {} to move for an image of {})",
            release.pack,
            release.pack_kind,
            output::bytes(release.transfer_bytes),
            output::bytes(release.image_bytes)
        );
        let _ = writeln!(text, "  digest {}\n  root hash {}", release.digest, release.root_hash);
    }
    text
}
