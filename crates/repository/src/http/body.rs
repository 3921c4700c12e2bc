//! Reading one response body with a minimum rate. Only waiting counts: a receiver that writes to a slow disk must not
//! make the server look slow.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::client::shown;
use super::error::FetchError;
use super::settings::HttpSettings;

/// Judges slowness over consecutive windows of waiting time.
#[derive(Debug)]
struct RateGuard {
    minimum: u64,
    window: Duration,
    waited: Duration,
    received: u64,
}

impl RateGuard {
    fn new(settings: &HttpSettings) -> Self {
        Self {
            minimum: settings.minimum_bytes_per_second,
            window: settings.rate_window.max(Duration::from_millis(1)),
            waited: Duration::ZERO,
            received: 0,
        }
    }

    /// How long the next wait may last before the window ends.
    fn patience(&self) -> Duration {
        self.window.saturating_sub(self.waited)
    }

    /// Counts a wait and what it brought; false when the window ended with too few bytes.
    fn count(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.received = self.received.saturating_add(bytes);
        if self.waited < self.window {
            return true;
        }
        let wanted = (self.minimum as f64 * self.waited.as_secs_f64()) as u64;
        let fast_enough = self.received >= wanted;
        self.waited = Duration::ZERO;
        self.received = 0;
        fast_enough
    }
}

/// A response body under a [`RateGuard`] and an overall deadline.
#[derive(Debug)]
pub(super) struct Body {
    response: reqwest::Response,
    guard: RateGuard,
    deadline: Instant,
    deadline_length: Duration,
}

impl Body {
    pub(super) fn new(
        response: reqwest::Response,
        settings: &HttpSettings,
        deadline: Instant,
        deadline_length: Duration,
    ) -> Self {
        Self { response, guard: RateGuard::new(settings), deadline, deadline_length }
    }

    /// The next piece, or `None` at the end of the body.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let began = Instant::now();
        let until = (began + self.guard.patience()).min(self.deadline);
        let outcome = tokio::time::timeout_at(until, self.response.chunk()).await;
        let waited = began.elapsed();
        let url = || shown(self.response.url());
        match outcome {
            Ok(Ok(Some(bytes))) => {
                if self.guard.count(waited, bytes.len() as u64) {
                    Ok(Some(bytes))
                } else {
                    Err(FetchError::TooSlow { url: url(), minimum: self.guard.minimum })
                }
            }
            Ok(Ok(None)) => Ok(None),
            Ok(Err(source)) => Err(FetchError::Request { url: url(), source: source.without_url().into() }),
            Err(_) if Instant::now() >= self.deadline => {
                Err(FetchError::Deadline { url: url(), limit: self.deadline_length })
            }
            Err(_) => Err(FetchError::TooSlow { url: url(), minimum: self.guard.minimum }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(minimum: u64, window_ms: u64) -> RateGuard {
        RateGuard::new(&HttpSettings {
            minimum_bytes_per_second: minimum,
            rate_window: Duration::from_millis(window_ms),
            ..HttpSettings::default()
        })
    }

    #[test]
    fn a_fast_body_passes_and_a_trickle_does_not() {
        let mut fast = guard(1000, 1000);
        for _ in 0..10 {
            assert!(fast.count(Duration::from_millis(250), 300));
        }
        let mut slow = guard(1000, 1000);
        let judged: Vec<bool> = (0..4).map(|_| slow.count(Duration::from_millis(250), 200)).collect();
        assert_eq!(judged, [true, true, true, false]);
    }

    #[test]
    fn a_burst_does_not_buy_a_later_standstill() {
        let mut guard = guard(1000, 1000);
        assert!(guard.count(Duration::from_millis(1000), 1_000_000));
        assert!(!guard.count(Duration::from_millis(1000), 10));
    }
}
