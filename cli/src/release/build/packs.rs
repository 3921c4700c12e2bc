//! The packs of a build: a full one, and a delta from each base.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use bascule_image::Sha256;
use bascule_image::build::{self, Effort, Image};
use bascule_image::io::ReadAt as _;
use bascule_image::release::manifest::{Manifest, Pack};
use bascule_image::verity;
use bascule_names::{Architecture, RootHash, Version};
use clap::Args;

use super::folder::BuildFolder;
use crate::release::progress::Bar;

/// How packs are built.
#[derive(Debug, Args)]
pub(crate) struct PackArguments {
    /// Build folder of an earlier release to build a delta from. May be repeated.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) base: Vec<PathBuf>,

    /// Compress faster and worse: for trying things out.
    #[arg(long)]
    fast: bool,

    /// Threads that compress. Default: one for each processor.
    #[arg(long, value_name = "N")]
    workers: Option<NonZeroUsize>,
}

impl PackArguments {
    fn options(&self) -> build::Options {
        let effort = if self.fast { Effort::Fast } else { Effort::Good };
        let default = build::Options::default();
        build::Options { effort, workers: self.workers.unwrap_or(default.workers), ..default }
    }

    pub(crate) fn workers(&self) -> NonZeroUsize {
        self.options().workers
    }
}

/// The release that packs are built for.
#[derive(Debug)]
pub(crate) struct Release<'a> {
    pub(crate) folder: &'a BuildFolder,
    pub(crate) version: &'a Version,
    pub(crate) architecture: Architecture,
    pub(crate) root_hash: RootHash,
}

impl Release<'_> {
    /// Builds the full pack.
    pub(crate) fn full(&self, arguments: &PackArguments) -> anyhow::Result<Pack> {
        let image = self.folder.image()?;
        let path = BuildFolder::repository_path(self.version, self.architecture, "full.pack");
        let mut out = std::io::BufWriter::new(self.folder.create_file(&path)?);
        let this = Image { root_hash: Sha256::from(&self.root_hash), bytes: &image };
        let bar = Bar::new("full pack", image.size().context("can't measure the image")?);
        let built = bar
            .during(|watch| build::build_full(this, &mut out, &arguments.options(), watch))
            .context("can't build the full pack")?;
        Ok(built.to_manifest_entry(path.parse().context("the pack's path is not accepted")?))
    }

    /// Builds a delta from an earlier build.
    pub(crate) fn delta(&self, base: &std::path::Path, arguments: &PackArguments) -> anyhow::Result<Pack> {
        let (base_folder, manifest) = BuildFolder::open(base, self.architecture)?;
        let base_image = base_folder.image()?;
        let image = self.folder.image()?;
        check_base(&base_image, &manifest, arguments.workers())
            .with_context(|| format!("{} can't be a base", base.display()))?;
        let base_root = manifest.verity.root_hash.clone();
        let name = format!("from-{base_root}.pack");
        let path = BuildFolder::repository_path(self.version, self.architecture, &name);
        let mut out = std::io::BufWriter::new(self.folder.create_file(&path)?);
        let this = Image { root_hash: Sha256::from(&self.root_hash), bytes: &image };
        let from = Image { root_hash: Sha256::from(&base_root), bytes: &base_image };
        let bar =
            Bar::new(&format!("delta from {}", manifest.version), image.size().context("can't measure the image")?);
        let built = bar
            .during(|watch| build::build_delta(this, from, &mut out, &arguments.options(), watch))
            .with_context(|| format!("can't build the delta from {}", manifest.version))?;
        Ok(built.to_manifest_entry(path.parse().context("the pack's path is not accepted")?))
    }
}

/// A delta from an image that is not what nodes run would be refused by every node.
fn check_base(image: &std::fs::File, manifest: &Manifest, workers: NonZeroUsize) -> anyhow::Result<()> {
    let size = image.size().context("can't measure its image")?;
    ensure!(size == manifest.image.size, "its image has {size} bytes, its manifest says {}", manifest.image.size);
    let bar = Bar::new("check the base", size);
    let tree = bar
        .during(|watch| verity::build(image, size, &manifest.verity.parameters(), workers, watch))
        .context("can't read its image")?;
    let found = RootHash::from_bytes(tree.root_hash().as_bytes());
    let expected = &manifest.verity.root_hash;
    ensure!(found == *expected, "its image has root hash {found}, its manifest says {expected}");
    Ok(())
}
