//! The one HTTP client: https only, few redirects, bounded retries with jitter.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::RngExt as _;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, Proxy, StatusCode, redirect};
use tokio::time::Instant;
use url::Url;

use super::authorities::client_with_authorities;
use super::body::Body;
use super::error::FetchError;
use super::settings::{HttpSettings, ProxySetting};

/// HTTP/2 flow control window in bytes: 20 MB/s at a round trip of 50 ms.
const WINDOW: u32 = 1 << 20;

/// A client for one repository. Cheap to clone; connections are shared.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: reqwest::Client,
    /// Whether any certificate authority is known.
    trusts_somebody: bool,
    settings: Arc<HttpSettings>,
}

/// Marks a redirect that leaves https, so that it can be told from other redirect errors.
#[derive(Debug, thiserror::Error)]
#[error("redirect to a URL that does not use https")]
struct InsecureRedirect;

/// Marks a redirect loop.
#[derive(Debug, thiserror::Error)]
#[error("too many redirects")]
struct RedirectLimit;

/// A URL as it may appear in messages: no user, password, query or fragment.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for URLs that can't have an authority, and those hold no secrets.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

impl HttpClient {
    /// Makes a client. The process must have installed a rustls crypto provider first
    /// (`rustls::crypto::ring::default_provider().install_default()`, the first line of each main).
    ///
    /// # Errors
    /// [`FetchError::Settings`] when no provider is installed, a CA bundle holds no certificate, or the proxy is
    /// unusable. Where no certificate authority is known at all, that is told when a server is asked.
    pub fn new(settings: HttpSettings) -> Result<Self, FetchError> {
        let refuse = |reason: String| FetchError::Settings { reason };
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(refuse("no TLS provider is installed in this process".to_owned()));
        }
        let mut certificates = Vec::new();
        for pem in &settings.extra_ca_pem {
            let found = Certificate::from_pem_bundle(pem)
                .map_err(|error| refuse(format!("an extra CA bundle is no PEM ({error})")))?;
            if found.is_empty() {
                return Err(refuse("an extra CA bundle holds no certificate".to_owned()));
            }
            certificates.extend(found);
        }
        let limit = settings.redirects;
        let proxy = match &settings.proxy {
            ProxySetting::FromEnvironment | ProxySetting::Direct => None,
            ProxySetting::Url(url) => {
                Some(Proxy::all(url.clone()).map_err(|error| refuse(format!("the proxy URL is unusable ({error})")))?)
            }
        };
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(&settings.user_agent)
                .connect_timeout(settings.connect_timeout)
                .https_only(true)
                .referer(false)
                .http1_max_headers(64)
                .http2_max_header_list_size(16 * 1024)
                // What may arrive before we read it, and so what a connection may hold in memory.
                .http2_initial_stream_window_size(WINDOW)
                .http2_initial_connection_window_size(WINDOW)
                .pool_max_idle_per_host(4)
                .redirect(redirect::Policy::custom(move |attempt| {
                    if attempt.url().scheme() != "https" {
                        attempt.error(InsecureRedirect)
                    } else if attempt.previous().len() > limit {
                        attempt.error(RedirectLimit)
                    } else {
                        attempt.follow()
                    }
                }));
            match (&settings.proxy, &proxy) {
                (_, Some(proxy)) => builder.proxy(proxy.clone()),
                (ProxySetting::Direct, None) => builder.no_proxy(),
                (_, None) => builder,
            }
        };
        let made = if settings.only_extra_ca {
            let knows_some = !certificates.is_empty();
            builder().tls_certs_only(certificates).build().map(|client| (client, knows_some))
        } else {
            client_with_authorities(builder, &certificates)
        };
        let (client, trusts_somebody) = made.map_err(|error| refuse(chain(&error)))?;
        Ok(Self { client, trusts_somebody, settings: Arc::new(settings) })
    }

    /// The settings this client was made with.
    pub fn settings(&self) -> &HttpSettings {
        &self.settings
    }

    /// Fetches a whole small file into memory, retrying what may pass.
    pub(crate) async fn get_small(&self, url: &Url, limit: u64, overall: Duration) -> Result<Bytes, FetchError> {
        let deadline = Instant::now() + overall;
        let mut attempt = 0;
        loop {
            let error = match self.get_once(url, limit, deadline, overall).await {
                Ok(bytes) => return Ok(bytes),
                Err(failure) => failure,
            };
            attempt += 1;
            self.pause(error, attempt, url, deadline, overall).await?;
        }
    }

    async fn get_once(&self, url: &Url, limit: u64, deadline: Instant, overall: Duration) -> Result<Bytes, Failure> {
        let response = self.send(url, HeaderMap::new(), deadline, overall).await?;
        if !response.status().is_success() {
            return Err(refused(&response));
        }
        let expected = response.content_length();
        if expected.is_some_and(|length| length > limit) {
            return Err(FetchError::TooLarge { url: shown(url), limit }.into());
        }
        let mut body = Body::new(response, &self.settings, deadline, overall);
        let mut collected = BytesMut::new();
        while let Some(bytes) = body.next().await? {
            if (collected.len() as u64).saturating_add(bytes.len() as u64) > limit {
                return Err(FetchError::TooLarge { url: shown(url), limit }.into());
            }
            collected.extend_from_slice(&bytes);
        }
        Ok(collected.freeze())
    }

    /// Sends one request and waits for the response headers.
    pub(super) async fn send(
        &self,
        url: &Url,
        headers: HeaderMap,
        deadline: Instant,
        overall: Duration,
    ) -> Result<reqwest::Response, FetchError> {
        if url.scheme() != "https" {
            return Err(FetchError::Insecure { url: shown(url) });
        }
        let patience = self.settings.response_timeout + self.settings.connect_timeout;
        let until = (Instant::now() + patience).min(deadline);
        let sent = tokio::time::timeout_at(until, self.client.get(url.clone()).headers(headers).send()).await;
        match sent {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.classify(url, error)),
            Err(_) if Instant::now() >= deadline => Err(FetchError::Deadline { url: shown(url), limit: overall }),
            Err(_) => Err(FetchError::NoResponse { url: shown(url), limit: patience }),
        }
    }

    fn classify(&self, url: &Url, error: reqwest::Error) -> FetchError {
        let url = shown(url);
        if has_cause::<InsecureRedirect>(&error) {
            FetchError::Insecure { url: format!("a redirect of {url}") }
        } else if has_cause::<RedirectLimit>(&error) {
            FetchError::TooManyRedirects { url, limit: self.settings.redirects }
        } else if certificate_refused(&error) && !self.trusts_somebody {
            FetchError::NoAuthorities { url }
        } else if certificate_refused(&error) {
            FetchError::Certificate { url, source: error.without_url().into() }
        } else if error.is_connect() || error.is_timeout() {
            FetchError::Connect { url, source: error.without_url().into() }
        } else {
            FetchError::Request { url, source: error.without_url().into() }
        }
    }

    /// Waits before retry number `attempt`, or gives the error back when it will not pass, the retries are used up,
    /// or the deadline would pass while waiting.
    pub(super) async fn pause(
        &self,
        failure: Failure,
        attempt: u32,
        url: &Url,
        deadline: Instant,
        overall: Duration,
    ) -> Result<(), FetchError> {
        if !failure.error.may_pass() || attempt > self.settings.retries {
            return Err(failure.error);
        }
        let wait = backoff(&self.settings, attempt, failure.retry_after, rand::rng().random());
        if Instant::now() + wait >= deadline {
            tracing::debug!(url = %shown(url), error = %failure.error, "no time left for a retry");
            return Err(FetchError::Deadline { url: shown(url), limit: overall });
        }
        tracing::debug!(url = %shown(url), error = %failure.error, attempt, ?wait, "will retry");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// A failed attempt, with what the server asked for by `Retry-After`.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: FetchError,
    retry_after: Option<Duration>,
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self { error, retry_after: None }
    }
}

/// The failure for a response that is no success.
pub(super) fn refused(response: &reqwest::Response) -> Failure {
    let url = shown(response.url());
    let status = response.status();
    let error = match status {
        StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE => {
            FetchError::NotFound { url, status: status.as_u16() }
        }
        _ => FetchError::Status { url, status: status.as_u16() },
    };
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Failure { error, retry_after: seconds.map(Duration::from_secs) }
}

/// The pause before a retry: exponential with full jitter (`dice` in 0..1), at least what the server asked for, and
/// never above the limit.
fn backoff(settings: &HttpSettings, attempt: u32, retry_after: Option<Duration>, dice: f64) -> Duration {
    let ceiling =
        settings.backoff.saturating_mul(2u32.saturating_pow(attempt.saturating_sub(1))).min(settings.backoff_limit);
    ceiling.mul_f64(dice.clamp(0.0, 1.0)).max(retry_after.unwrap_or_default()).min(settings.backoff_limit)
}

/// The causes of an error. What `io::Error` wraps is looked at too; its own `source` leaves that out.
fn causes(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(error), |cause| {
        match cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        }
    })
}

fn has_cause<T: std::error::Error + 'static>(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| cause.is::<T>())
}

fn certificate_refused(error: &reqwest::Error) -> bool {
    causes(error).any(|cause| matches!(cause.downcast_ref(), Some(rustls::Error::InvalidCertificate(_))))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_a_url_are_not_shown() {
        let url: Url = "https://user:secret@host.example/a/b?token=abc#x".parse().unwrap();
        assert_eq!(shown(&url), "https://host.example/a/b");
    }

    #[test]
    fn the_pause_doubles_and_stays_under_its_limit() {
        let settings = HttpSettings::default();
        assert_eq!(backoff(&settings, 1, None, 1.0), Duration::from_millis(500));
        assert_eq!(backoff(&settings, 3, None, 1.0), Duration::from_secs(2));
        assert_eq!(backoff(&settings, 60, None, 1.0), settings.backoff_limit);
        assert_eq!(backoff(&settings, 1, Some(Duration::from_secs(7)), 0.0), Duration::from_secs(7));
        assert_eq!(backoff(&settings, 1, Some(Duration::from_secs(86_400)), 0.0), settings.backoff_limit);
    }
}
