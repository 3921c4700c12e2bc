//! What all scenarios share: images, releases, and a folder for what they leave behind.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use bascule_image::boot_loader::in_image;
use bascule_names::Architecture;
use bascule_os_image::{Contents, Distribution, ImageFile, Store, boot_loader_of, ensure_qemu};

use crate::container_os::{self, Containers};
use crate::example_os::PRODUCT;
use crate::install::{self, Boot, StateFile};
use crate::machine::{Drive, MEMORY_MIB, Machine, Parts};
use crate::policy_key::PolicyKey;
use crate::reference::{self, AgentOf, Edition, Programs};
use crate::release::{Release, brought};
use crate::sealed_os;
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
        let mut recipe = if edition.containers {
            container_os::recipe(edition, &programs, trust_root, &Containers::prepare(&crate::say)?)?
        } else if edition.sealed {
            sealed_os::recipe(edition, &programs, trust_root)?
        } else {
            reference::recipe(edition, &programs, trust_root)?
        };
        let loader = edition.brings_loader.then(|| self.boot_loader()).transpose()?;
        if let Some(loader) = &loader {
            // Where the package `systemd-boot-efi` puts it.
            let [_, path] = in_image(Architecture::X86_64);
            let bytes = std::fs::read(loader).with_context(|| format!("reading {}", loader.display()))?;
            recipe.files.push(ImageFile { path, mode: 0o644, contents: Contents::Bytes(bytes) });
        }
        let key = edition.sealed.then(|| PolicyKey::of(&self.places.vendor_home)).transpose()?;
        let release = Release::of(&self.places.store, &self.places.store.build(&recipe, &crate::say)?, key.as_ref())?;
        let Some(boot_loader) = loader else { return Ok(release) };
        let brings = Some(brought(&boot_loader)?);
        Ok(Release { brings, boot_loader, ..release })
    }

    /// systemd-boot as it comes with the packages of the first release.
    fn boot_loader(&self) -> anyhow::Result<PathBuf> {
        let recipe = reference::recipe(Edition::OLD, &self.programs, &self.places.trust_root)?;
        Ok(self.places.store.build(&recipe, &crate::say)?.boot_loader())
    }

    /// An older systemd-boot than any release of these tests has.
    ///
    /// # Errors
    /// When it can't be fetched.
    pub fn older_boot_loader(&self) -> anyhow::Result<PathBuf> {
        boot_loader_of(&self.places.store, Distribution::Bookworm, &crate::say)
            .context("fetching a boot loader of an older Debian")
    }

    /// A new host with `release` in slot A, switched off.
    ///
    /// # Errors
    /// When its disk can't be written.
    pub fn host(&self, name: &str, release: &Release, state: &[StateFile], ports: &[u16]) -> anyhow::Result<Machine> {
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
    ) -> anyhow::Result<Machine> {
        let folder = self.folder_of(name)?;
        let disk = folder.join("disk.img");
        install::install(release, state, &setup.boot, setup.drive.sector(), &disk)?;
        let second = folder.join("second.img");
        let second_disk = match setup.second_disk {
            SecondDisk::Absent => None,
            SecondDisk::Neighbour => {
                install::foreign(PRODUCT, &release.version, &second)?;
                Some(second)
            }
            SecondDisk::Empty(size) => {
                let made = std::fs::File::create(&second).and_then(|file| file.set_len(size));
                made.with_context(|| format!("making {}", second.display()))?;
                Some(second)
            }
        };
        let (name, ports, relay) = (name.to_owned(), ports.to_vec(), self.relay.clone());
        let Setup { memory_mib, secure_boot, tpm, drive, .. } = *setup;
        let (credentials, read_only_disk) = (setup.credentials.clone(), setup.read_only_disk.clone());
        Machine::new(Parts {
            name,
            disk,
            drive,
            second_disk,
            read_only_disk,
            tpm,
            secure_boot,
            memory_mib,
            credentials,
            ports,
            folder,
            relay,
        })
    }

    /// A host whose disk somebody else has written, switched off.
    ///
    /// # Errors
    /// When its files can't be made.
    pub fn host_on(&self, name: &str, disk: PathBuf, ports: &[u16]) -> anyhow::Result<Machine> {
        Machine::new(Parts {
            name: name.to_owned(),
            disk,
            drive: Drive::Virtio,
            second_disk: None,
            read_only_disk: None,
            tpm: false,
            secure_boot: false,
            memory_mib: MEMORY_MIB,
            credentials: Vec::new(),
            ports: ports.to_vec(),
            folder: self.folder_of(name)?,
            relay: self.relay.clone(),
        })
    }

    /// A folder for what a machine leaves behind.
    fn folder_of(&self, name: &str) -> anyhow::Result<PathBuf> {
        let number = self.machines.fetch_add(1, Ordering::Relaxed);
        let folder = self.places.folder.join(format!("{number:02}-{name}"));
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder)
    }

    /// Where logs and disks of this run lie.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.places.folder()
    }
}

/// A second disk of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecondDisk {
    /// None.
    Absent,
    /// That of another host, with the same labels and an ESP of its own.
    Neighbour,
    /// One with nothing on it, of this many bytes.
    Empty(u64),
}

/// How a host differs from the usual one.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Its memory, in MiB.
    pub memory_mib: u32,
    /// Its boot partitions.
    pub boot: Boot,
    /// What is attached beside its own disk.
    pub second_disk: SecondDisk,
    /// It has a TPM.
    pub tpm: bool,
    /// Its firmware can check signatures.
    pub secure_boot: bool,
    /// What its disk is to it.
    pub drive: Drive,
    /// Credentials that it is started with, by name.
    pub credentials: Vec<(String, String)>,
    /// The medium of one more disk, which can't be written. It is the machine's own from now on.
    pub read_only_disk: Option<PathBuf>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            memory_mib: MEMORY_MIB,
            boot: Boot::default(),
            second_disk: SecondDisk::Absent,
            tpm: false,
            secure_boot: false,
            drive: Drive::Virtio,
            credentials: Vec::new(),
            read_only_disk: None,
        }
    }
}
