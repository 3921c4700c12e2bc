//! What the agent decides, without seeing a clock, a client or a disk.
//!
//! [`step`] takes the state, one event and the time, and gives the next state and the effects to carry out one after
//! the other. Facts read from the machine decide; the journal only remembers what the machine can't show: which grant
//! was used, which releases failed, which manifest a root hash belongs to.

pub mod boot;
mod effect;
mod event;
mod facts;
mod goal;
mod hook;
mod housekeeping;
mod journal;
mod manual;
mod protocol;
mod query;
mod slots;
mod state;
mod state_version;
mod status;
mod step;

pub use effect::{Effect, EffectKind, ReleaseTarget, Why};
pub use event::{Desired, Event, Failure, ManualCommand};
pub use facts::{BootFacts, Entry, Facts, GuardReport, Partition, PerSlot, SlotContent, SlotFacts, TableHealth};
pub use hook::{HOOK_LIMIT, Hook};
pub use journal::{Armed, Committed, JOURNAL_FILE, Journal, JournalError, KnownRelease, MAX_JOURNAL, NotTaken};
pub use protocol::{Guarantee, Guarantees};
pub use query::{Extent, ReleaseQuery, Space};
pub use state::{Config, During, LoaderFailure, Manual, Now, Problem, Resolved, State, Work};
pub use state_version::StateMemory;
pub use status::status;
pub use step::step;
