//! When Jobs end at the latest: a drain that waits for one says so, and forecasts count with it.

use super::cache::Fact;
use bascule_planner::drain::deadline_of;
use chrono::{DateTime, Utc};
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
        Self { uid: job.metadata.uid.clone().unwrap_or_default(), ends_by: deadline_of(job) }
    }
}
