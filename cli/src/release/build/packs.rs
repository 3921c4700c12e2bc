//! The packs of a build: a full one, and a delta from each base.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use bascule_image::Sha256;
use bascule_image::build::{self, Effort};
use bascule_image::io::ReadAt as _;
use bascule_image::release::manifest::{Manifest, Pack};
use bascule_image::verity;
use bascule_names::RootHash;
use bascule_release::{Base, BuildFolder, Release};
use clap::Args;

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

/// Builds the full pack.
pub(super) fn full(release: &Release<'_>, arguments: &PackArguments) -> anyhow::Result<Pack> {
    let bar = Bar::new("full pack", release.hashed.size);
    Ok(bar.during(|watch| release.full(&arguments.options(), watch))?)
}

/// Builds a delta from an earlier build.
pub(super) fn delta(release: &Release<'_>, base: &Path, arguments: &PackArguments) -> anyhow::Result<Pack> {
    let (folder, manifest) = BuildFolder::open(base, release.identity.architecture)?;
    let image = folder.image()?;
    check_base(&image, &manifest, arguments.workers())
        .with_context(|| format!("{} can't be a base", base.display()))?;
    let root_hash = Sha256::from(&manifest.verity.root_hash);
    let from = Base { version: &manifest.version, root_hash, image: &image };
    let bar = Bar::new(&format!("delta from {}", manifest.version), release.hashed.size);
    Ok(bar.during(|watch| release.delta(from, &arguments.options(), watch))?)
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
