//! Why a release could not be built.

use std::io;
use std::path::{Path, PathBuf};

use bascule_image::build::BuildError;
use bascule_image::release::ParseError;
use bascule_image::release::names::PathError;
use bascule_image::uki::{MeasureError, UkiError};
use bascule_image::verity::CheckError;
use bascule_names::{Architecture, Version};

/// Why a release could not be built, or a build folder not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read.
    #[error("can't read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file can't be written.
    #[error("can't write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder can't be made.
    #[error("can't make {}", path.display())]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is longer than what it is for may be.
    #[error("{} is longer than {limit} bytes", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
        /// The most bytes.
        limit: u64,
    },
    /// A new build needs a folder of its own.
    #[error("{} is not empty; give a new folder for each build", .0.display())]
    NotEmpty(PathBuf),
    /// A folder that no build left.
    #[error("{} is no build folder: it has no releases in it", path.display())]
    NoBuildFolder {
        /// Which.
        path: PathBuf,
        /// What looking into it gave.
        source: io::Error,
    },
    /// A build folder without a finished release.
    #[error("{} holds no finished release for {architecture}", path.display())]
    NoRelease {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        architecture: Architecture,
    },
    /// A build folder with more than one release.
    #[error("{} holds more than one release for {architecture}", path.display())]
    SeveralReleases {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        architecture: Architecture,
    },
    /// A manifest that no reader would take.
    #[error("{} is no manifest", path.display())]
    NoManifest {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ParseError,
    },
    /// The raw image is gone from its build folder.
    #[error("can't read {}; a base needs its raw image", path.display())]
    NoImage {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path that no repository takes.
    #[error("{path} is no path for a repository")]
    NoRepositoryPath {
        /// Which.
        path: String,
        /// Why.
        source: PathError,
    },
    /// The image's length can't be told.
    #[error("can't measure the image")]
    Measure(#[source] io::Error),
    /// The hash tree can't be made.
    #[error("can't compute the verity tree")]
    Verity(#[from] CheckError),
    /// The boot image can't be made.
    #[error("can't build the UKI")]
    Uki(#[from] UkiError),
    /// What a TPM will hold is not known, so nothing can be signed of it.
    #[error("nothing can be signed of what a TPM will hold")]
    NotMeasured(#[from] MeasureError),
    /// What signs gave no signature.
    #[error("what a TPM will hold can't be signed")]
    PcrSignature(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The full pack can't be made.
    #[error("can't build the full pack")]
    Full(#[source] BuildError),
    /// A delta can't be made.
    #[error("can't build the delta from {from}")]
    Delta {
        /// The release it was to lead from.
        from: Version,
        /// Why.
        source: BuildError,
    },
    /// What was built contradicts itself or a limit.
    #[error("the manifest would be refused by a node")]
    Refused(#[source] ParseError),
}

impl Error {
    pub(crate) fn read(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    pub(crate) fn write(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Write { path, source }
    }

    pub(crate) fn make(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Make { path, source }
    }
}
