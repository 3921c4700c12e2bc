//! What the log says of an API server that does not answer: that it began, now and then that it lasts, and that it is over.
//! A line for each attempt would fill the journal of every node for as long as the control plane is away.

use std::time::Duration;

use tokio::time::Instant;

/// How often an outage that lasts is told.
const AGAIN: Duration = Duration::from_secs(15 * 60);

/// Failures in a row of one kind of request.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    failures: u32,
    said: Option<(&'static str, Instant)>,
}

impl Outage {
    /// Another attempt failed in this way. The number of failures so far, if that is to be told now: the first, one of
    /// another kind, or one after a long time.
    pub(crate) fn failed(&mut self, kind: &'static str, now: Instant) -> Option<u32> {
        self.failures = self.failures.saturating_add(1);
        let told = self.said.is_some_and(|(said, at)| said == kind && now.saturating_duration_since(at) < AGAIN);
        if told {
            return None;
        }
        self.said = Some((kind, now));
        Some(self.failures)
    }

    /// An attempt succeeded. The number of failures before it, if there were any.
    pub(crate) fn over(&mut self) -> Option<u32> {
        let failures = std::mem::take(self).failures;
        (failures > 0).then_some(failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_of_a_day_is_told_in_a_hundred_lines() {
        let (mut outage, begun) = (Outage::default(), Instant::now());
        let minutes = (0..24 * 60).map(|minute| begun + Duration::from_secs(60 * minute));
        let told: Vec<u32> = minutes.filter_map(|now| outage.failed("Unreachable", now)).collect();
        assert_eq!((told.len(), told[0], told[1]), (96, 1, 16));
        assert_eq!(outage.over(), Some(24 * 60));
        assert_eq!(outage.over(), None);
    }

    #[test]
    fn what_changes_is_told_at_once() {
        let (mut outage, now) = (Outage::default(), Instant::now());
        let told = ["Unreachable", "Unreachable", "Unauthorized", "Unauthorized"].map(|kind| outage.failed(kind, now));
        assert_eq!(told, [Some(1), None, Some(3), None]);
        outage.over();
        assert_eq!(outage.failed("Unauthorized", now), Some(1));
    }
}
