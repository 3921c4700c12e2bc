//! Which pods of a node a drain removes, which it waits for and which it leaves, and what it remembers of them: the
//! decisions, without the asking. The operator's drains, the facts about nodes and the simulator all take them from here.

mod judge;
mod ledger;
mod place;
mod places;
mod pod;
mod sort;

pub use judge::{Hour, Refusal, STUCK_AFTER, Stay, Verdict, judge};
pub use ledger::Ledger;
pub use place::{Barrier, Condition, Needs, Space, Term, Toleration};
pub(crate) use places::Places;
pub use pod::{
    Controller, DO_NOT_DISRUPT, DRAIN_LABEL, OPENS_AFTER_CORDON, Pod, SAFE_TO_EVICT, Wish, opens_after_cordon,
};
pub use sort::{Needed, Sorted, Undrainable, node_pods, sort};
