//! `bascule disk` and `bascule install`: from a built release to the disk that a host first runs from.

mod content;
mod format;
mod install;
mod parts;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use bascule_disk::{GROWING, Installed, identity_of, make};
use clap::Args;
use uuid::Uuid;

use crate::exit::Exit;
use crate::output;
use crate::release::blocking;
use crate::release::build::size;
use format::Format;
pub(crate) use install::Install;
use parts::Parts;

/// Name of systemd-repart's definition in a root tree.
const DEFINITION: &str = "usr/lib/repart.d/60-state.conf";

/// Make the disk that a host first runs from: a bootable image with a built release in slot A.
///
/// GPT with an ESP (systemd-boot and the first boot entry), slot A with the release, slot B empty, and a state partition that grows to
/// the end of the real disk. The same build gives the same bytes. Needs mke2fs and debugfs (e2fsprogs), and qemu-img for qcow2.
#[derive(Debug, Args)]
pub(crate) struct Disk {
    /// Build folder of the release, as `bascule release build` or `fetch` left it.
    #[arg(value_name = "BUILD", required_unless_present = "definitions")]
    build: Option<PathBuf>,

    /// The disk image: a new file.
    #[arg(value_name = "OUT", required_unless_present = "definitions")]
    out: Option<PathBuf>,

    /// What kind of file. Default: by the name's ending, else raw.
    #[arg(long, value_enum)]
    format: Option<Format>,

    /// Write systemd-repart's definition, with which the state partition grows to the end of the real disk, into this root tree
    /// before a release is built of it; make no disk.
    #[arg(long, value_name = "TREE", exclusive = true)]
    definitions: Option<PathBuf>,

    /// Size of the whole disk, e.g. `20GiB`: what the other parts leave is the state partition's.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Sizes")]
    size: Option<u64>,

    /// Size of the state partition in the image. Default: 1GiB, or what --size leaves.
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Sizes")]
    state_size: Option<u64>,

    /// The disk's UUID, from which the other partitions' follow. Default: follows from the release.
    #[arg(long, value_name = "UUID", help_heading = "Content")]
    identity: Option<Uuid>,

    #[command(flatten)]
    parts: Parts,
}

impl Disk {
    pub(crate) async fn run(self: Box<Self>) -> anyhow::Result<Exit> {
        blocking(move || self.work()).await
    }

    fn work(&self) -> anyhow::Result<Exit> {
        if let Some(tree) = &self.definitions {
            return definitions(tree);
        }
        let (Some(build), Some(out)) = (&self.build, &self.out) else { bail!("say which build, and where to") };
        ensure!(
            fs::symlink_metadata(out).is_err(),
            "{} is there already; a disk is made in a new file, which is then copied to where it runs (bascule install writes to a \
             disk of this machine)",
            out.display()
        );
        let format = Format::of(self.format, out);
        format.check()?;
        let content = self.parts.content(self.parts.release(build)?, self.size, self.state_size)?;
        let manifest = content.release.manifest();
        let identity = self
            .identity
            .unwrap_or_else(|| identity_of(manifest.product.as_str(), manifest.version.as_str(), content.root_hash));
        let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Beside its place: only a whole disk gets the name.
        let work = tempfile::Builder::new().prefix(".disk-").tempdir_in(folder);
        let work = work.with_context(|| format!("can't write to {}", folder.display()))?;
        let raw = work.path().join("raw");
        let mut first = Installed {
            version: manifest.version.as_str(),
            architecture: manifest.architecture,
            root_hash: content.root_hash,
            data: &mut content.release.image()?,
            verity: &mut content.tree.as_slice(),
        };
        let parts = make(&raw, content.plan(identity), &mut first, content.state())
            .with_context(|| format!("can't make the disk {}", out.display()))?;
        let done = format.convert(&raw, work.path())?;
        if content.is_for_one_machine() {
            // The folder is the owner's alone until here, and what lies in it has keys.
            fs::set_permissions(&done, fs::Permissions::from_mode(0o600))
                .with_context(|| format!("can't write {}", out.display()))?;
        }
        // Not over a file that came meanwhile.
        let done = tempfile::TempPath::try_from_path(done).context("can't find what was made")?;
        done.persist_noclobber(out).with_context(|| format!("can't write {}", out.display()))?;
        File::open(folder).and_then(|folder| folder.sync_all()).context("can't flush the folder")?;
        output::print(&content.summary(&parts, content.sizes.disk()))?;
        Ok(Exit::Success)
    }
}

/// Writes systemd-repart's definition into a root tree.
fn definitions(tree: &Path) -> anyhow::Result<Exit> {
    ensure!(tree.is_dir(), "{} is no folder; --definitions takes the root tree of the OS", tree.display());
    let path = tree.join(DEFINITION);
    let folder = path.parent().unwrap_or(tree);
    fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
    fs::write(&path, GROWING).with_context(|| format!("can't write {}", path.display()))?;
    output::print(&format!("written: {}\n", path.display()))?;
    Ok(Exit::Success)
}
