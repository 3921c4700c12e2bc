//! Kubernetes objects as the planner's facts, for everybody who plans: the operator by its caches, `bascule` by what it lists.
//!
//! Pure: typed objects go in, with what was known of them before and the time where that counts; what comes out is kept instead of the
//! object ([`Fact`]), and all together makes a [`bascule_planner::Snapshot`] ([`Assembler`]). Nothing here knows a client or a runtime.

mod budget;
mod daemon_set;
mod deadline;
mod fact;
pub mod hook;
mod key;
mod needs;
mod node;
mod one_node;
mod order;
mod pod;
mod policy;
mod progress;
mod sent;
mod shared;
mod snapshot;
mod update;
mod volumes;

pub use bascule_planner::drain::Pod as PodFact;
pub use budget::BudgetFact;
pub use daemon_set::DaemonSetFact;
pub use deadline::DeadlineFact;
pub use fact::{Fact, Validate};
pub use hook::JobFact;
pub use key::{Key, Place};
pub use node::{EXCLUDE_LABEL, EXCLUDED_BY_US, MAINTENANCE_CONDITIONS, NodeFact, TruceNote};
pub use one_node::{LookUp, NodeFacts, bare_node};
pub use order::{FreezeFact, RollbackFact};
pub use policy::PolicyFact;
pub use progress::{Blocked, Progress};
pub use sent::{Sent, Untyped};
pub use snapshot::{Assembler, Gathered};
pub use update::UpdateFact;
pub use volumes::{AttachmentFact, ClaimFact};
