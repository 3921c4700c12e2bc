//! When what a report says is written into the objects that people look at. Like a plan it follows from facts alone: whoever writes
//! says what time it is, by any clock that only goes on.

mod backoff;
mod hold;
mod pace;
mod policy;

pub use backoff::Backoff;
pub use hold::Hold;
pub use pace::Pace;
pub use policy::{brings_verdicts, policy_pause};
