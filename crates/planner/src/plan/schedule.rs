//! In which order the steps of a plan are begun, and how many of them now.

use super::{Action, Plan, Step, Taint};
use std::time::Duration;

/// How urgent a step is. The most urgent comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A node is out of service until it is done.
    OutOfService,
    /// A node goes out of service.
    Departure,
    /// A node prepares while it works.
    Preparation,
    /// No node waits for it.
    Housekeeping,
}

/// Steps that one fact asks of many nodes at once (a wave's grants, the staging of a release, its taints, enrolment). Of each kind only
/// some are in flight at a time, and the others queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Queue {
    /// Grants. Each is followed by a cordon.
    Grants,
    /// Orders to stage.
    Stages,
    /// Housekeeping.
    Housekeeping,
}

impl Action {
    /// How urgent it is.
    #[must_use]
    pub fn priority(&self) -> Priority {
        match self {
            // The Node came back in the middle of its update.
            Self::CreateNodeUpdate { spec, .. } if spec.disruption.is_some() => Priority::OutOfService,
            Self::CreateNodeUpdate { .. }
            | Self::SetPolicy { .. }
            | Self::EndTruce { .. }
            | Self::Taint { taint: Taint::Outdated, .. }
            | Self::Untaint { taint: Taint::Outdated, .. } => Priority::Housekeeping,
            Self::Stage { .. } | Self::Rest { .. } | Self::Retry { .. } => Priority::Preparation,
            Self::Grant { .. }
            | Self::RunHook(_)
            | Self::BeginDrain { .. }
            | Self::Truce { .. }
            | Self::Cordon { .. } => Priority::Departure,
            _ => Priority::OutOfService,
        }
    }

    /// The queue it waits in; `None`: it never waits for others.
    #[must_use]
    pub fn queue(&self) -> Option<Queue> {
        match (self, self.priority()) {
            (Self::Grant { .. }, _) => Some(Queue::Grants),
            (Self::Stage { .. }, _) => Some(Queue::Stages),
            (_, Priority::Housekeeping) => Some(Queue::Housekeeping),
            _ => None,
        }
    }
}

/// The steps of one node that are begun together. Each waits for the one before, and is dropped where that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The node.
    pub node: String,
    /// The priority of its most urgent step.
    pub priority: Priority,
    /// Its steps in their order, as places in [`Plan::steps`].
    pub steps: Vec<usize>,
}

/// What of a plan is begun now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    /// Steps of nodes, the most urgent first. A node that is being written to, or of which a write has just failed, has none.
    pub batches: Vec<Batch>,
    /// How many of these are begun now. The others have their turn by a newer plan, when writes have ended.
    pub room: usize,
    /// How many steps more queue behind others of their kind.
    pub queued: usize,
    /// How many statuses may be written at once.
    pub statuses: usize,
    /// The nodes that were being written to when the plan was made, by name.
    pub in_flight: Vec<String>,
    /// Since when no drain has begun, so that orders go first; `None`: drains may begin. By the clock of [`crate::snapshot::Writes`], as
    /// the next.
    pub drains_held_since: Option<Duration>,
    /// Since when explanations of nodes have been held back for the same reason.
    pub explanations_held_since: Option<Duration>,
}

/// For how long drains and explanations let orders go first. Then they go once in between.
pub(crate) const HELD_FOR: Duration = Duration::from_secs(10);

impl Schedule {
    /// Whether some steps have no place now.
    pub(crate) const fn leaves_some(&self) -> bool {
        self.batches.len() > self.room || self.queued > 0
    }

    /// Until when explanations of nodes are held back, by the clock of [`crate::snapshot::Writes`]; `None`: they are not.
    #[must_use]
    pub fn explanations_held_until(&self) -> Option<Duration> {
        self.explanations_held_since.map(|since| since.saturating_add(HELD_FOR))
    }

    /// Whether a drain of this node may begin. One that runs goes on: what is being written may be the end of it, which a drain that
    /// began anew would go on beside.
    #[must_use]
    pub fn may_begin_drain(&self, node: &str) -> bool {
        self.drains_held_since.is_none() && self.in_flight.binary_search_by(|known| known.as_str().cmp(node)).is_err()
    }
}

impl Plan {
    /// The steps of a batch in their order.
    #[must_use]
    pub fn steps_of(&self, batch: &Batch) -> Vec<&Step> {
        batch.steps.iter().filter_map(|place| self.steps.get(*place)).collect()
    }
}
