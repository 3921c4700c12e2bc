//! `bascule install`: puts a built release onto a disk of this machine, from a system that runs from elsewhere.

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use anyhow::Context as _;
use bascule_disk::{Device, Installed, Kernel, Permission, Refusal, Step, Use, install, judge, look, this_machine};
use clap::Args;
use uuid::Uuid;

use super::parts::Parts;
use crate::exit::Exit;
use crate::output;
use crate::release::blocking;
use crate::release::progress::Bar;

/// Install a built release on a disk of this machine, from a system that runs from elsewhere.
///
/// What `bascule disk` makes in a file, for the whole disk: everything that it holds is lost. Refuses a disk that is in use, and asks.
/// What is written is read back, and the partition table comes last: what was interrupted does not boot. Needs root, and mke2fs and
/// debugfs (e2fsprogs).
#[derive(Debug, Args)]
pub(crate) struct Install {
    /// Build folder of the release, as `bascule release build` or `fetch` left it.
    #[arg(value_name = "BUILD")]
    build: PathBuf,

    /// The disk: a device, e.g. /dev/nvme0n1.
    #[arg(long, value_name = "DEVICE")]
    disk: PathBuf,

    /// Do not ask.
    #[arg(long)]
    yes: bool,

    /// What the disk holds is not needed any more. Without a terminal to ask on, a disk that holds something is refused otherwise.
    #[arg(long)]
    replace: bool,

    /// The disk goes into another machine: do not ask which firmware and processors this one has.
    #[arg(long)]
    other_machine: bool,

    /// The disk's UUID, from which the other partitions' follow. Default: one by chance.
    #[arg(long, value_name = "UUID", help_heading = "Content")]
    identity: Option<Uuid>,

    #[command(flatten)]
    parts: Parts,
}

impl Install {
    pub(crate) async fn run(self: Box<Self>) -> anyhow::Result<Exit> {
        blocking(move || self.work()).await
    }

    fn work(&self) -> anyhow::Result<Exit> {
        let asks = !self.yes && io::stdin().is_terminal();
        let target = look(&self.disk)?;
        let release = self.parts.release(&self.build)?;
        // Whoever types the disk's name has read what it holds.
        let permission = Permission { replace: self.replace || asks, other_machine: self.other_machine };
        let machine = this_machine().context("can't tell which firmware started this machine")?;
        judge(&target, machine, release.architecture(), self.parts.has_xbootldr(), permission)?;
        let content = self.parts.content(release, Some(target.geometry.length), None)?;
        let manifest = content.release.manifest();
        let device = target.device.display().to_string();
        let gib = target.geometry.length >> 30;
        let question = format!(
            "{device} ({gib} GiB) holds {}. Install {} {} on it, over everything that it holds",
            target.content, manifest.product, manifest.version
        );
        if !output::typed(&question, &device, self.yes)? {
            output::say("nothing was written");
            return Ok(Exit::Failed);
        }
        let disk = Device::open(&target.device).map_err(|error| match error.kind() {
            io::ErrorKind::ResourceBusy => {
                anyhow::Error::new(Refusal::InUse { device: target.device.clone(), uses: vec![Use::Program] })
            }
            _ => anyhow::Error::new(error).context(format!("can't open {device} for writing (are you root?)")),
        })?;
        // Since it was looked at a person may have thought for long.
        let held = bascule_disk::content(&disk).with_context(|| format!("can't read {device}"))?;
        if held != target.content {
            return Err(Refusal::Changed(target.device.clone()).into());
        }
        let scratch = tempfile::tempdir().context("can't write to the folder for temporary files")?;
        let mut first = Installed {
            version: manifest.version.as_str(),
            architecture: manifest.architecture,
            root_hash: content.root_hash,
            data: &mut content.release.image()?,
            verity: &mut content.tree.as_slice(),
        };
        let plan = content.plan(self.identity.unwrap_or_else(Uuid::new_v4));
        let writing = Bar::new("writing", manifest.image.size.saturating_add(content.tree.len() as u64));
        let mut reading: Option<Bar> = None;
        let parts = install(&disk, plan, &mut first, content.state(), scratch.path(), &mut |step| match step {
            Step::Written(done) => writing.at(done),
            Step::ReadBack { done, total } => {
                reading.get_or_insert_with(|| Bar::new("reading back", total)).at(done);
            }
        });
        writing.end();
        reading.iter().for_each(Bar::end);
        let parts = parts.with_context(|| {
            format!("{device} is not installed; begin again once this is fixed, it may hold nothing that boots")
        })?;
        output::print(&content.summary(&parts, target.geometry.length))?;
        match disk.read_again() {
            Kernel::Knows => {}
            Kernel::MakesNone => output::say(&format!("the kernel makes no partitions of {device}")),
            Kernel::Failed(error) => {
                output::say(&format!(
                    "{device} is whole, but the kernel did not read its new partitions ({error}): they are there after a reboot"
                ));
            }
        }
        Ok(Exit::Success)
    }
}
