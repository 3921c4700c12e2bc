//! What all scenarios share: images, releases, and a folder for what they leave behind.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use bascule_os_image::{Store, ensure_qemu};

use crate::container_os::{self, Containers};
use crate::install::{self, Boot, StateFile};
use crate::machine::{Drive, MEMORY_MIB, Parts, VirtualMachine};
use crate::reference::{self, AgentOf, Edition, PRODUCT, Programs};
use crate::release::Release;
use crate::vendor::{self, ReferenceVendor};

/// Folders of one run: there at once, before anything is built.
#[derive(Debug, Clone)]
pub struct Places {
    workspace: PathBuf,
    store: Store,
    vendor_home: PathBuf,
    trust_root: String,
    folder: PathBuf,
}

impl Places {
    /// Empties the folder of the last run, and makes the vendor's keys if there are none.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn prepare(workspace: &Path) -> anyhow::Result<Self> {
        let store = Store::new(workspace);
        let vendor_home = store.folder().with_file_name("boot-tests-vendor");
        let trust_root = vendor::trust_root(&vendor_home)?;
        let folder = store.folder().with_file_name("boot-tests");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("emptying {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self { workspace: workspace.to_owned(), store, vendor_home, trust_root, folder })
    }

    /// The vendor's repository for this run.
    ///
    /// # Errors
    /// When it can't be written or served.
    pub async fn vendor(&self) -> anyhow::Result<ReferenceVendor> {
        self.vendor_in(&self.folder).await
    }

    /// The same with a repository of its own below another folder.
    ///
    /// # Errors
    /// When it can't be written or served.
    pub async fn vendor_in(&self, folder: &Path) -> anyhow::Result<ReferenceVendor> {
        ReferenceVendor::open(&self.vendor_home, folder, &self.store.folder().with_file_name("boot-tests-packs")).await
    }

    /// Where logs and disks of this run lie.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Images and folders of one run.
#[derive(Debug)]
pub struct Lab {
    places: Places,
    programs: Programs,
    relay: PathBuf,
    machines: AtomicU32,
}

impl Lab {
    /// Installs QEMU, builds the programs and installs the packages of `first`, where they are missing. The compiler and
    /// the package manager work at the same time: the one computes, the other mostly waits. What other editions need is
    /// installed when they are asked for, while machines run that have booted the first.
    ///
    /// # Errors
    /// One sentence about what is missing.
    pub fn prepare(places: &Places, first: Edition<'_>, say: fn(&str)) -> anyhow::Result<Self> {
        let store = &places.store;
        let programs = std::thread::scope(|scope| {
            let programs = scope.spawn(|| {
                say("building the agent as it is shipped");
                let programs = crate::programs::of_the_image(&places.workspace)?;
                say("the agent is built");
                anyhow::Ok(programs)
            });
            ensure_qemu(store, &say)?;
            store.install_packages(&reference::packages(first), &say)?;
            programs.join().unwrap_or_else(|_| bail!("building the programs ended in a panic"))
        })?;
        let relay = std::env::current_exe().context("finding this program")?;
        Ok(Self { places: places.clone(), programs, relay, machines: AtomicU32::new(0) })
    }

    /// The release of one edition of the reference OS, built or found.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn release(&self, edition: Edition<'_>) -> anyhow::Result<Release> {
        let trust_root = &self.places.trust_root;
        let programs = match edition.agent {
            AgentOf::Today => self.programs.clone(),
            AgentOf::OlderRecords => {
                let agent = crate::older::agent_with_older_records(&self.places.workspace)?;
                Programs { agent, ..self.programs.clone() }
            }
        };
        let recipe = if edition.containers {
            container_os::recipe(edition, &programs, trust_root, &Containers::prepare(&crate::say)?)?
        } else {
            reference::recipe(edition, &programs, trust_root)?
        };
        Release::of(&self.places.store, &self.places.store.build(&recipe, &crate::say)?)
    }

    /// A new host with `release` in slot A, switched off.
    ///
    /// # Errors
    /// When its disk can't be written.
    pub fn host(
        &self,
        name: &str,
        release: &Release,
        state: &[StateFile],
        ports: &[u16],
    ) -> anyhow::Result<VirtualMachine> {
        self.host_of(name, release, state, ports, &Setup::default())
    }

    /// As [`Self::host`], set up in another way.
    ///
    /// # Errors
    /// When a disk can't be written.
    pub fn host_of(
        &self,
        name: &str,
        release: &Release,
        state: &[StateFile],
        ports: &[u16],
        setup: &Setup,
    ) -> anyhow::Result<VirtualMachine> {
        let number = self.machines.fetch_add(1, Ordering::Relaxed);
        let folder = self.places.folder.join(format!("{number:02}-{name}"));
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let disk = folder.join("disk.img");
        install::install(release, state, &setup.boot, setup.drive.sector(), &disk)?;
        let second_disk = setup.neighbour.then(|| folder.join("second.img"));
        if let Some(second) = &second_disk {
            install::foreign(PRODUCT, &release.version, second)?;
        }
        let (name, ports, relay) = (name.to_owned(), ports.to_vec(), self.relay.clone());
        let Setup { memory_mib, secure_boot, drive, .. } = *setup;
        VirtualMachine::new(Parts { name, disk, drive, second_disk, secure_boot, memory_mib, ports, folder, relay })
    }

    /// Where logs and disks of this run lie.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.places.folder()
    }
}

/// How a host differs from the usual one.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// Its boot partitions.
    pub boot: Boot,
    /// A second disk is attached: that of another host, with the same labels and an ESP of its own.
    pub neighbour: bool,
    /// Its firmware can check signatures.
    pub secure_boot: bool,
    /// What its disk is to it.
    pub drive: Drive,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            memory_mib: MEMORY_MIB,
            boot: Boot::default(),
            neighbour: false,
            secure_boot: false,
            drive: Drive::Virtio,
        }
    }
}
