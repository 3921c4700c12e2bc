//! The knobs of a download, with defaults that a slow but honest server passes and a hostile one does not.

use std::time::Duration;

use url::Url;

/// How the proxy is chosen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ProxySetting {
    /// `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` of the environment.
    #[default]
    FromEnvironment,
    /// Never use a proxy, whatever the environment says.
    Direct,
    /// This proxy for every request.
    Url(Url),
}

/// Settings of an [`HttpClient`](super::HttpClient).
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Time for name look-up, TCP and TLS of one attempt.
    pub connect_timeout: Duration,
    /// Time until the headers of one response are there.
    pub response_timeout: Duration,
    /// A body that brings fewer bytes a second than this, averaged over [`Self::rate_window`], is given up. Only time
    /// spent waiting for the network counts, not the time in which the receiver was busy.
    pub minimum_bytes_per_second: u64,
    /// The window over which slowness is judged.
    pub rate_window: Duration,
    /// Overall time for one metadata file, all retries included.
    pub metadata_deadline: Duration,
    /// Overall time for one pack or UKI, all retries included.
    pub download_deadline: Duration,
    /// Retries after a failure that may pass (connection, time-out, 408, 429, 5xx, a body that breaks off).
    pub retries: u32,
    /// First pause before a retry. It doubles each time, with full jitter.
    pub backoff: Duration,
    /// Longest pause, also where the server asks for more by `Retry-After`.
    pub backoff_limit: Duration,
    /// Redirects that are followed; each must lead to https.
    pub redirects: usize,
    /// The proxy.
    pub proxy: ProxySetting,
    /// PEM bundles of certificate authorities trusted beside the system's.
    pub extra_ca_pem: Vec<Vec<u8>>,
    /// Trust only [`Self::extra_ca_pem`], not the system's certificate authorities.
    pub only_extra_ca: bool,
    /// The `User-Agent` header.
    pub user_agent: String,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            response_timeout: Duration::from_secs(30),
            minimum_bytes_per_second: 4 * 1024,
            rate_window: Duration::from_secs(20),
            metadata_deadline: Duration::from_secs(120),
            download_deadline: Duration::from_secs(6 * 3600),
            retries: 4,
            backoff: Duration::from_millis(500),
            backoff_limit: Duration::from_secs(30),
            redirects: 5,
            proxy: ProxySetting::FromEnvironment,
            extra_ca_pem: Vec::new(),
            only_extra_ca: false,
            user_agent: concat!("bascule/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}
