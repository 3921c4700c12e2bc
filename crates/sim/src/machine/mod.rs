//! One simulated machine: a disk, firmware, an operating system that runs the shipped agent, and a power switch.

pub mod hardware;
pub mod process;
pub mod root;
pub mod run;
pub mod socket;
mod view;

pub use hardware::{Hardware, Started, System};
pub use view::{BusState, Command, MachineConfig, MachineView, Power, RunningSystem, SlotView};
