//! The disk that a host first runs from: partition table, boot partition, the first release in slot A, an empty slot B,
//! and a state partition that grows.
//!
//! The one implementation for the command line, the boot tests, the sandbox and the simulated machines: what an admin gets is
//! what the tests run on. The order of work is
//!
//! 1. [`Wishes::sizes`]: how large the parts are, or why they can't be ([`SizeError`]). Pure.
//! 2. [`BootFiles`]: what lies on the boot partition, with the first entry under the name that the agent would give it. Pure.
//! 3. [`make`] writes all of it to a new file; [`provision`] the same without the state partition, to whatever can be written.
//!
//! The same input gives the same bytes: identifiers follow from a seed, times are fixed, and what is zero is not written.

mod boot;
mod fat;
mod make;
mod medium;
mod partitions;
mod size;
mod state;

pub use boot::{BootFileError, BootFiles, BootLoader, BootLoaderError, entry_file};
pub use fat::write_boot_partition;
pub use make::{DiskError, Installed, Plan, make, provision};
pub use partitions::{EMPTY_LABEL, ESP, STATE, SlotNumbers, XBOOTLDR, identity_of, uuid_of_half};
pub use size::{Needs, SectorSize, SizeError, Sizes, Wishes, least_for_entries};
pub use state::{GROWING, StateError};
