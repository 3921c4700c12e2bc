//! `bascule release fetch`: get a release as a node does, into a folder that looks like a build. It can be looked at, booted
//! in a virtual machine, or be the base of the next delta.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use bascule_image::Sha256;
use bascule_image::apply::{Apply, Base, Options};
use bascule_image::pack::PackIndex;
use bascule_image::release::manifest::{File as Described, Manifest};
use bascule_names::{Architecture, ChannelName, RootHash, Version};
use bascule_release::BuildFolder;
use bascule_repository::select::MissingPack;
use bascule_repository::{OpenPack, ReadOptions, Repository, VerifiedManifest};
use clap::Args;

use super::progress::Bar;
use super::source::{self, SourceArguments};
use crate::exit::Exit;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: SourceArguments,

    /// Folder for the release; new or empty.
    #[arg(value_name = "FOLDER")]
    out: PathBuf,

    /// Channel that offers it.
    #[arg(long, default_value = "stable")]
    channel: ChannelName,

    /// The release. Default: what the channel offers.
    #[arg(long = "release", value_name = "VERSION")]
    version: Option<Version>,

    /// Architecture of the image.
    #[arg(long, default_value = "x86-64")]
    architecture: Architecture,

    /// Folder of an earlier build or fetch whose image can save downloading.
    #[arg(long, value_name = "FOLDER")]
    base: Option<PathBuf>,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<Exit> {
    let repository = arguments.source.open().await?;
    let channel = source::channel(&repository, &arguments.channel).await?;
    let release = match &arguments.version {
        Some(version) => channel.installable(version, arguments.architecture)?,
        None => match channel.newest(arguments.architecture) {
            Some(release) => release,
            None => bail!("channel {} offers nothing for {}", arguments.channel, arguments.architecture),
        },
    };
    let verified = repository.manifest(&channel, release, arguments.architecture).await?;
    let base = match &arguments.base {
        Some(path) => {
            let (folder, manifest) = BuildFolder::open(path, arguments.architecture)?;
            Some((folder.image()?, manifest.verity.root_hash))
        }
        None => None,
    };
    let bases: Vec<RootHash> = base.iter().map(|(_, root_hash)| root_hash.clone()).collect();
    let options = ReadOptions::default();
    let pack = repository.open_pack(&verified, &bases, MissingPack::FallBack, &options).await?;
    for (path, error) in &pack.missing {
        output::say(&format!("{path} is missing on the server ({error}), taking the next cheapest pack"));
    }
    let folder = BuildFolder::create(&arguments.out)?;
    let files = small_files(&repository, &verified).await?;
    let manifest = verified.manifest;
    let text = tokio::task::spawn_blocking(move || write(&folder, &manifest, &pack, base, files))
        .await
        .context("the download was stopped")??;
    output::print(&text)?;
    Ok(Exit::Success)
}

type Files = Vec<(Described, bascule_repository::RemoteFile)>;

async fn small_files(repository: &Repository, release: &VerifiedManifest) -> anyhow::Result<Files> {
    let manifest = &release.manifest;
    let described = [&manifest.uki].into_iter().chain(manifest.packages.iter().map(|list| &list.file));
    let mut files = Vec::new();
    for file in described {
        files.push((file.clone(), repository.open_file(release, file, ReadOptions::default()).await?));
    }
    Ok(files)
}

fn write(
    folder: &BuildFolder,
    manifest: &Manifest,
    pack: &OpenPack,
    base: Option<(File, RootHash)>,
    files: Files,
) -> anyhow::Result<String> {
    let index = PackIndex::read(&pack.file, manifest, &pack.pack)?;
    let path = folder.image_path();
    let image = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .with_context(|| format!("can't write {}", path.display()))?;
    image.set_len(manifest.image.size).with_context(|| format!("can't write {}", path.display()))?;
    let parameters = manifest.verity.parameters();
    let job = Apply {
        index: &index,
        parameters: &parameters,
        source: &pack.file,
        base: base.as_ref().map(|(image, root_hash)| Base { root_hash: Sha256::from(root_hash), image }),
        sink: &image,
        options: Options { resume: false, ..Options::default() },
    };
    let applied = Bar::new(pack.pack.path.as_str(), manifest.image.size).during(|watch| job.run(watch))?;
    for (file, remote) in &files {
        let mut out = folder.create_file(file.path.as_str())?;
        remote.copy_verified(&file.digest, file.path.as_str(), &mut out)?;
    }
    // Last, so that an interrupted fetch is not taken for a release.
    let written = folder.finish(manifest)?;
    Ok(format!(
        "{} {}: {} moved for an image of {}, root hash {}\n{}\n",
        manifest.product,
        manifest.version,
        output::bytes(applied.report.fetched_bytes),
        output::bytes(manifest.image.size),
        manifest.verity.root_hash,
        written.display()
    ))
}
