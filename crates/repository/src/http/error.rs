//! Everything that can go wrong between us and a server, told apart so that a caller can react and a metric can count.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Why a download failed. URLs are shown without user, password and query.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// 403, 404 or 410. Object stores answer 403 for a missing object where listing is not allowed.
    #[error("{url} is not on the server (HTTP {status})")]
    NotFound { url: String, status: u16 },
    /// Any other status that is no success.
    #[error("{url} was answered with HTTP {status}")]
    Status { url: String, status: u16 },
    /// The body is longer than the caller's limit (endless data).
    #[error("{url} is longer than the {limit} bytes allowed for it")]
    TooLarge { url: String, limit: u64 },
    /// The body came more slowly than the minimum rate (slow retrieval).
    #[error("{url} arrives more slowly than {minimum} bytes a second")]
    TooSlow { url: String, minimum: u64 },
    /// The overall deadline passed.
    #[error("{url} was not complete after {} s", limit.as_secs_f64())]
    Deadline { url: String, limit: Duration },
    /// No response headers in time.
    #[error("{url} was not answered within {} s", limit.as_secs_f64())]
    NoResponse { url: String, limit: Duration },
    /// The body ended early, and retrying did not help.
    #[error("{url} broke off after {got} of {expected} bytes")]
    Truncated { url: String, got: u64, expected: u64 },
    /// A range was asked for and the whole file came (or the file as a whole is another length than signed).
    #[error("the server of {url} ignores Range requests; serve releases from one that supports them")]
    RangeIgnored { url: String },
    /// The `Content-Range` is not what was asked for, or the file's length is not the signed one.
    #[error("{url}: asked for bytes {asked}, the server says it sends {got}")]
    WrongRange { url: String, asked: String, got: String },
    /// The file behind the URL was replaced while it was being read.
    #[error("{url} changed on the server during the download (ETag {before} became {after})")]
    Changed { url: String, before: String, after: String },
    /// The URL, or a redirect, does not use https.
    #[error("{url} does not use https; releases are fetched by https only")]
    Insecure { url: String },
    /// More redirects than allowed.
    #[error("{url} redirects more than {limit} times")]
    TooManyRedirects { url: String, limit: usize },
    /// The server's certificate is not signed by an authority that we trust, is expired, or is for another name.
    #[error(
        "the certificate of the server of {url} is not trusted; if it is your own authority's, add that as an extra CA"
    )]
    Certificate { url: String, source: Arc<reqwest::Error> },
    /// No certificate authority is known at all, so that no server can be trusted.
    #[error(
        "the certificate of the server of {url} can't be checked, since no certificate authorities are known here: give \
         some as an extra CA, or mount a bundle at /etc/ssl/certs/ca-certificates.crt"
    )]
    NoAuthorities { url: String },
    /// Name look-up, TCP, TLS or proxy failed.
    #[error("can't connect to the server of {url}")]
    Connect { url: String, source: Arc<reqwest::Error> },
    /// The request failed after the connection stood.
    #[error("the request for {url} failed")]
    Request { url: String, source: Arc<reqwest::Error> },
    /// A file of a local repository can't be read.
    #[error("can't read {}", path.display())]
    Local { path: PathBuf, source: Arc<std::io::Error> },
    /// The client could not be made from its settings.
    #[error("the HTTP client can't be set up: {reason}")]
    Settings { reason: String },
}

impl FetchError {
    /// A stable word for metrics and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not-found",
            Self::Status { .. } => "http-status",
            Self::TooLarge { .. } => "endless-data",
            Self::TooSlow { .. } | Self::Deadline { .. } | Self::NoResponse { .. } => "slow-retrieval",
            Self::Truncated { .. } => "truncated",
            Self::RangeIgnored { .. } | Self::WrongRange { .. } => "range-refused",
            Self::Changed { .. } => "changed-during-download",
            Self::Insecure { .. } => "insecure-url",
            Self::TooManyRedirects { .. } => "redirects",
            Self::Certificate { .. } | Self::NoAuthorities { .. } => "certificate",
            Self::Connect { .. } | Self::Request { .. } => "connection",
            Self::Local { .. } => "local-file",
            Self::Settings { .. } => "settings",
        }
    }

    /// Whether the same request may succeed a little later without anybody's doing.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
            Self::NoResponse { .. } | Self::Truncated { .. } | Self::Connect { .. } | Self::Request { .. } => true,
            _ => false,
        }
    }

    /// Whether the server said that there is no such file.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::NotFound { .. } => true,
            Self::Local { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
            _ => false,
        }
    }
}
