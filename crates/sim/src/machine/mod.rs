//! One simulated machine: a disk, firmware, an operating system that runs the shipped agent, and a power switch.

mod view;

pub use view::{Command, MachineConfig, MachineView, Power, RunningSystem, SlotView};
