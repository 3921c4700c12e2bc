//! Decides what happens to every node, and says why nothing happens to the others.
//!
//! Pure: a [`Snapshot`] of facts goes in (the clock and the seed are facts too), a [`Plan`] of actions with what each
//! expects to find and a [`Report`] with the reason of every wait come out. Nothing here knows a client, a clock, a
//! random source or a runtime. The operator gathers the facts and carries the actions out without a choice of its own.

pub mod calendar;
mod decide;
pub mod drain;
pub mod forecast;
mod gates;
pub mod lint;
pub mod model;
pub mod plan;
pub mod report;
pub mod snapshot;
pub mod statuses;
pub mod validate;
pub mod windows;
pub mod zones;

pub use decide::{Planner, first_node_takes, lot, plan, plan_asking};
pub use forecast::forecast;
pub use gates::{GATES, Gate, GateSet, RULES, Rule};
pub use lint::{Violation, lint};
pub use plan::{Action, Expect, Mismatch, Plan, Step};
pub use report::{FreezeReport, NodeName, NodeReport, PolicyReport, Report, Wait, says_held_back, says_of_gate};
pub use snapshot::Snapshot;
pub use validate::{PolicyError, PolicyErrorKind, ValidPolicy, validate, validate_with};
