//! A release repository: what a node reads and trusts, and what a vendor writes.
//!
//! A repository is a TUF repository (specification 1.0) on any static https server. `tough` verifies the metadata; this
//! crate fetches it under hard limits, remembers what must never go back, and leads on from there to the channel, the
//! manifest and the packs that `bascule-image` understands.
//!
//! ```text
//! OpenOptions ── Repository::open ── channel ── select::decide ── manifest ── open_pack ── bascule_image apply
//!                     │                                                            └── open_file (UKI, package list)
//!                  Datastore (root chain, newest timestamp and snapshot, time floor)
//! ```

pub mod clock;
mod datastore;
mod error;
mod http;
mod limits;
pub mod publish;
mod remote;
mod repository;
pub mod select;
pub mod time;
mod transport;
mod trust;

pub use datastore::DatastoreLocation;
pub use error::Error;
pub use http::{FetchError, HttpClient, HttpSettings, ProxySetting};
pub use remote::{ReadOptions, RemoteFile, download_error};
pub use repository::{Metadata, OpenOptions, OpenPack, Repository, VerifiedManifest};
pub use transport::Fetcher;
pub use trust::RoleExpiry;
