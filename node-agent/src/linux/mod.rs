//! The host traits on a real Linux machine.

mod bus;
mod clock;
mod disk;
mod esp;
mod find;
mod firmware;
mod memory;
mod state;
mod system;

pub use bus::LinuxBus;
pub use clock::LinuxClock;
pub use disk::BlockDisk;
pub use esp::MountedEsp;
pub use find::{FindError, find_disk, find_esp};
use find::{other_disks, refuse_multipath, refuse_twins};
pub use firmware::EfiVariables;
pub use memory::memory_limit;
pub use state::StateFolder;
pub use system::LinuxSystem;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bascule_repository::{HttpSettings, ProxySetting};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::gpt::Table;
use crate::host::{Clock, Host};
use crate::releases::{RepositoryOptions, RepositoryReleases};
use crate::settings::Settings;

/// Why the host can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Boot partition or disk.
    #[error(transparent)]
    Find(#[from] FindError),
    /// The state folder.
    #[error("the state folder {} can't be made", path.display())]
    State {
        /// The folder.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The disk.
    #[error("the disk {} can't be opened", path.display())]
    Disk {
        /// The device node.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of certificate authorities.
    #[error("the certificate authorities in {} can't be read", path.display())]
    Authorities {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The proxy.
    #[error("repository.proxy is '{0}': write environment, direct or an address")]
    Proxy(String),
}

/// How repositories are read, by the settings.
///
/// # Errors
/// A file of certificate authorities can't be read, or the proxy is no address.
pub fn repository_options(settings: &Settings) -> Result<RepositoryOptions, OpenError> {
    let mut authorities = Vec::new();
    for path in &settings.extra_ca {
        let bytes = std::fs::read(path).map_err(|source| OpenError::Authorities { path: path.clone(), source })?;
        authorities.push(bytes);
    }
    let proxy = match settings.proxy.as_str() {
        "" | "environment" => ProxySetting::FromEnvironment,
        "direct" => ProxySetting::Direct,
        address => ProxySetting::Url(address.parse().map_err(|_| OpenError::Proxy(settings.proxy.clone()))?),
    };
    Ok(RepositoryOptions {
        trust_root: settings.trust_root.clone(),
        datastore: settings.state.join("repositories"),
        http: HttpSettings {
            proxy,
            extra_ca_pem: authorities,
            only_extra_ca: settings.only_extra_ca,
            user_agent: concat!("bascule-agent/", env!("CARGO_PKG_VERSION")).to_owned(),
            ..HttpSettings::default()
        },
        allow_local: settings.allow_local,
        not_before: None,
    })
}

/// Opens the machine this runs on.
///
/// # Errors
/// [`OpenError`]: something that must be there is not.
pub fn open(settings: &Settings, runtime: &Handle) -> Result<Host, OpenError> {
    let repositories = repository_options(settings)?;
    let (host, disk) = open_with(settings, runtime, repositories)?;
    let sys = Path::new("/sys/class/block");
    refuse_multipath(sys, &disk)?;
    // Of a disk in a file nothing can be found by PARTUUID.
    if disk.starts_with("/dev") {
        let others = other_disks(sys, &disk).into_iter().filter_map(|other| Some((other.clone(), slots_of(&other)?)));
        refuse_twins((&disk, &slots_of(&disk).unwrap_or_default()), &others.collect::<Vec<_>>())?;
    }
    Ok(host)
}

/// PARTUUIDs of a disk's partitions; `None` where no table can be read.
fn slots_of(disk: &Path) -> Option<Vec<Uuid>> {
    let disk = BlockDisk::open(disk).ok()?;
    let table = Table::read(&disk).ok()?;
    Some(table.partitions().into_iter().map(|(_, partition)| partition.uuid).collect())
}

/// Opens the machine for the guard, which fetches nothing: what only concerns repositories must not keep it from its work.
///
/// # Errors
/// [`OpenError`]: boot partition, disk or state folder are not there.
pub fn open_for_guard(settings: &Settings, runtime: &Handle) -> Result<Host, OpenError> {
    let repositories = RepositoryOptions {
        trust_root: settings.trust_root.clone(),
        datastore: settings.state.join("repositories"),
        http: HttpSettings::default(),
        allow_local: false,
        not_before: None,
    };
    Ok(open_with(settings, runtime, repositories)?.0)
}

/// The host, and its disk's device node or file.
fn open_with(
    settings: &Settings,
    runtime: &Handle,
    repositories: RepositoryOptions,
) -> Result<(Host, PathBuf), OpenError> {
    let esp = match &settings.esp {
        Some(path) => path.clone(),
        None => find_esp(&settings.host_root)?,
    };
    let disk = match &settings.disk {
        Some(path) => path.clone(),
        None => find_disk(&esp)?,
    };
    let clock: Arc<dyn Clock> = Arc::new(LinuxClock);
    let state = StateFolder::create(&settings.state)
        .map_err(|source| OpenError::State { path: settings.state.clone(), source })?;
    let options = RepositoryOptions { not_before: system::build_time(&settings.host_root), ..repositories };
    let host = Host {
        disk: Arc::new(BlockDisk::open(&disk).map_err(|source| OpenError::Disk { path: disk.clone(), source })?),
        esp: Arc::new(MountedEsp::new(esp)),
        firmware: Arc::new(EfiVariables::default()),
        bus: Arc::new(LinuxBus::new(runtime.clone(), settings.bus_timeout)),
        clock: Arc::clone(&clock),
        system: Arc::new(LinuxSystem::new(settings.host_root.clone())),
        state: Arc::new(state),
        releases: Arc::new(RepositoryReleases::new(options, clock, runtime.clone())),
    };
    // By-path links lead to the same node.
    Ok((host, disk.canonicalize().unwrap_or(disk)))
}
