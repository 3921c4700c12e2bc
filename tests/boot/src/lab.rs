//! What all scenarios share: images, releases, and a folder for what they leave behind.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context as _;
use bascule_os_image::{Archive, Fault, Store, ensure_qemu};

use crate::container_os::{self, Containers};
use crate::install::{self, StateFile};
use crate::machine::{MEMORY_MIB, Machine, Parts};
use crate::reference::{self, Edition, Programs};
use crate::release::Release;
use crate::vendor::{self, Vendor};

/// Images and folders of one run.
#[derive(Debug)]
pub struct Lab {
    store: Store,
    programs: Programs,
    vendor_home: PathBuf,
    folder: PathBuf,
    relay: PathBuf,
    machines: AtomicU32,
}

impl Lab {
    /// Installs QEMU and builds the programs where they are missing.
    ///
    /// # Errors
    /// One sentence about what is missing.
    pub fn prepare(workspace: &Path, say: &dyn Fn(&str)) -> anyhow::Result<Self> {
        let store = Store::new(workspace);
        ensure_qemu(&store, say)?;
        say("building the agent as it is shipped");
        let vendor_home = store.folder().with_file_name("boot-tests-vendor");
        let programs = crate::programs::build(workspace, vendor::trust_root(&vendor_home)?)?;
        let folder = store.folder().with_file_name("boot-tests");
        if folder.exists() {
            std::fs::remove_dir_all(&folder).with_context(|| format!("emptying {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let relay = std::env::current_exe().context("finding this program")?;
        Ok(Self { store, programs, vendor_home, folder, relay, machines: AtomicU32::new(0) })
    }

    /// The vendor's repository for this run.
    ///
    /// # Errors
    /// When it can't be written or served.
    pub async fn vendor(&self) -> anyhow::Result<Vendor> {
        Vendor::open(&self.vendor_home, &self.folder, &self.store.folder().with_file_name("boot-tests-packs")).await
    }

    /// Where logs and disks of this run lie.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The release of one edition of the reference OS, built or found.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn release(&self, version: &str, archive: Archive, fault: Option<Fault>) -> anyhow::Result<Release> {
        let recipe = reference::recipe(Edition { version, archive, fault }, &self.programs)?;
        let image = self.store.build(&recipe, &crate::say)?;
        Release::of(&image)
    }

    /// The release of one edition of the OS with containerd and a real kubelet, built or found.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn container_release(&self, version: &str, archive: Archive) -> anyhow::Result<Release> {
        let containers = Containers::prepare(&crate::say)?;
        let edition = Edition { version, archive, fault: None };
        let recipe = container_os::recipe(edition, &self.programs, &containers)?;
        Release::of(&self.store.build(&recipe, &crate::say)?)
    }

    /// A new host with `release` in slot A, switched off.
    ///
    /// # Errors
    /// When its disk can't be written.
    pub fn host(&self, name: &str, release: &Release, state: &[StateFile], ports: &[u16]) -> anyhow::Result<Machine> {
        self.host_of(name, release, state, ports, MEMORY_MIB)
    }

    /// As [`Self::host`], with so much memory.
    ///
    /// # Errors
    /// When its disk can't be written.
    pub fn host_of(
        &self,
        name: &str,
        release: &Release,
        state: &[StateFile],
        ports: &[u16],
        memory_mib: u32,
    ) -> anyhow::Result<Machine> {
        let number = self.machines.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.join(format!("{number:02}-{name}"));
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let disk = folder.join("disk.img");
        install::install(release, state, &disk)?;
        let (name, ports, relay) = (name.to_owned(), ports.to_vec(), self.relay.clone());
        Machine::new(Parts { name, disk, memory_mib, ports, folder, relay })
    }
}
