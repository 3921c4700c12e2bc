//! One byte range of one big file, resumed in the middle when the connection breaks. All ranges of a file share a
//! [`Validator`], so that a file which is replaced on the server between two requests is noticed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use tokio::time::Instant;
use url::Url;

use super::body::Body;
use super::client::{Failure, HttpClient, refused, shown};
use super::error::FetchError;

/// Progress that makes a broken connection count as a new start rather than as another failed attempt. Without a
/// floor, a server that sends one byte for each connection would be retried for ever (until the deadline).
const PROGRESS_FOR_FRESH_RETRIES: u64 = 1 << 20;

/// What identifies the file that is being read: its signed length, and the ETag of the first response.
#[derive(Debug, Clone)]
pub(crate) struct Validator {
    length: u64,
    etag: Arc<Mutex<Option<HeaderValue>>>,
    /// The server answers `If-Range` with the whole file although the file is the same.
    unconditional: Arc<AtomicBool>,
}

impl Validator {
    /// For a file of this signed length.
    pub(crate) fn new(length: u64) -> Self {
        Self { length, etag: Arc::default(), unconditional: Arc::default() }
    }

    fn known(&self) -> Option<HeaderValue> {
        self.etag.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What `If-Range` says: the ETag of the first response. RFC 9110, 13.1.5: it takes strong validators only.
    fn condition(&self) -> Option<HeaderValue> {
        let wanted = !self.unconditional.load(Ordering::Relaxed);
        self.known().filter(|etag| wanted && !etag.as_bytes().starts_with(b"W/"))
    }

    /// Compares a response's ETag with the first one seen.
    fn check(&self, url: &Url, headers: &HeaderMap) -> Result<(), FetchError> {
        let Some(fresh) = headers.get(ETAG) else { return Ok(()) };
        let mut known = self.etag.lock().unwrap_or_else(PoisonError::into_inner);
        match known.as_ref() {
            None => *known = Some(fresh.clone()),
            Some(before) if before == fresh => {}
            Some(before) => {
                let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
                return Err(FetchError::Changed { url: shown(url), before: text(before), after: text(fresh) });
            }
        }
        Ok(())
    }
}

/// Reads `position..end` of a file.
#[derive(Debug)]
pub(crate) struct RangeReader {
    client: HttpClient,
    url: Url,
    validator: Validator,
    position: u64,
    end: u64,
    body: Option<Body>,
    attempt: u32,
    progress: u64,
    deadline: Instant,
    overall: Duration,
}

impl RangeReader {
    /// `deadline` bounds the whole file's download, all ranges together.
    pub(crate) fn new(
        client: HttpClient,
        url: Url,
        validator: Validator,
        offset: u64,
        length: u64,
        deadline: Instant,
    ) -> Self {
        let overall = client.settings().download_deadline;
        let end = offset.saturating_add(length).min(validator.length);
        Self {
            client,
            url,
            validator,
            position: offset.min(end),
            end,
            body: None,
            attempt: 0,
            progress: 0,
            deadline,
            overall,
        }
    }

    /// The next piece of the range, or `None` when all of it was given.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            if self.position >= self.end {
                self.body = None;
                return Ok(None);
            }
            let failure = match self.advance().await {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(failure) => failure,
            };
            self.body = None;
            if self.progress >= PROGRESS_FOR_FRESH_RETRIES {
                self.attempt = 0;
            }
            self.progress = 0;
            self.attempt += 1;
            self.client.pause(failure, self.attempt, &self.url, self.deadline, self.overall).await?;
        }
    }

    async fn advance(&mut self) -> Result<Bytes, Failure> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.request().await?,
        };
        let Some(mut bytes) = body.next().await? else {
            return Err(FetchError::Truncated { url: shown(&self.url), got: self.position, expected: self.end }.into());
        };
        let left = self.end - self.position;
        if bytes.len() as u64 > left {
            // Only a server that answers with more than its own Content-Range gets here.
            bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        } else {
            self.body = Some(body);
        }
        self.position += bytes.len() as u64;
        self.progress += bytes.len() as u64;
        Ok(bytes)
    }

    /// Asks for what is left of the range, and accepts only exactly that.
    async fn request(&self) -> Result<Body, Failure> {
        let condition = self.validator.condition();
        let conditional = condition.is_some();
        match self.request_if(condition).await {
            // With If-Range, 200 means that the file changed (RFC 9110, 13.1.5), which its ETag was asked about. There are
            // servers and caches that answer so whatever it says. Without If-Range they give the range, and what comes is
            // checked by digest anyway.
            Err(Failure { error: FetchError::RangeIgnored { url }, .. }) if conditional => {
                tracing::debug!(url, "the server gives no ranges with If-Range; asking without");
                self.validator.unconditional.store(true, Ordering::Relaxed);
                self.request_if(None).await
            }
            outcome => outcome,
        }
    }

    async fn request_if(&self, condition: Option<HeaderValue>) -> Result<Body, Failure> {
        let mut headers = HeaderMap::new();
        let asked = format!("{}-{}", self.position, self.end - 1);
        if let Ok(value) = HeaderValue::try_from(format!("bytes={asked}")) {
            headers.insert(RANGE, value);
        }
        if let Some(etag) = condition {
            headers.insert(IF_RANGE, etag);
        }
        let response = self.client.send(&self.url, headers, self.deadline, self.overall).await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                self.validator.check(&self.url, response.headers())?;
                let got = response
                    .headers()
                    .get(CONTENT_RANGE)
                    .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                    .unwrap_or_default();
                let wanted = format!("bytes {asked}/{}", self.validator.length);
                if got != wanted {
                    return Err(FetchError::WrongRange { url: shown(&self.url), asked: wanted, got }.into());
                }
            }
            StatusCode::OK => {
                // The file changed, or the server knows no ranges, which does no harm where the whole file was wanted anyway.
                self.validator.check(&self.url, response.headers())?;
                let whole = self.position == 0 && self.end == self.validator.length;
                if !whole || response.content_length() != Some(self.validator.length) {
                    return Err(FetchError::RangeIgnored { url: shown(&self.url) }.into());
                }
            }
            _ => return Err(refused(&response)),
        }
        Ok(Body::new(response, self.client.settings(), self.deadline, self.overall))
    }
}
