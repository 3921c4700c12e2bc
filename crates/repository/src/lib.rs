//! A release repository: what a node reads and trusts, and what a vendor writes.
//!
//! A repository is a TUF repository (specification 1.0) on any static https server. `tuf` decides what of its metadata to
//! trust; around it the metadata is fetched under hard limits, what must never go back is remembered, and from there it
//! leads on to the channel, the manifest and the packs that `bascule-image` understands.
//!
//! ```text
//! OpenOptions ── Repository::open ── channel ── select::decide ── manifest ── open_pack ── bascule_image apply
//!                     │                                                            └── open_file (UKI, package list)
//!                  Datastore (root chain, newest timestamp, snapshot and targets, time floor)
//! ```
//!
//! Writing a repository is the feature `publish`, which brings `tough` and with it a second crypto library; whoever only
//! reads, such as the agent, is built without.

pub mod clock;
mod datastore;
mod error;
mod http;
mod limits;
mod lock;
#[cfg(feature = "publish")]
pub mod publish;
mod remote;
mod repository;
pub mod select;
pub mod time;
mod transport;
pub mod tuf;
mod volume;

pub use datastore::{DatastoreLocation, remembered};
pub use error::Error;
pub use http::{FetchError, HttpClient, HttpSettings, ProxySetting, client_with_authorities};
pub use remote::{ReadOptions, RemoteFile, download_error};
pub use repository::{
    Metadata, OpenOptions, OpenPack, Origin, Repository, RoleExpiry, SignedFile, VerifiedChannel, VerifiedManifest,
};
pub use transport::{Fetcher, Transport};
pub use volume::{Bounds, Volume};
