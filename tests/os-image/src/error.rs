//! What can go wrong while an image is made, each said in one sentence that ends with what to do.

use std::path::PathBuf;

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program that the build calls is not installed.
    #[error("{tool} is missing: install it with `apt-get install {package}`")]
    MissingTool {
        /// Name of the program.
        tool: String,
        /// Debian package that brings it.
        package: &'static str,
    },
    /// A program ended with an error.
    #[error("{step} failed ({status}): {output}")]
    Tool {
        /// What was being done.
        step: String,
        /// Exit status in words.
        status: String,
        /// The last lines the program wrote.
        output: String,
    },
    /// The disk below the store is full, or too full to begin.
    #[error("{path} has {free_mib} MiB free and the images need about {needed_mib} MiB: make room and start again")]
    NoSpace {
        /// Folder of the store.
        path: PathBuf,
        /// What is free now.
        free_mib: u64,
        /// What the build wants before it begins.
        needed_mib: u64,
    },
    /// Maintainer scripts of packages run in a chroot, which only root may make.
    #[error("operating system images are built as root (package scripts run in a chroot): start this as root")]
    NotRoot,
    /// apt's own configuration names no Debian archive that could be turned to another suite.
    #[error(
        "apt's sources name no Debian archive for {codename}: images are built from the mirror in \
         /etc/apt/sources.list or /etc/apt/sources.list.d, add one there"
    )]
    NoArchive {
        /// The machine's own release.
        codename: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A package did not hold what it always held.
    #[error("{what} is not in the packages that were fetched: {detail}")]
    Unexpected {
        /// What was looked for.
        what: String,
        /// Where and how.
        detail: String,
    },
}

impl Error {
    /// A word for the kind of error that never changes.
    #[must_use]
    pub fn category(&self) -> &'static str {
        match self {
            Self::MissingTool { .. } => "missing-tool",
            Self::Tool { .. } => "tool",
            Self::NoSpace { .. } => "no-space",
            Self::NotRoot => "not-root",
            Self::NoArchive { .. } => "no-archive",
            Self::Io { .. } => "io",
            Self::Unexpected { .. } => "unexpected",
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
