//! The errors of reading a repository, sorted by what they mean to a node rather than by where they came from.

use std::path::PathBuf;

use chrono::{DateTime, Utc};

use crate::http::FetchError;
use crate::time::ClockBehind;

/// Why a repository, or something in it, is not accepted. Messages don't repeat their source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The network or the server.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Too few valid signatures of the keys that the root names.
    #[error("the {role} metadata is not signed by enough of its keys{detail}")]
    Signature { role: String, detail: String },
    /// A version went down, or a role disappeared.
    #[error("rollback refused: {reason}")]
    Rollback { reason: String },
    /// Metadata or a file is not the one that the signed metadata names.
    #[error("{what} is not the one that the signed metadata names: {reason}")]
    Mismatch { what: String, reason: String },
    /// Metadata is past its expiry.
    #[error("the {role} metadata expired at {expired} (judged at {now}); the vendor must renew it")]
    Expired { role: String, expired: DateTime<Utc>, now: DateTime<Utc> },
    /// The node's clock can't be trusted.
    #[error(transparent)]
    ClockBehind(#[from] ClockBehind),
    /// The trust root itself is unusable.
    #[error("the trust root is not a valid TUF root: {reason}")]
    TrustRoot { reason: String },
    /// Signed, but not in a form this version understands, or beyond a limit.
    #[error("{what} can't be used: {reason}")]
    Invalid { what: String, reason: String },
    /// Metadata of another TUF specification than this version reads.
    #[error("the {role} metadata is written by version {found:?} of the TUF specification; this version reads 1.x")]
    SpecVersion { role: String, found: String },
    /// A bound on what a repository may cost was reached. Nothing was fetched beyond it.
    #[error("{what} is beyond a limit: {reason}")]
    Limit { what: String, reason: String },
    /// A delegated role on the way to a file can't be used. Only what is looked for through this role is concerned.
    #[error("the role {role}, which is asked for {path}, can't be used")]
    Role { role: String, path: String, source: Box<Error> },
    /// A signed file can't be parsed.
    #[error("{what} can't be read")]
    Format { what: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// The repository has no such file.
    #[error("the repository has no {what}{hint}")]
    Absent { what: String, hint: String },
    /// A newer version wrote what this one must not ignore into the datastore.
    #[error(
        "the datastore {} was written by a newer version, which says that {part} must be understood; run that version", path.display()
    )]
    DatastoreNewer { path: PathBuf, part: String },
    /// The datastore can't be used.
    #[error("the datastore {} can't be used: {doing}", path.display())]
    Datastore { path: PathBuf, doing: &'static str, source: std::io::Error },
    /// What is to be remembered of a repository is more than may be.
    #[error(
        "what has to be remembered of this repository takes {bytes} bytes, and {most} are allowed here; its publisher has to make \
         its metadata smaller (take old releases out), or who trusts it has to trust a newer root"
    )]
    DatastoreTooLarge { bytes: u64, most: u64 },
    /// Others leave no room for it.
    #[error(
        "there is no room to remember {bytes} bytes of this repository: what is remembered of others in {} takes {taken} of the {most} \
         bytes that there are for one of its size; have fewer repositories read at once", path.display()
    )]
    DatastoreNoRoom { path: PathBuf, bytes: u64, taken: u64, most: u64 },
    /// Another process uses the datastore.
    #[error("the datastore {} is in use by another process", path.display())]
    Busy { path: PathBuf },
    /// The caller asked to stop.
    #[error("the download was stopped")]
    Cancelled,
}

impl Error {
    /// A stable word for metrics and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Fetch(error) => error.category(),
            Self::Signature { .. } => "signature",
            Self::Rollback { .. } => "rollback",
            Self::Mismatch { .. } => "mismatch",
            Self::Expired { .. } => "expired",
            Self::ClockBehind(_) => "clock-behind",
            Self::TrustRoot { .. } => "trust-root",
            Self::Invalid { .. } => "unacceptable",
            Self::SpecVersion { .. } => "spec-version",
            Self::Limit { .. } | Self::DatastoreTooLarge { .. } => "limit",
            Self::Role { source, .. } => source.category(),
            Self::Format { .. } => "format",
            Self::Absent { .. } => "absent",
            Self::Datastore { .. } | Self::DatastoreNewer { .. } | Self::DatastoreNoRoom { .. } | Self::Busy { .. } => {
                "datastore"
            }
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether trying again later can help without anybody's doing: network trouble, or another process at work.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Fetch(error) => error.may_pass() || error.category() == "slow-retrieval",
            Self::Busy { .. } | Self::Cancelled => true,
            Self::Role { source, .. } => source.is_transient(),
            _ => false,
        }
    }

    /// What is wrong, without the role in which it is wrong: never [`Self::Role`].
    pub fn fault(&self) -> &Self {
        match self {
            Self::Role { source, .. } => source.fault(),
            other => other,
        }
    }
}

/// The error and its causes in one line, for places that take only text.
pub(crate) fn in_one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        // Some libraries print their source within their own text.
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}
