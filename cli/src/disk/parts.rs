//! What `bascule disk` and `bascule install` have in common: which release, which parts, what goes onto them.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bascule_agent_settings as settings;
use bascule_disk::{BootFiles, BootLoader, Needs, Plan, Sizes, StateFiles, Wishes, entry_file};
use bascule_image::Sha256;
use bascule_names::Architecture;
use clap::Args;
use tempfile::NamedTempFile;
use uuid::Uuid;

use super::content::{self, Release};
use crate::output;
use crate::release::build::check::CheckArguments;
use crate::release::build::size;
use crate::release::secure_boot::SecureBootArguments;

#[derive(Debug, Args)]
pub(super) struct Parts {
    /// Architecture of the release. Default: the one that the build is for.
    #[arg(long)]
    architecture: Option<Architecture>,

    /// Size of the boot partition. Default: room for two boot images and a third that is being written, at least 512MiB.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Sizes")]
    esp_size: Option<u64>,

    /// Put the boot entries onto an extended boot loader partition of this size. Default: there is none.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Sizes")]
    xbootldr_size: Option<u64>,

    /// Size of each slot's data partition. Default: twice the image.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Sizes")]
    slot_size: Option<u64>,

    /// systemd-boot's program. Default: /usr/lib/systemd/boot/efi/systemd-boot(x64|aa64).efi.
    #[arg(long, value_name = "FILE", help_heading = "Content")]
    boot_loader: Option<PathBuf>,

    /// Folder with more files for the ESP, e.g. `loader/keys/auto/*.auth` or another `loader/loader.conf`.
    #[arg(long, value_name = "FOLDER", help_heading = "Content")]
    esp: Option<PathBuf>,

    /// Folder with the first files of the state partition, which is mounted at /var. Everything belongs to root there.
    #[arg(long, value_name = "FOLDER", help_heading = "Content")]
    state: Option<PathBuf>,

    /// Settings of this machine's agent, by its own rules: they become var/etc/bascule/agent.toml, for root alone.
    #[arg(long, value_name = "FILE", help_heading = "Content")]
    settings: Option<PathBuf>,

    #[command(flatten)]
    secure_boot: SecureBootArguments,

    #[command(flatten)]
    checks: CheckArguments,
}

/// A release with all that lies beside it on a disk, each part looked at.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) release: Release,
    pub(super) sizes: Sizes,
    /// File name of the first entry.
    pub(super) entry: String,
    pub(super) root_hash: Sha256,
    /// Superblock and hash tree.
    pub(super) tree: Vec<u8>,
    esp: BootFiles,
    xbootldr: BootFiles,
    state: Option<PathBuf>,
    settings: Option<NamedTempFile>,
}

impl Parts {
    pub(super) fn release(&self, build: &Path) -> anyhow::Result<Release> {
        Release::open(build, self.architecture)
    }

    /// Whether the entries lie on a partition of their own.
    pub(super) const fn has_xbootldr(&self) -> bool {
        self.xbootldr_size.is_some()
    }

    /// Everything that goes onto a disk of `disk` bytes, with `state` bytes for the state, where these are chosen.
    pub(super) fn content(&self, release: Release, disk: Option<u64>, state: Option<u64>) -> anyhow::Result<Content> {
        // First what a person may have typed wrongly.
        let settings = self.settings.as_deref().map(checked_settings).transpose()?;
        let loader = content::boot_loader(self.boot_loader.as_deref(), release.architecture())?;
        let loader = match self.secure_boot.read()? {
            Some(secure_boot) => secure_boot.sign(loader).context("can't sign the boot loader for Secure Boot")?,
            None => loader,
        };
        let boot_image = release.boot_image()?;
        self.checks.judge(&content::both_signed(&loader, &boot_image)?)?;
        let mut esp = BootFiles::of_esp(Some(BootLoader::parse(&loader, release.architecture())?));
        if let Some(folder) = &self.esp {
            content::add_folder(&mut esp, folder)?;
        }
        let manifest = release.manifest();
        let needs = Needs { image: manifest.image.size, boot_image: boot_image.len() as u64, files: esp.size() };
        let wishes = Wishes { disk, esp: self.esp_size, xbootldr: self.xbootldr_size, slot: self.slot_size, state };
        let sizes = wishes.sizes(needs)?;
        let mut xbootldr = BootFiles::default();
        let entry = entry_file(manifest.product.as_str(), manifest.version.as_str());
        let home = if sizes.xbootldr > 0 { &mut xbootldr } else { &mut esp };
        home.add_entry(&entry, boot_image)?;
        let (root_hash, tree) = release.verified()?;
        Ok(Content { release, sizes, entry, root_hash, tree, esp, xbootldr, state: self.state.clone(), settings })
    }
}

impl Content {
    pub(super) const fn plan(&self, identity: Uuid) -> Plan<'_> {
        Plan { sizes: self.sizes, identity, esp: &self.esp, xbootldr: &self.xbootldr }
    }

    pub(super) fn state(&self) -> StateFiles<'_> {
        StateFiles { tree: self.state.as_deref(), settings: self.settings.as_ref().map(NamedTempFile::path) }
    }

    /// Whether there is something on it that only one machine is to know: keys, as a rule.
    pub(super) const fn is_for_one_machine(&self) -> bool {
        self.state.is_some() || self.settings.is_some()
    }

    /// What was made, for a person.
    pub(super) fn summary(&self, parts: &[bascule_gpt::Partition], length: u64) -> String {
        let entry = &self.entry;
        let mut rows = vec![["PARTITION", "SIZE", "LABEL", "HOLDS"].map(str::to_owned).to_vec()];
        let (a, b) = (bascule_disk::SlotNumbers::A, bascule_disk::SlotNumbers::B);
        for part in parts {
            let entries = parts.iter().any(|other| other.number == bascule_disk::XBOOTLDR);
            let holds = match part.number {
                bascule_disk::ESP if entries => "boot loader".to_owned(),
                bascule_disk::ESP => format!("boot loader, {entry}"),
                bascule_disk::XBOOTLDR => entry.to_owned(),
                number if number == a.data => "slot A: the release".to_owned(),
                number if number == a.verity => "slot A: its hash tree".to_owned(),
                number if number == b.data || number == b.verity => "slot B: empty".to_owned(),
                _ => "state; grows with the disk".to_owned(),
            };
            let size = format!("{} MiB", part.length >> 20);
            rows.push(vec![part.number.to_string(), size, part.label.clone(), holds]);
        }
        let manifest = self.release.manifest();
        format!(
            "{} {} for {}: a disk of {} MiB\n{}",
            manifest.product,
            manifest.version,
            manifest.architecture,
            length >> 20,
            output::columns(&rows)
        )
    }
}

/// The settings as they were when they were checked.
fn checked_settings(path: &Path) -> anyhow::Result<NamedTempFile> {
    let text = settings::check(path).context("the machine's agent could not use these settings")?;
    let mut file = NamedTempFile::new().context("can't write to the folder for temporary files")?;
    file.write_all(text.as_bytes()).context("can't write to the folder for temporary files")?;
    Ok(file)
}
