//! The disk that a host first runs from: partition table, boot partition, the first release in slot A, an empty slot B,
//! and a state partition that grows.
//!
//! The order of work is
//!
//! 1. [`Wishes::sizes`]: how large the parts are, or why they can't be ([`SizeError`]). Pure.
//! 2. [`BootFiles`]: what lies on the boot partition, with the first entry under the name that the agent would give it. Pure.
//! 3. [`make`] writes all of it to a new file. [`install`] does so on a disk of this machine, once [`judge`] (pure) has found from
//!    what [`look`] saw that it may be written.
//!
//! The same input gives the same bytes: identifiers follow from a seed, times are fixed, and in a new file what is zero is not written.

mod boot;
mod device;
mod fat;
mod make;
mod medium;
mod partitions;
mod size;
mod sparse;
mod state;
mod target;

pub use boot::{BootFileError, BootFiles, BootLoader, BootLoaderError, entry_file};
pub use device::{Device, Kernel, LookError, look, this_machine};
pub use make::{DiskError, Installed, Plan, Step, install, make};
pub use partitions::{EMPTY_LABEL, ESP, STATE, SlotNumbers, XBOOTLDR, identity_of, uuid_of_half};
pub use size::{Needs, SizeError, Sizes, Wishes, least_for_entries};
pub use state::{GROWING, SETTINGS, StateError, StateFiles};
pub use target::{Content, Firmware, Machine, Permission, Refusal, Target, TargetKind, Use, content, judge};
