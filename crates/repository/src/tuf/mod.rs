//! A reader of TUF 1.0 metadata: what section 5 of the specification says, with nothing around it. Pure: bytes and times come in,
//! requests, decisions and what to remember go out. `crate::repository` does the I/O.
//!
//! Each step is named by its section, so that it can be read beside the specification
//! (<https://theupdateframework.github.io/specification/v1.0.34/>). What is left to a reader's choice, and where this one is
//! stricter, is in docs/tuf.md.

mod budget;
mod canonical;
mod keys;
mod lineage;
mod memory;
mod packed;
mod paths;
mod refresh;
mod schema;
mod search;

pub use budget::{Budget, Limits};
pub use canonical::{canonical, canonical_signed};
pub use memory::Memory;
#[cfg(feature = "publish")]
pub(crate) use refresh::accept_targets;
pub use refresh::{Refresh, Request, Trusted};
#[cfg(feature = "publish")]
pub(crate) use schema::TOP_LEVEL;
pub use schema::{
    Delegation, Hashes, Role, RoleName, Root, Signature, Signed, Signers, Snapshot, Target, Targets, Timestamp, parse,
};
pub use search::{Reached, Search, Step, quote};
