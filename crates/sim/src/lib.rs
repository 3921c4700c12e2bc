//! Simulated hosts and clusters: a disk whose power can be cut at any sector, firmware that picks boot entries by the
//! Boot Loader Specification, machines that run the shipped agent, and seeded cluster worlds for the planner.

pub mod disk;
pub mod esp;
pub mod firmware;
pub mod host;
pub mod layout;
pub mod machine;
pub mod tiny;
pub mod world;
