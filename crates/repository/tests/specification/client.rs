//! A client of a simulated repository: the shipped reader with its datastore, started afresh for each step as after a restart.

use bascule_repository::time::Now;
use bascule_repository::tuf::Memory;
use bascule_repository::{DatastoreLocation, Error, Fetcher, OpenOptions, Repository, remembered};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::Value;
use std::sync::Arc;
use tempfile::TempDir;

use crate::simulator::{Served, start};

pub struct Client {
    state: TempDir,
    pub trust_root: Vec<u8>,
    pub now: DateTime<Utc>,
}

impl Client {
    /// A client that trusts the repository's first root.
    pub fn of(served: &Served) -> Self {
        Self { state: tempfile::tempdir().unwrap(), trust_root: served.repo().trust_root(), now: start() }
    }

    pub fn location(&self) -> DatastoreLocation {
        DatastoreLocation::Persistent(self.state.path().to_owned())
    }

    pub async fn refresh(&self, served: &Served) -> Result<Repository, Error> {
        Repository::open(OpenOptions {
            trust_root: self.trust_root.clone(),
            base: "memory://repository/".parse().unwrap(),
            datastore: self.location(),
            fetcher: Fetcher::Custom(Arc::new(served.clone())),
            now: Now::at(self.now),
        })
        .await
    }

    /// Updates and fetches a file.
    pub async fn download(&self, served: &Served, path: &str) -> Result<Bytes, Error> {
        let repository = self.refresh(served).await?;
        let file = repository.find(path).await?;
        repository.fetch(&file, 1 << 20).await
    }

    pub fn memory(&self) -> Memory {
        remembered(&self.location()).unwrap()
    }

    /// Bytes of the trusted metadata of a top-level role.
    pub fn trusted(&self, role: &str) -> Option<Vec<u8>> {
        let memory = self.memory();
        let text = match role {
            "root" => {
                return memory
                    .roots
                    .into_values()
                    .next_back()
                    .map(String::into_bytes)
                    .or(Some(self.trust_root.clone()));
            }
            "timestamp" => memory.timestamp,
            "snapshot" => memory.snapshot,
            _ => memory.targets,
        };
        text.map(String::into_bytes)
    }

    /// Its version.
    pub fn version(&self, role: &str) -> Option<u64> {
        let file: Value = serde_json::from_slice(&self.trusted(role)?).unwrap();
        file["signed"]["version"].as_u64()
    }

    /// Versions of root, snapshot, targets and timestamp.
    pub fn versions(&self) -> [Option<u64>; 4] {
        ["root", "snapshot", "targets", "timestamp"].map(|role| self.version(role))
    }
}

/// The category of what went wrong, without the role in which it did.
pub fn category<T>(outcome: Result<T, Error>) -> &'static str {
    outcome.map_or_else(|error| error.category(), |_| "nothing went wrong")
}
