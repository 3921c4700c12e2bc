//! The steps of Bascule's own that are measured, each in a process of its own.

use std::fs::File;
use std::io::BufWriter;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bascule_image::apply::{self, Apply, Base};
use bascule_image::build::{self, Effort, Image};
use bascule_image::digest::Sha256;
use bascule_image::io::Source;
use bascule_image::pack::PackIndex;
use bascule_image::verity::{self, Parameters};
use bascule_image::work::Watch;
use clap::Subcommand;

use crate::http::HttpSource;
use crate::tools;

const WORKERS: NonZeroUsize = NonZeroUsize::new(2).unwrap();

/// One measured step.
#[derive(Debug, Subcommand)]
pub(crate) enum Step {
    /// Build a pack.
    #[command(hide = true)]
    Pack {
        image: PathBuf,
        output: PathBuf,
        #[arg(long)]
        base: Option<PathBuf>,
        #[arg(long)]
        fast: bool,
    },
    /// Apply a pack from the loopback server to a new file.
    #[command(hide = true)]
    Apply {
        port: u16,
        pack: PathBuf,
        output: PathBuf,
        #[arg(long)]
        base: Option<PathBuf>,
    },
    /// Check an image against the root hash it has: what reading a slot back costs.
    #[command(hide = true)]
    ReadBack { image: PathBuf },
    /// Print the bytes that a block index would fetch.
    #[command(hide = true)]
    BlockIndex { image: PathBuf, base: PathBuf },
}

impl Step {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Pack { image, output, base, fast } => pack(&image, &output, base.as_deref(), fast),
            Self::Apply { port, pack, output, base } => apply(port, &pack, &output, base.as_deref()),
            Self::ReadBack { image } => root_hash(&image).map(drop),
            Self::BlockIndex { image, base } => {
                println!("{}", tools::block_index(&image, &base)?);
                Ok(())
            }
        }
    }
}

fn parameters() -> Parameters {
    Parameters { salt: vec![0xBA; 32], uuid: [0x5C; 16] }
}

fn root_hash(image: &Path) -> Result<Sha256> {
    let file = File::open(image)?;
    let size = file.metadata()?.len();
    Ok(verity::build(&file, size, &parameters(), WORKERS, &Watch::none())?.root_hash())
}

/// The root hash beside an image, so that building packs is measured without hashing.
pub(crate) fn noted_root_hash(image: &Path) -> Result<Sha256> {
    let note = image.with_extension("root-hash");
    if !note.exists() {
        std::fs::write(&note, root_hash(image)?.as_bytes())?;
    }
    let bytes: [u8; 32] = std::fs::read(&note)?.try_into().map_err(|_| anyhow::anyhow!("{note:?} has no 32 bytes"))?;
    Ok(Sha256::from_bytes(bytes))
}

fn pack(image: &Path, output: &Path, base: Option<&Path>, fast: bool) -> Result<()> {
    let effort = if fast { Effort::Fast } else { Effort::Good };
    let options = build::Options { effort, workers: WORKERS, ..build::Options::default() };
    let bytes = File::open(image)?;
    let target = Image { root_hash: noted_root_hash(image)?, bytes: &bytes };
    let mut file = BufWriter::new(File::create(output)?);
    let built = match base {
        None => build::build_full(target, &mut file, &options, &Watch::none())?,
        Some(base) => {
            let bytes = File::open(base)?;
            let base = Image { root_hash: noted_root_hash(base)?, bytes: &bytes };
            build::build_delta(target, base, &mut file, &options, &Watch::none())?
        }
    };
    std::fs::write(output.with_extension("index-length"), built.index.length.to_string())?;
    Ok(())
}

fn apply(port: u16, pack: &Path, output: &Path, base: Option<&Path>) -> Result<()> {
    let name = pack.file_name().and_then(|name| name.to_str()).context("the pack has no name")?.to_owned();
    let source = HttpSource { port, name };
    let size = std::fs::metadata(pack)?.len();
    let length: u64 = std::fs::read_to_string(pack.with_extension("index-length"))?.parse()?;
    let mut bytes = Vec::new();
    source.read_range(size - length, length)?.read_to_end(&mut bytes)?;
    let index = PackIndex::parse(&bytes)?;
    drop(bytes);
    let slot = File::options().read(true).write(true).create(true).truncate(true).open(output)?;
    slot.set_len(index.image_size())?;
    let base_file = base.map(File::open).transpose()?;
    let base = match (&base_file, base) {
        (Some(file), Some(path)) => Some(Base { root_hash: noted_root_hash(path)?, image: file }),
        _ => None,
    };
    let options = apply::Options { workers: WORKERS, resume: false, ..apply::Options::default() };
    let parameters = parameters();
    let job = Apply { index: &index, parameters: &parameters, source: &source, base, sink: &slot, options };
    let applied = job.run(&Watch::none())?;
    ensure!(applied.tree.root_hash() == index.root_hash(), "another root hash");
    Ok(())
}
