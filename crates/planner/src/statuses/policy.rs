//! When a policy's status is written.

use bascule_api::UpdatePolicyStatus;
use std::time::Duration;

/// Between two writes about one policy when its reason or a condition changed.
const NEWS: Duration = Duration::from_secs(1);
/// Between two writes about one policy when only details changed.
const DETAILS: Duration = Duration::from_secs(5);

/// The least time between the last write and one that turns the first status into the second; `None`: they are the same.
#[must_use]
pub fn policy_pause(before: &UpdatePolicyStatus, after: &UpdatePolicyStatus) -> Option<Duration> {
    if before == after {
        return None;
    }
    let reason = |status: &UpdatePolicyStatus| status.waits_for.as_ref().map(|waits| waits.reason);
    let verdicts = |status: &UpdatePolicyStatus| -> Vec<(String, String, String)> {
        let conditions = status.conditions.iter();
        conditions.map(|one| (one.type_.clone(), one.status.clone(), one.reason.clone())).collect()
    };
    let same = before.target == after.target
        && before.observed_generation == after.observed_generation
        && reason(before) == reason(after)
        && verdicts(before) == verdicts(after)
        && before.counts.failed == after.counts.failed;
    Some(if same { DETAILS } else { NEWS })
}

/// Whether a status says of releases that they failed or are blocked, or do not any more, where the one before it does not. That is written
/// by the step that remembers it ([`crate::Action::Remember`]), under what that step expects, and not with what people are told.
#[must_use]
pub fn brings_verdicts(before: &UpdatePolicyStatus, after: &UpdatePolicyStatus) -> bool {
    before.failures != after.failures || before.blocked != after.blocked
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::Counts;

    #[test]
    fn a_policys_counts_are_details_and_what_was_observed_is_news() {
        let status = UpdatePolicyStatus::default();
        assert_eq!(policy_pause(&status, &status), None);
        let counted = UpdatePolicyStatus { counts: Counts { in_progress: 1, ..Counts::default() }, ..status.clone() };
        assert_eq!(policy_pause(&status, &counted), Some(DETAILS));
        let failed = UpdatePolicyStatus { counts: Counts { failed: 1, ..Counts::default() }, ..status.clone() };
        let observed = UpdatePolicyStatus { observed_generation: Some(2), ..status.clone() };
        for news in [failed, observed] {
            assert_eq!(policy_pause(&status, &news), Some(NEWS), "{news:?}");
        }
    }

    #[test]
    fn another_reason_or_condition_is_news_and_another_sentence_is_none() {
        let said = |reason: &str, accepted: &str, words: &str| -> UpdatePolicyStatus {
            let waits = serde_json::json!({"reason": reason, "message": words});
            let accepted = serde_json::json!({"type": "Accepted", "status": accepted, "reason": "Valid", "message": words,
                "lastTransitionTime": "2026-11-21T12:00:00Z"});
            serde_json::from_value(serde_json::json!({"waitsFor": waits, "conditions": [accepted]})).unwrap()
        };
        let status = said("Wave", "True", "2 of 3 nodes");
        assert_eq!(policy_pause(&status, &said("Wave", "True", "3 of 3 nodes")), Some(DETAILS));
        assert_eq!(policy_pause(&status, &said("Freeze", "True", "2 of 3 nodes")), Some(NEWS));
        assert_eq!(policy_pause(&status, &said("Wave", "False", "2 of 3 nodes")), Some(NEWS));
    }
}
