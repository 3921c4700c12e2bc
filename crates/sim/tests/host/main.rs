//! Simulated hosts: their firmware, the order of writes under power cuts, and the shipped agent on top. One binary, as
//! each of these tests links the whole agent.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "helpers outside of #[test] functions are tests all the same"
)]

mod boot_loader;
mod checked;
mod faults;
mod firmware;
mod guarding;
mod inventory;
mod machine_process;
mod operator;
mod power_cuts;
mod reference_writer;
mod support;
mod world;
