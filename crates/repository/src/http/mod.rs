//! Why this exists: everything a node downloads comes through here, and the server is not trusted. Each request is
//! bounded in size, in time and in slowness, and a server that cheats on ranges or swaps a file gets a typed error.
//! TUF and the frame digests decide what the bytes are worth; this module decides how long we listen.

mod authorities;
mod body;
mod client;
mod error;
mod range;
mod settings;

pub use authorities::client_with_authorities;
pub use client::HttpClient;
pub(crate) use client::shown;
pub use error::FetchError;
pub(crate) use range::{RangeReader, Validator};
pub use settings::{HttpSettings, ProxySetting};
