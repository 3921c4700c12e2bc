//! `bascule release keygen`, `init`, `rotate` and `delegate`: who may sign what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_names::ChannelName;
use bascule_repository::publish::{self, PublicKey, RoleSetup, Roles, Signing, SigningKey};
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

    /// Kind of the keys.
    #[arg(long, value_enum, default_value_t)]
    algorithm: KeyAlgorithm,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum KeyAlgorithm {
    /// Small, fast, and the same bytes for the same input.
    #[default]
    Ed25519,
    /// For tokens and key services that have no Ed25519.
    EcdsaP256,
}

impl From<KeyAlgorithm> for publish::Algorithm {
    fn from(algorithm: KeyAlgorithm) -> Self {
        match algorithm {
            KeyAlgorithm::Ed25519 => Self::Ed25519,
            KeyAlgorithm::EcdsaP256 => Self::EcdsaP256,
        }
    }
}

pub(crate) fn keygen(arguments: &KeygenArguments) -> anyhow::Result<Exit> {
    let mut rows = vec![["KEY ID", "PRIVATE", "PUBLIC"].map(str::to_owned).to_vec()];
    for stem in &arguments.stems {
        if let Some(folder) = stem.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        }
        let key = publish::generate_with(arguments.algorithm.into(), stem)?;
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
    report(&format!("made a repository; put {} into the OS image as the trust root", root.display()), &outcome, &keys)
}

#[derive(Debug, Args)]
pub(crate) struct RotateArguments {
    /// Folder of the repository.
    repository: PathBuf,

    /// The keys a role has from now on, e.g. --role timestamp=keys/timestamp-2.pub.json. Repeat it for each key of the
    /// role; keys that are not named are revoked. Without any: only a new root with a later expiry.
    #[arg(long = "role", value_name = "ROLE=FILE", value_parser = assignment::<PathBuf>)]
    roles: Vec<(String, PathBuf)>,

    /// How many keys must sign a role, e.g. --threshold root=2. Default: as many as now.
    #[arg(long = "threshold", value_name = "ROLE=N", value_parser = assignment::<u64>)]
    thresholds: Vec<(String, u64)>,

    /// Do not ask.
    #[arg(long, short)]
    yes: bool,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn rotate(arguments: &RotateArguments) -> anyhow::Result<Exit> {
    let keys = arguments.signing.keys()?;
    let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (name, path) in &arguments.roles {
        files.entry(name.clone()).or_default().push(path.clone());
    }
    let mut publisher = super::open(&arguments.repository)?;
    let mut changes = BTreeMap::new();
    for (name, files) in &files {
        let now = publisher.role(name);
        // An unknown role is refused by the library, with its name.
        let threshold = now.as_ref().map_or(1, |role| role.threshold);
        changes.insert(name.clone(), role(files, threshold)?);
    }
    for (name, threshold) in &arguments.thresholds {
        if !changes.contains_key(name) {
            let Some(now) = publisher.role(name) else {
                anyhow::bail!("there is no role {name}; there are: root, targets, snapshot, timestamp");
            };
            changes.insert(name.clone(), now);
        }
        if let Some(setup) = changes.get_mut(name) {
            setup.threshold = *threshold;
        }
    }
    for (name, setup) in &changes {
        if !threshold_is_meant(name, publisher.role(name), setup, arguments.yes)? {
            output::print("Nothing was changed.\n")?;
            return Ok(Exit::Failed);
        }
    }
    let outcome = publisher.rotate(&changes, arguments.signing.signing(&keys))?;
    report("the next root is published", &outcome, &keys)
}

/// A role that fewer people can sign for than before is asked about; one that its keys can't satisfy is explained.
fn threshold_is_meant(name: &str, now: Option<RoleSetup>, next: &RoleSetup, yes: bool) -> anyhow::Result<bool> {
    let Some(now) = now else { return Ok(true) };
    let keys = next.keys.len() as u64;
    anyhow::ensure!(
        next.threshold <= keys,
        "{name} needs signatures of {} keys and would have {keys}: name more keys, or say --threshold {name}={keys}",
        next.threshold
    );
    if next.threshold >= now.threshold {
        return Ok(true);
    }
    let (was, is) = (now.threshold, next.threshold);
    output::confirmed(&format!("from now on {is} of {keys} keys can sign for {name} (now: {was}). Is that meant"), yes)
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

    /// How many of them must sign. Default: as many as now, else 1.
    #[arg(long, value_name = "N")]
    threshold: Option<u64>,

    /// Do not ask.
    #[arg(long, short)]
    yes: bool,

    #[command(flatten)]
    signing: SigningArguments,
}

pub(crate) fn delegate(arguments: &DelegateArguments) -> anyhow::Result<Exit> {
    let mut keys = arguments.signing.keys()?;
    for path in arguments.keys.iter().filter(|path| path.extension().is_some_and(|end| end == "pem")) {
        keys.push(SigningKey::read(path)?);
    }
    let mut publisher = super::open(&arguments.repository)?;
    let now = publisher.role_of_channel(&arguments.channel);
    let threshold = arguments.threshold.or(now.as_ref().map(|now| now.threshold)).unwrap_or(1);
    let setup = role(&arguments.keys, threshold)?;
    if !threshold_is_meant(&format!("channel {}", arguments.channel), now, &setup, arguments.yes)? {
        output::print("Nothing was changed.\n")?;
        return Ok(Exit::Failed);
    }
    let outcome = publisher.delegate(&arguments.channel, &setup, arguments.signing.signing(&keys))?;
    report(&format!("channel {} is signed by its own keys now", arguments.channel), &outcome, &keys)
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
