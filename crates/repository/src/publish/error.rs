//! The errors of writing a repository.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// Why something was not published. Until [`PublishError`] says otherwise, readers still see the state before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// A file can't be read or written.
    #[error("can't {doing} {}", path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },
    /// Another process is publishing.
    #[error("another process is publishing to {}", path.display())]
    Busy { path: PathBuf },
    /// A key file holds no usable key.
    #[error("{} holds no usable key: {reason}", path.display())]
    Key { path: PathBuf, reason: String },
    /// Too few of a role's keys were given.
    #[error("the {role} role needs signatures of {needed} of its keys, only {given} of the given keys belong to it")]
    NotEnoughKeys { role: String, needed: u64, given: usize },
    /// A threshold that can't be met, no keys, or a key that is not there.
    #[error("the {role} role can't be set up: {reason}")]
    Role { role: String, reason: String },
    /// The folder's metadata is broken: refuse to sign on top of it.
    #[error("the repository's {what} is broken: {reason}")]
    Broken { what: String, reason: String },
    /// There is a repository already, or none.
    #[error("{}: {reason}", path.display())]
    Folder { path: PathBuf, reason: &'static str },
    /// The channel or release is not there, or is there already.
    #[error("{what}: {reason}")]
    Channel { what: String, reason: String },
    /// The repository has no such channel.
    #[error("there is no channel {name}; {}", there_are(known))]
    NoChannel { name: String, known: Vec<String> },
    /// A file that a release names is not what the release says.
    #[error("{path} is not what the manifest says: {reason}")]
    Content { path: String, reason: String },
    /// A signed file would not be accepted by its own reader.
    #[error("the {what} would be refused by a node")]
    Format { what: &'static str, source: bascule_image::release::ParseError },
    /// None of the given keys may sign what is still unsigned.
    #[error("none of the given keys can sign what is asked for, and nothing was changed; it needs: {missing}")]
    Useless { missing: String },
    /// Nothing waits for signatures.
    #[error("nothing waits for signatures in {}", path.display())]
    NoneWaits { path: PathBuf },
    /// It is not clear which of the waiting changes is meant.
    #[error("{asked}; there are: {known}")]
    WhichChange { asked: String, known: String },
    /// More changes wait than anybody can have in mind.
    #[error("{max} changes wait for signatures already; sign or discard them first")]
    TooManyWait { max: usize },
    /// A signing program or a token failed.
    #[error("{signer} gave no signature: {reason}")]
    Signer { signer: String, reason: String },
    /// Reading what was published failed.
    #[error("the published repository does not verify")]
    Verify(#[from] Error),
}

fn there_are(known: &[String]) -> String {
    if known.is_empty() { "the repository has none yet".to_owned() } else { format!("there are: {}", known.join(", ")) }
}

impl PublishError {
    pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { doing, path: path.to_owned(), source }
    }

    pub(super) fn broken(what: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self::Broken { what: what.into(), reason: reason.to_string() }
    }

    /// A stable word for scripts.
    pub fn category(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Busy { .. } => "busy",
            Self::Key { .. } | Self::NotEnoughKeys { .. } | Self::Role { .. } | Self::Useless { .. } => "keys",
            Self::Broken { .. } => "broken-repository",
            Self::Folder { .. } => "folder",
            Self::Channel { .. } | Self::NoChannel { .. } => "channel",
            Self::Content { .. } | Self::Format { .. } => "content",
            Self::NoneWaits { .. } | Self::WhichChange { .. } | Self::TooManyWait { .. } => "waiting",
            Self::Signer { .. } => "signer",
            Self::Verify(error) => error.category(),
        }
    }
}
