//! Why a release can't start.

use std::path::PathBuf;

use bascule_image::verity::SuperblockError;
use uuid::Uuid;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{step}: {source}")]
    System { step: String, source: std::io::Error },
    #[error("the kernel's command line has no roothash= of 64 hexadecimal digits")]
    NoRootHash,
    #[error("no disk holds the partitions {data} and {hashes} that roothash= asks for")]
    NoSlot { data: Uuid, hashes: Uuid },
    #[error("{path} holds no dm-verity superblock that is understood: {why}")]
    Superblock { path: PathBuf, why: SuperblockError },
}

impl Error {
    pub(crate) fn system<E: Into<std::io::Error>>(step: impl Into<String>) -> impl FnOnce(E) -> Self {
        let step = step.into();
        move |source| Self::System { step, source: source.into() }
    }
}
