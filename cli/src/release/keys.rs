//! `bascule release keygen`, `init`, `rotate` and `delegate`: who may sign what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_names::ChannelName;
use bascule_repository::publish::{self, PublicKey, Publisher, RoleSetup, Roles, Signing, SigningKey};
use clap::Args;

use super::signing::{LifetimeArguments, SigningArguments, report};
use crate::clock;
use crate::exit::Exit;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct KeygenArguments {
    /// Where to put each key: STEM.pem gets the private half, STEM.pub.json the public one.
    #[arg(value_name = "STEM", required = true)]
    stems: Vec<PathBuf>,
}

pub(crate) fn keygen(arguments: &KeygenArguments) -> anyhow::Result<Exit> {
    let mut rows = vec![["KEY ID", "PRIVATE", "PUBLIC"].map(str::to_owned).to_vec()];
    for stem in &arguments.stems {
        if let Some(folder) = stem.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        }
        let key = publish::generate(stem)?;
        rows.push(vec![key.id(), format!("{}.pem", stem.display()), format!("{}.pub.json", stem.display())]);
    }
    output::print(&output::columns(&rows))?;
    Ok(Exit::Success)
}

#[derive(Debug, Args)]
pub(crate) struct InitArguments {
    /// Folder of the new repository.
    repository: PathBuf,

    /// Keys of the root role: private (they sign now) or public halves. May be repeated.
    #[arg(long, value_name = "FILE", required = true)]
    root: Vec<PathBuf>,

    /// How many root keys must sign.
    #[arg(long, value_name = "N", default_value_t = 1)]
    root_threshold: u64,

    /// Keys of the targets role, which says what is released.
    #[arg(long, value_name = "FILE", required = true)]
    targets: Vec<PathBuf>,

    /// How many targets keys must sign.
    #[arg(long, value_name = "N", default_value_t = 1)]
    targets_threshold: u64,

    /// Keys of the snapshot role.
    #[arg(long, value_name = "FILE", required = true)]
    snapshot: Vec<PathBuf>,

    /// Keys of the timestamp role.
    #[arg(long, value_name = "FILE", required = true)]
    timestamp: Vec<PathBuf>,

    #[command(flatten)]
    lifetimes: LifetimeArguments,
}

pub(crate) fn init(arguments: &InitArguments) -> anyhow::Result<Exit> {
    let all = [&arguments.root, &arguments.targets, &arguments.snapshot, &arguments.timestamp];
    let mut keys = Vec::new();
    for path in all.into_iter().flatten().filter(|path| path.extension().is_some_and(|end| end == "pem")) {
        keys.push(SigningKey::read(path)?);
    }
    let roles = Roles {
        root: role(&arguments.root, arguments.root_threshold)?,
        targets: role(&arguments.targets, arguments.targets_threshold)?,
        snapshot: role(&arguments.snapshot, 1)?,
        timestamp: role(&arguments.timestamp, 1)?,
    };
    let signing = Signing { keys: &keys, lifetimes: arguments.lifetimes.get(), now: clock::now() };
    let outcome = publish::init(&arguments.repository, &roles, signing)?;
    let root = arguments.repository.join("metadata").join("1.root.json");
    report(&format!("made a repository; put {} into the OS image as the trust root", root.display()), &outcome)
}

#[derive(Debug, Args)]
pub(crate) struct RotateArguments {
    /// Folder of the repository.
    repository: PathBuf,

    /// The keys a role has from now on, e.g. --role timestamp=keys/timestamp-2.pub.json. Repeat it for each key of the
    /// role; keys that are not named are revoked. Without any: only a new root with a later expiry.
    #[arg(long = "role", value_name = "ROLE=FILE", value_parser = assignment::<PathBuf>)]
    roles: Vec<(String, PathBuf)>,

    /// How many keys must sign a role, e.g. --threshold root=2. Default: 1.
    #[arg(long = "threshold", value_name = "ROLE=N", value_parser = assignment::<u64>)]
    thresholds: Vec<(String, u64)>,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn rotate(arguments: &RotateArguments) -> anyhow::Result<Exit> {
    let keys = arguments.signing.keys()?;
    let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (name, path) in &arguments.roles {
        files.entry(name.clone()).or_default().push(path.clone());
    }
    let thresholds: BTreeMap<&String, u64> = arguments.thresholds.iter().map(|(name, count)| (name, *count)).collect();
    if let Some(name) = thresholds.keys().find(|name| !files.contains_key(**name)) {
        anyhow::bail!("--threshold {name}=… needs the keys of that role too (--role {name}=FILE)");
    }
    let mut changes = BTreeMap::new();
    for (name, files) in &files {
        changes.insert(name.clone(), role(files, thresholds.get(name).copied().unwrap_or(1))?);
    }
    let mut publisher = Publisher::open(&arguments.repository)?;
    let outcome = publisher.rotate(&changes, arguments.signing.signing(&keys))?;
    report("the next root is published", &outcome)
}

#[derive(Debug, Args)]
pub(crate) struct DelegateArguments {
    /// Folder of the repository.
    repository: PathBuf,

    /// The channel that other keys may sign.
    #[arg(long)]
    channel: ChannelName,

    /// Keys of the channel: private or public halves. May be repeated.
    #[arg(long = "channel-key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,

    /// How many of them must sign.
    #[arg(long, value_name = "N", default_value_t = 1)]
    threshold: u64,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn delegate(arguments: &DelegateArguments) -> anyhow::Result<Exit> {
    let mut keys = arguments.signing.keys()?;
    for path in arguments.keys.iter().filter(|path| path.extension().is_some_and(|end| end == "pem")) {
        keys.push(SigningKey::read(path)?);
    }
    let mut publisher = Publisher::open(&arguments.repository)?;
    let setup = role(&arguments.keys, arguments.threshold)?;
    let outcome = publisher.delegate(&arguments.channel, &setup, arguments.signing.signing(&keys))?;
    report(&format!("channel {} is signed by its own keys now", arguments.channel), &outcome)
}

fn role(files: &[PathBuf], threshold: u64) -> anyhow::Result<RoleSetup> {
    let read = |path: &PathBuf| PublicKey::read(Path::new(path));
    let keys = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    Ok(RoleSetup { keys, threshold })
}

/// `ROLE=VALUE`
fn assignment<T: std::str::FromStr>(text: &str) -> Result<(String, T), String> {
    let refuse = || format!("{text} is not of the form ROLE=VALUE");
    let (role, value) = text.split_once('=').ok_or_else(refuse)?;
    Ok((role.to_owned(), value.parse().map_err(|_| refuse())?))
}
