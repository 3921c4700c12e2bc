//! How long to wait before a refused eviction is asked again.

use std::time::Duration;

/// The first wait.
const FIRST: Duration = Duration::from_millis(500);
/// The longest wait; a change of the budget is noticed at once anyway.
const LONGEST: Duration = Duration::from_secs(15);
/// What the server may ask for at most.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// The wait after the `attempts`-th refusal in a row (from 1). It doubles, keeps to what the server asked for, and is
/// spread by `jitter` (0 to 1) over another quarter, so that pods of one budget do not ask in step.
#[must_use]
pub fn wait(attempts: u32, retry_after: Option<Duration>, jitter: f64) -> Duration {
    let doubled = FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(8)).min(LONGEST);
    let asked = retry_after.unwrap_or_default().min(LONGEST_ASKED);
    let jitter = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.0 };
    doubled.max(asked).mul_f64(1.0 + jitter / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_a_limit_and_keeps_to_retry_after() {
        let seconds = |attempts, asked| wait(attempts, asked, 0.0).as_secs_f64();
        assert_eq!((seconds(1, None), seconds(2, None), seconds(4, None)), (0.5, 1.0, 4.0));
        assert_eq!((seconds(9, None), seconds(u32::MAX, None)), (15.0, 15.0));
        assert_eq!(seconds(1, Some(Duration::from_secs(10))), 10.0);
        assert_eq!(seconds(1, Some(Duration::from_secs(86_400))), 60.0);
        assert_eq!(wait(1, None, 1.0), Duration::from_millis(625));
        assert_eq!(wait(0, None, f64::NAN), Duration::from_millis(500));
    }
}
