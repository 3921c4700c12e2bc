//! Writing a repository: what a vendor does between a finished build and a release that nodes can fetch.
//!
//! Every operation verifies what is published now, signs on top of it, and makes the change visible in one step (see
//! `commit`). The folder can be served as it is, or copied to a static server in the order that docs/publishing.md gives.

mod commit;
mod content;
mod difference;
mod document;
mod error;
mod folder;
mod keys;
mod pending;
mod prune;
mod refresh;
mod release;
mod setup;
mod standing;
mod state;
mod view;

use std::path::{Path, PathBuf};

pub use commit::{Lifetimes, Missing, Outcome, Signing, Waiting};
pub use error::PublishError;
pub use keys::{Algorithm, PublicKey, SigningKey, generate, generate_with};
pub use pending::WaitingChange;
pub use prune::{Unnamed, Unwanted};
pub use refresh::{Refreshed, Renewal};
pub use release::Notes;
pub use setup::{RoleSetup, Roles, init};
pub use standing::RoleStanding;
pub use state::RoleProblem;
pub use view::View;

use folder::Folder;
use state::Current;

/// A repository folder, locked for publishing and verified.
#[derive(Debug)]
pub struct Publisher {
    folder: Folder,
    current: Current,
}

impl Publisher {
    /// Locks a repository folder and verifies what is published in it.
    ///
    /// # Errors
    /// [`PublishError::Busy`], [`PublishError::Folder`] when it holds no repository, [`PublishError::Broken`].
    pub fn open(path: &Path) -> Result<Self, PublishError> {
        if !path.join("metadata").is_dir() {
            let reason = "holds no repository; make one with `bascule release init`";
            return Err(PublishError::Folder { path: path.to_owned(), reason });
        }
        let folder = Folder::open(path)?;
        let current = Current::load(&folder)?;
        Ok(Self { folder, current })
    }

    /// Delegated roles that can't be used or signed, each the affair of its own channel: to be told to whoever publishes.
    #[must_use]
    pub fn problems(&self) -> &[RoleProblem] {
        &self.current.problems
    }

    /// The files made visible since the folder was opened, relative to it and in that order: what has to be copied to a
    /// server that holds the state before, and in which order, so that its readers are never in between either.
    #[must_use]
    pub fn written(&self) -> Vec<PathBuf> {
        self.folder.written()
    }
}
