//! Reads each release repository once for all nodes, verified as a node does it. The trust root comes from the policy,
//! and nodes never rely on what is read here: theirs is in their OS image.

mod poll;
#[cfg(test)]
mod room_tests;

pub use poll::{Channels, Tools};

use bascule_api::{RepositoryStatus, Time, conditions::reason};
use bascule_image::release::channel::Channel;
use bascule_planner::snapshot::{Offer, OfferState, Release};
use bascule_repository::{Bounds, Error, Metadata, VerifiedChannel};
use std::collections::BTreeMap;

/// What is remembered of all repositories together, whoever names them: within the volume that the manifest gives, so that
/// nobody who writes policies has the kubelet evict the operator. An ordinary one takes some 30 KiB.
pub(crate) const ROOM: Bounds = Bounds {
    total: 56 << 20,
    each: 4 << 20,
    small: 256 << 10,
    for_small: 8 << 20,
    // What a policy named until now comes back soon, where somebody writes it anew.
    unused: 8,
    unused_bytes: 4 << 20,
};

/// What a channel offers, after a reading that went well at `read`. It holds until the first of all roles expires that speak for it.
fn offer_of(channel: &VerifiedChannel, metadata: &Metadata, read: Time) -> Offer {
    let mut repository = status_of(metadata, read);
    let delegated = channel.expires().map(Time::new);
    repository.expires_at = [repository.expires_at, delegated].into_iter().flatten().min();
    Offer { state: OfferState::Valid, releases: releases_of(channel), repository }
}

fn releases_of(channel: &Channel) -> Vec<Release> {
    channel
        .releases
        .iter()
        .map(|release| Release {
            version: release.version.clone(),
            digests: release
                .manifests
                .iter()
                .map(|(architecture, file)| (*architecture, file.digest.clone()))
                .collect::<BTreeMap<_, _>>(),
            severity: severity(release.severity),
            published_at: Time::new(release.published_at),
            floor: release.floor.clone(),
            downgrade: release.downgrade,
            kubelet: release.kubernetes.map(|kubernetes| kubernetes.kubelet),
            brings_api_server: release.kubernetes.is_some_and(|kubernetes| kubernetes.api_server),
            state_version: release.state_version,
            withdrawn: release.withdrawn.as_ref().map(|withdrawal| withdrawal.reason.clone()),
        })
        .collect()
}

fn severity(severity: bascule_image::release::names::Severity) -> bascule_api::Severity {
    use bascule_image::release::names::Severity as Signed;
    match severity {
        Signed::None => bascule_api::Severity::None,
        Signed::Low => bascule_api::Severity::Low,
        Signed::Medium => bascule_api::Severity::Medium,
        Signed::High => bascule_api::Severity::High,
        Signed::Critical => bascule_api::Severity::Critical,
    }
}

fn status_of(metadata: &Metadata, read: Time) -> RepositoryStatus {
    let version = |role: &str| {
        let found = metadata.roles.iter().find(|expiry| expiry.role == role)?;
        i64::try_from(found.version).ok()
    };
    RepositoryStatus {
        verified_at: Some(read),
        expires_at: metadata.earliest_expiry().map(|role| Time::new(role.expires)),
        root_version: version("root"),
        timestamp_version: version("timestamp"),
        error: None,
    }
}

/// The condition's reason for an error.
fn reason_of(error: &Error) -> &'static str {
    match error.fault() {
        Error::Expired { .. } => reason::EXPIRED,
        Error::Signature { .. }
        | Error::Rollback { .. }
        | Error::Mismatch { .. }
        | Error::TrustRoot { .. }
        | Error::Invalid { .. }
        | Error::SpecVersion { .. }
        | Error::Limit { .. }
        | Error::Format { .. }
        | Error::ClockBehind(_) => reason::UNTRUSTED,
        Error::DatastoreTooLarge { .. } | Error::DatastoreNoRoom { .. } => reason::NO_ROOM,
        _ => reason::UNREACHABLE,
    }
}

/// The offer after a reading that failed: what was verified before is used on while it has not expired.
fn after_failure(before: Option<&Offer>, failed: &'static str, message: String, now: Time) -> Offer {
    let message: String = message.chars().take(1024).collect();
    let mut repository = before.map(|offer| offer.repository.clone()).unwrap_or_default();
    repository.error = Some(message.clone());
    let still_valid = before.filter(|offer| {
        !offer.releases.is_empty()
            && offer.repository.expires_at.is_some_and(|expiry| expiry > now)
            && matches!(offer.state, OfferState::Valid | OfferState::Stale { .. })
    });
    match still_valid {
        Some(offer) => {
            Offer { state: OfferState::Stale { reason: failed, message }, releases: offer.releases.clone(), repository }
        }
        None => Offer { state: OfferState::Unusable { reason: failed, message }, releases: Vec::new(), repository },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::new(chrono::DateTime::from_timestamp(seconds, 0).unwrap())
    }

    fn good() -> Offer {
        let release = Release {
            version: "1.1".parse().unwrap(),
            digests: BTreeMap::new(),
            severity: bascule_api::Severity::None,
            published_at: at(0),
            floor: None,
            downgrade: false,
            kubelet: None,
            brings_api_server: false,
            state_version: None,
            withdrawn: None,
        };
        let repository =
            RepositoryStatus { expires_at: Some(at(100)), verified_at: Some(at(10)), ..Default::default() };
        Offer { state: OfferState::Valid, releases: vec![release], repository }
    }

    #[test]
    fn errors_are_sorted_by_whom_they_concern() {
        let reason = |text: &str| text.to_owned();
        for (error, expected) in [
            (Error::Expired { role: reason("timestamp"), expired: at(1).get(), now: at(2).get() }, reason::EXPIRED),
            (Error::Signature { role: reason("root"), detail: reason("") }, reason::UNTRUSTED),
            (Error::Rollback { reason: reason("version 3 after 4") }, reason::UNTRUSTED),
            (Error::TrustRoot { reason: reason("no JSON") }, reason::UNTRUSTED),
            (Error::Absent { what: reason("channel x"), hint: reason("") }, reason::UNREACHABLE),
            (Error::DatastoreTooLarge { bytes: 2, most: 1 }, reason::NO_ROOM),
            (Error::DatastoreNoRoom { path: "/state".into(), bytes: 2, taken: 3, most: 4 }, reason::NO_ROOM),
            (
                Error::Role {
                    role: reason("channel-x"),
                    path: reason("x.json"),
                    source: Box::new(Error::Signature { role: reason("channel-x"), detail: reason("") }),
                },
                reason::UNTRUSTED,
            ),
        ] {
            assert_eq!(reason_of(&error), expected, "{error}");
        }
    }

    #[test]
    fn what_was_verified_is_used_until_it_expires() {
        let stale = after_failure(Some(&good()), reason::UNREACHABLE, "refused".into(), at(50));
        assert!(matches!(stale.state, OfferState::Stale { reason: reason::UNREACHABLE, .. }));
        assert_eq!((stale.releases.len(), stale.repository.error.as_deref()), (1, Some("refused")));
        let again = after_failure(Some(&stale), reason::UNREACHABLE, "refused".into(), at(99));
        assert!(matches!(again.state, OfferState::Stale { .. }));
        let expired = after_failure(Some(&again), reason::UNREACHABLE, "refused".into(), at(100));
        assert!(matches!(expired.state, OfferState::Unusable { .. }) && expired.releases.is_empty());
        assert_eq!(expired.repository.verified_at, Some(at(10)), "what was known is still shown");
        assert!(matches!(after_failure(None, reason::EXPIRED, "x".into(), at(0)).state, OfferState::Unusable { .. }));
    }
}
