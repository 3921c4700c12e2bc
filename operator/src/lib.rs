//! The operator: gathers facts, lets the planner decide, carries the plan out, says what it sees.
//!
//! ```text
//! watches ─┐
//! polls  ──┼─ gather ── Snapshot ── bascule_planner ── Plan ── apply, drain, health
//! clock  ──┘                                  └── Report ── status, events, metrics
//! ```
//!
//! Nothing in here decides who may be disrupted; that is the planner's. What is here may be killed between any two
//! steps: all memory is in the API objects, and the next plan continues from what they show.

#![allow(unreachable_pub, reason = "modules re-export what the binary and the tests use")]

pub mod apply;
mod boots;
mod break_glass;
pub mod clock;
pub mod drain;
pub mod events;
pub mod gather;
pub mod health;
pub mod hooks;
pub mod leader;
pub mod live;
pub mod metrics;
pub mod notify;
mod observe;
mod preflight;
pub mod pulse;
pub mod repository;
mod rights;
pub mod run;
pub mod server;
pub mod settings;
pub mod silences;
mod skew;
pub mod status;
mod trouble;
mod unreadable;
pub mod zones;

/// An error and its causes in one line, without saying anything twice.
#[must_use]
pub fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = inner.source();
    }
    text
}
