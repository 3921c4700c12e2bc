//! When Jobs end at the latest: a drain that waits for one says so, and forecasts count with it.

use crate::{Fact, fact, pod::moment};
use chrono::{DateTime, TimeDelta, Utc};
use k8s_openapi::api::batch::v1::Job;

/// The deadline of a Job, whoever made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadlineFact {
    /// The Job's UID, by which its pods name it.
    pub uid: String,
    /// When it has ended at the latest, where it says so.
    pub ends_by: Option<DateTime<Utc>>,
}

impl Fact for DeadlineFact {
    type Raw = Job;

    fn of(job: &Job) -> Self {
        Self { uid: fact::uid(job), ends_by: deadline_of(job) }
    }
}

/// Its `activeDeadlineSeconds` from its start.
fn deadline_of(job: &Job) -> Option<DateTime<Utc>> {
    let seconds = job.spec.as_ref()?.active_deadline_seconds?;
    let started_at = job.status.as_ref()?.start_time.as_ref().map(moment)?;
    started_at.checked_add_signed(TimeDelta::try_seconds(seconds)?)
}
