//! The node agent: writes signed releases into the inactive slot, arms, commits and reverts them, and tells the truth
//! about what the machine runs.
//!
//! ```text
//! NodeUpdate.spec ─┐                       ┌─> host traits (disk, ESP, bus, state, repository)
//! facts ───────────┼─> step(State, Event) ─┤
//! timers ──────────┘      (pure)           └─> NodeUpdate.status, journal
//! ```

pub use bascule_agent_core as core;

pub mod agent;
mod alarm;
pub mod boot;
pub mod engine;
pub mod fitness;
pub mod gpt;
pub mod guard;
pub mod host;
pub mod kubernetes;
pub mod linux;
pub mod metrics;
pub mod observe;
mod outage;
pub mod releases;
pub mod run;
pub mod server;
pub mod settings;
pub mod slots;
pub mod uki;
