//! The host traits on a real Linux machine.

mod below;
mod bus;
mod clock;
mod disk;
mod esp;
mod find;
mod firmware;
mod later;
mod memory;
mod sole_disk;
mod state;
mod system;

pub use below::find_disk;
pub use bus::LinuxBus;
pub use clock::LinuxClock;
pub use disk::BlockDisk;
pub use esp::MountedEsp;
pub use find::{FindError, find_esp};
use find::{FoundXbootldr, named_esp};
pub use firmware::EfiVariables;
pub use memory::memory_limit;
use sole_disk::{other_disks, refuse_copies, refuse_multipath};
pub use state::StateFolder;
pub use system::LinuxSystem;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bascule_repository::{HttpSettings, ProxySetting};
use tokio::runtime::Handle;
use uuid::Uuid;

use crate::engine::in_one_line;
use crate::gpt::{Table, TableError};
use crate::host::{Clock, FindXbootldr, Host, Releases, StateStore, Xbootldr};
use crate::releases::{RepositoryOptions, RepositoryReleases, read_trust_root};
use crate::settings::Settings;
use later::{LateReleases, Later, NoState};

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
    #[error(
        "the disk {} can't be opened: name the one with the slots in slots.disk, and mount the host's /dev where the agent is a pod",
        path.display()
    )]
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
    /// The proxy. Its text is not told: addresses of proxies have passwords in them, and this goes into logs and the node's status.
    #[error("repository.proxy is no address: write environment, direct or one such as http://proxy.example.com:3128")]
    Proxy,
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
        address => ProxySetting::Url(address.parse().map_err(|_| OpenError::Proxy)?),
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
        not_before: system::build_time(&settings.host_root),
    })
}

/// Opens the machine this runs on, for a command that ends when something is missing.
///
/// # Errors
/// [`OpenError`]: something that must be there is not.
pub fn open(settings: &Settings, runtime: &Handle) -> Result<Host, OpenError> {
    let repositories = repository_options(settings)?;
    let (host, disk) = open_with(settings, runtime, repositories)?;
    refuse_disk(&disk)?;
    Ok(host)
}

/// Refuses a disk that must not be written to: one path of several to it, or one of two that look alike.
fn refuse_disk(disk: &Path) -> Result<(), OpenError> {
    let sys = Path::new("/sys/class/block");
    refuse_multipath(sys, disk)?;
    // Of a disk in a file nothing can be found by PARTUUID.
    if disk.starts_with("/dev") {
        let own = partuuids(disk).map_err(|source| OpenError::Disk { path: disk.to_owned(), source })?;
        let mut others = Vec::new();
        for other in other_disks(sys, disk)? {
            match partuuids(&other) {
                Ok(uuids) => others.push((other, uuids)),
                // It has to do with this machine, and will pass.
                Err(source) if source.kind() == io::ErrorKind::OutOfMemory => {
                    return Err(OpenError::Disk { path: other, source });
                }
                // A drive that is dead, or has no medium: whoever looks for a PARTUUID does not find one there either.
                Err(error) => {
                    tracing::warn!(disk = %other.display(), %error, "a disk that can't be read is no copy of this one")
                }
            }
        }
        refuse_copies((disk, &own), &others)?;
    }
    Ok(())
}

/// PARTUUIDs of a disk's partitions; none where it has no table.
fn partuuids(disk: &Path) -> io::Result<Vec<Uuid>> {
    match Table::read(&BlockDisk::open(disk)?) {
        Ok(table) => Ok(table.partitions().into_iter().map(|(_, partition)| partition.uuid).collect()),
        Err(TableError::Disk { source, .. }) => Err(source),
        Err(_) => Ok(Vec::new()),
    }
}

/// Opens the machine for the agent as a service, which has somebody to tell what is missing: boot partition, disk and the
/// settings of repositories are looked for when they are needed, and what can't be used is reported then.
///
/// # Errors
/// [`OpenError::State`]: without its state folder the agent could not even take its lock.
pub fn open_for_service(settings: &Settings, runtime: &Handle) -> Result<Host, OpenError> {
    let state: Arc<dyn StateStore> = match state(settings) {
        Ok(state) => Arc::new(state),
        // Where only reports are made, nothing is remembered, and where to is not known for sure.
        Err(error) if settings.impediment.is_some() => Arc::new(NoState { why: in_one_line(&error) }),
        Err(error) => return Err(error),
    };
    let clock: Arc<dyn Clock> = Arc::new(LinuxClock);
    let releases = LateReleases { settings: settings.clone(), clock: Arc::clone(&clock), runtime: runtime.clone() };
    Ok(open_later(settings, runtime, state, Arc::new(releases), refuse_disk))
}

/// A sentence where there is no root of trust.
pub fn without_trust_root(settings: &Settings) -> Option<String> {
    read_trust_root(&settings.trust_root).err().map(|error| in_one_line(&error))
}

/// A sentence where there is no system bus, which nobody asks before a release is to be staged: said when the agent starts, while
/// nobody waits for it.
pub fn without_bus() -> Option<String> {
    bus::absent()
}

/// The host, of which boot partition and disk are looked for when they are needed. `refuse` says which disks must not be used.
fn open_later(
    settings: &Settings,
    runtime: &Handle,
    state: Arc<dyn StateStore>,
    releases: Arc<dyn Releases>,
    refuse: fn(&Path) -> Result<(), OpenError>,
) -> Host {
    let find = find_once(settings.esp.clone(), settings.host_root.clone());
    let named = settings.disk.clone();
    let below = find.clone();
    let disk = Later::new(move || {
        let path = match &named {
            Some(path) => path.clone(),
            None => below().and_then(|esp| find_disk(&esp)).map_err(|error| io::Error::other(in_one_line(&error)))?,
        };
        refuse(&path.canonicalize().unwrap_or_else(|_| path.clone()))
            .map_err(|error| io::Error::other(in_one_line(&error)))?;
        BlockDisk::open(&path).map_err(|source| {
            let kind = source.kind();
            io::Error::new(kind, in_one_line(&OpenError::Disk { path: path.clone(), source }))
        })
    });
    let seek = find.clone();
    let esp = Later::new(move || seek().map(MountedEsp::new).map_err(|error| io::Error::other(in_one_line(&error))));
    Host {
        disk: Arc::new(disk),
        esp: Arc::new(esp),
        xbootldr: xbootldr(settings.host_root.clone(), find),
        firmware: Arc::new(EfiVariables::default()),
        bus: Arc::new(LinuxBus::new(runtime.clone(), settings.bus_timeout)),
        clock: Arc::new(LinuxClock),
        system: Arc::new(LinuxSystem::new(settings.host_root.clone())),
        state,
        releases,
    }
}

/// The boot partition that is named, or the first one that is found: whoever asks is given the same one from then on. Were each
/// to look for itself, what is mounted in between would make one partition the ESP to one and the XBOOTLDR to another.
fn find_once(
    named: Option<PathBuf>,
    root: PathBuf,
) -> impl Fn() -> Result<PathBuf, FindError> + Clone + Send + Sync + 'static {
    let found = Arc::new(OnceLock::<PathBuf>::new());
    move || {
        if let Some(path) = found.get() {
            return Ok(path.clone());
        }
        let path = esp_of(named.as_deref(), &root)?;
        Ok(found.get_or_init(|| path).clone())
    }
}

/// Where the ESP is mounted.
fn esp_of(named: Option<&Path>, root: &Path) -> Result<PathBuf, FindError> {
    match named {
        Some(path) => named_esp(root, path),
        None => find_esp(root),
    }
}

/// Looks for the XBOOTLDR each time: it may be mounted after the ESP, which the guard is often started before.
fn xbootldr(root: PathBuf, esp: impl Fn() -> Result<PathBuf, FindError> + Send + Sync + 'static) -> FindXbootldr {
    Arc::new(move || {
        let esp = esp().map_err(|error| io::Error::other(in_one_line(&error)))?;
        find_xbootldr(&root, &esp)
    })
}

/// The XBOOTLDR of the disk that the ESP lies on, which is what the boot loader takes entries from beside it.
///
/// # Errors
/// Whether there is one can't be told.
pub fn find_xbootldr(root: &Path, esp: &Path) -> io::Result<Xbootldr> {
    Ok(match find::find_xbootldr(root, esp)? {
        FoundXbootldr::None => Xbootldr::None,
        FoundXbootldr::At(path) => Xbootldr::Mounted(Arc::new(MountedEsp::known(path))),
        FoundXbootldr::NotMounted(words) => Xbootldr::NotMounted(words),
    })
}

fn state(settings: &Settings) -> Result<StateFolder, OpenError> {
    StateFolder::create(&settings.state).map_err(|source| OpenError::State { path: settings.state.clone(), source })
}

/// Opens the machine for the guard, which fetches nothing: what only concerns repositories must not keep it from its work, and what
/// is not there yet is looked for at each of its looks. The release on trial may be one that never mounts its state folder.
pub fn open_for_guard(settings: &Settings, runtime: &Handle) -> Host {
    let repositories = RepositoryOptions {
        trust_root: settings.trust_root.clone(),
        datastore: settings.state.join("repositories"),
        http: HttpSettings::default(),
        allow_local: false,
        not_before: None,
    };
    let releases = RepositoryReleases::new(repositories, Arc::new(LinuxClock), runtime.clone());
    let owned = settings.clone();
    let state = Later::new(move || state(&owned).map_err(|error| io::Error::other(in_one_line(&error))));
    // Whichever disk it is, it is the one that this boot is to be taken back from.
    open_later(settings, runtime, Arc::new(state), Arc::new(releases), |_| Ok(()))
}

/// The host, and its disk's device node or file.
fn open_with(
    settings: &Settings,
    runtime: &Handle,
    repositories: RepositoryOptions,
) -> Result<(Host, PathBuf), OpenError> {
    let esp = esp_of(settings.esp.as_deref(), &settings.host_root)?;
    let disk = match &settings.disk {
        Some(path) => path.clone(),
        None => find_disk(&esp)?,
    };
    let clock: Arc<dyn Clock> = Arc::new(LinuxClock);
    let state = state(settings)?;
    let host = Host {
        disk: Arc::new(BlockDisk::open(&disk).map_err(|source| OpenError::Disk { path: disk.clone(), source })?),
        esp: Arc::new(MountedEsp::new(esp.clone())),
        xbootldr: xbootldr(settings.host_root.clone(), move || Ok(esp.clone())),
        firmware: Arc::new(EfiVariables::default()),
        bus: Arc::new(LinuxBus::new(runtime.clone(), settings.bus_timeout)),
        clock: Arc::clone(&clock),
        system: Arc::new(LinuxSystem::new(settings.host_root.clone())),
        state: Arc::new(state),
        releases: Arc::new(RepositoryReleases::new(repositories, clock, runtime.clone())),
    };
    // By-path links lead to the same node.
    Ok((host, disk.canonicalize().unwrap_or(disk)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_guard_begins_without_a_state_folder_and_finds_it_when_it_comes() {
        let folder = tempfile::tempdir().unwrap();
        let var = folder.path().join("var");
        std::fs::write(&var, b"no folder, and none can be made below it").unwrap();
        let settings = Settings { state: var.join("bascule"), ..Settings::load(&Default::default()).unwrap() };
        let host = open_for_guard(&settings, &Handle::current());
        assert!(host.state.read("journal.json", 9).is_err(), "what could not be looked at is not absent");
        std::fs::remove_file(&var).unwrap();
        assert_eq!(host.state.read("journal.json", 9).unwrap(), None);
    }

    #[test]
    fn a_proxy_that_is_no_address_is_named_without_its_password() {
        let proxy = "http://user:secret@[proxy".to_owned();
        let settings = Settings { proxy, ..Settings::load(&Default::default()).unwrap() };
        let told = in_one_line(&repository_options(&settings).unwrap_err());
        assert!(told.contains("repository.proxy") && !told.contains("secret"), "{told}");
    }

    #[test]
    fn who_looks_for_the_boot_partition_is_given_the_same_one_whatever_is_mounted_since() {
        let root = tempfile::tempdir().unwrap();
        let find = find_once(None, root.path().to_owned());
        assert!(find().is_err());
        std::fs::create_dir_all(root.path().join("boot/EFI")).unwrap();
        assert_eq!(find.clone()().unwrap(), root.path().join("boot"));
        std::fs::create_dir_all(root.path().join("efi/EFI")).unwrap();
        assert_eq!(find().unwrap(), root.path().join("boot"));
        let named = find_once(Some("/esp".into()), root.path().to_owned());
        assert_eq!(named().unwrap(), Path::new("/esp"));
    }
}
