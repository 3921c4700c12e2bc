//! `bascule release inspect`: what a repository, a channel or a release holds. What is signed is
//! verified; its expiry is shown and not judged.

use std::fmt::Write as _;

use bascule_image::Channel;
use bascule_image::release::channel::Release;
use bascule_image::release::manifest::{Manifest, PackKind};
use bascule_names::{Architecture, ChannelName, Version};
use bascule_repository::publish::{RoleProblem, RoleStanding, View, WaitingChange};
use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use super::publish::described;
use super::signing::missing_table;
use super::source::SourceArguments;
use crate::clock;
use crate::exit::Exit;
use crate::output::{self, Format, time};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: SourceArguments,

    /// Show this channel's releases.
    #[arg(long)]
    channel: Option<ChannelName>,

    /// Show this release of the channel.
    #[arg(long = "release", value_name = "VERSION", requires = "channel")]
    version: Option<Version>,

    /// Architecture whose manifest is shown.
    #[arg(long, default_value = "x86-64")]
    architecture: Architecture,

    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let view = arguments.source.view().await?;
    let Some(name) = &arguments.channel else {
        output::show(arguments.output, &Overview::of(&view)?, overview_table)?;
        return Ok(Exit::Success);
    };
    let channel = view.channel(name)?;
    let Some(version) = &arguments.version else {
        output::show(arguments.output, &channel, channel_table)?;
        return Ok(Exit::Success);
    };
    let Some(release) = channel.release(version) else {
        let known: Vec<&str> = channel.releases.iter().map(|release| release.version.as_str()).collect();
        anyhow::bail!("channel {name} has no release {version}; it has: {}", known.join(", "));
    };
    let (digest, manifest) = view.manifest(release, arguments.architecture).await?;
    let shown = ReleaseView { digest: digest.to_string(), entry: release, manifest: &manifest };
    output::show(arguments.output, &shown, release_table)?;
    Ok(Exit::Success)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Overview {
    #[serde(skip_serializing_if = "Option::is_none")]
    signed_at: Option<DateTime<Utc>>,
    roles: Vec<RoleStanding>,
    /// Delegated roles that can't be used. Each concerns its own channel alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<RoleProblem>,
    channels: Vec<String>,
    waiting: Vec<WaitingChange>,
}

impl Overview {
    fn of(view: &View) -> anyhow::Result<Self> {
        Ok(Self {
            signed_at: view.signed_at(),
            roles: view.roles(),
            problems: view.problems().to_vec(),
            channels: view.channel_names().iter().map(ToString::to_string).collect(),
            waiting: view.waiting(clock::now())?,
        })
    }
}

fn overview_table(overview: &Overview) -> String {
    let now = clock::now();
    let heading = ["ROLE", "VERSION", "EXPIRES", "IN", "NEEDS", "SIGNED BY"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for role in &overview.roles {
        let left = output::left(role.expires, now);
        rows.push(vec![
            role.role.clone(),
            role.version.to_string(),
            time(role.expires),
            if role.is_expired(now) { format!("EXPIRED {left}") } else { left },
            role.signers(),
            role.signed_by.join(", "),
        ]);
    }
    let mut text = output::columns(&rows);
    for problem in &overview.problems {
        let _ = writeln!(text, "\nthe role {problem}");
    }
    let _ = writeln!(
        text,
        "\nchannels: {}",
        if overview.channels.is_empty() { "none".to_owned() } else { overview.channels.join(", ") }
    );
    if let Some(signed_at) = overview.signed_at {
        let _ = writeln!(text, "signed at {}", time(signed_at));
    }
    for change in &overview.waiting {
        let _ = write!(text, "\nwaits for signatures: {}{}", described(change), missing_table(&change.missing));
    }
    text
}

fn channel_table(channel: &Channel) -> String {
    let heading = ["RELEASE", "PUBLISHED", "SEVERITY", "FIXES", "MIN SOURCE", "ARCHITECTURES", "NOTE"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for release in &channel.releases {
        let note = match &release.withdrawn {
            Some(withdrawn) => format!("withdrawn: {}", withdrawn.reason),
            None if release.downgrade => "downgrade allowed".to_owned(),
            None => String::new(),
        };
        let architectures: Vec<&str> = release.manifests.keys().map(|architecture| architecture.as_str()).collect();
        rows.push(vec![
            release.version.to_string(),
            time(release.published_at),
            release.severity.to_string(),
            release.fixes.len().to_string(),
            release.floor.as_ref().map_or("-".to_owned(), ToString::to_string),
            architectures.join(","),
            note,
        ]);
    }
    format!("{} {}\n{}", channel.product, channel.channel, output::columns(&rows))
}

#[derive(Debug, Serialize)]
struct ReleaseView<'a> {
    digest: String,
    entry: &'a Release,
    manifest: &'a Manifest,
}

fn release_table(view: &ReleaseView<'_>) -> String {
    let manifest = view.manifest;
    let pair = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        pair("product", manifest.product.to_string()),
        pair("release", manifest.version.to_string()),
        pair("architecture", manifest.architecture.to_string()),
        pair("digest", view.digest.clone()),
        pair("published", time(view.entry.published_at)),
        pair("severity", view.entry.severity.to_string()),
        pair("image", output::bytes(manifest.image.size)),
        pair("root hash", manifest.verity.root_hash.to_string()),
        pair("verity tree", output::bytes(manifest.verity.hash_tree_size)),
        pair("UKI", output::bytes(manifest.uki.size)),
    ];
    if !view.entry.fixes.is_empty() {
        rows.push(pair("fixes", view.entry.fixes.join(" ")));
    }
    if let Some(url) = &view.entry.notes_url {
        rows.push(pair("notes", url.clone()));
    }
    if let Some(floor) = &view.entry.floor {
        rows.push(pair("minimum source", floor.to_string()));
    }
    if let Some(number) = manifest.state_version {
        rows.push(pair("state version", number.to_string()));
    }
    if let Some(loader) = &manifest.boot_loader {
        let down = if loader.downgrade { ", also where it is older" } else { "" };
        let digest = &loader.digest;
        rows.push(pair(
            "boot loader",
            format!("systemd-boot {} ({}, {digest}{down})", loader.version, output::bytes(loader.size)),
        ));
    }
    for value in manifest.measured.iter().flat_map(|measured| &measured.pcr11) {
        let phase = if value.phase.is_empty() { "kernel" } else { &value.phase };
        rows.push(pair("PCR 11", format!("{} {phase}", value.value)));
    }
    if let Some(list) = &manifest.packages {
        rows.push(pair("package list", format!("{} ({})", list.file.path, output::bytes(list.file.size))));
    }
    if let Some(withdrawn) = &view.entry.withdrawn {
        rows.push(pair("withdrawn", format!("{} ({})", withdrawn.reason, time(withdrawn.at))));
    }
    let mut text = output::columns(&rows);
    let mut packs = vec![["PACK", "TO MOVE", "OF IMAGE", "FROM"].map(str::to_owned).to_vec()];
    for pack in &manifest.packs {
        let (kind, base) = match &pack.kind {
            PackKind::Full => ("full", "-".to_owned()),
            PackKind::Delta { base } => ("delta", base.to_string()),
        };
        let share = 100.0 * pack.transfer_bytes as f64 / manifest.image.size.max(1) as f64;
        packs.push(vec![kind.to_owned(), output::bytes(pack.transfer_bytes), format!("{share:.1} %"), base]);
    }
    text.push('\n');
    text.push_str(&output::columns(&packs));
    text
}
