//! The agent as a whole: on a simulated machine, against a bus and an API server of the test's own. One binary, because
//! each of these links the whole agent.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "helpers outside of #[test] functions are tests all the same"
)]

mod api_server;
mod bus;
mod counting;
mod cuts;
mod exit_codes;
mod flow;
mod grants;
mod guard;
mod guard_report;
mod hooks;
mod kubernetes;
mod last_resort;
mod leftovers;
mod limits;
mod machine;
mod not_taken;
mod releases;
mod run;
mod service;
mod stand_in;
mod state_folder;
mod state_versions;
mod way_back;
