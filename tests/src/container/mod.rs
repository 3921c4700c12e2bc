//! A container as a node's runtime makes one, without the runtime: a mount namespace whose root is what an image's layers
//! hold, the mounts, user, environment and arguments that a pod's manifest asks for, and nothing else. What is shipped is
//! started the way it is shipped; a program that needs a place which its manifest does not mount fails here and not at
//! its users. Needs root, as runtimes do. Network and process ids are the machine's own.

mod enter;
mod image;
mod pod;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use enter::enter;
pub use image::Image;
pub use pod::{Node, arguments, environment};

use crate::supervise::{ProcessError, Supervised};

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// A file or folder.
    #[error("cannot use {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// An image that is not as the specification has it.
    #[error("the image {}: {problem}", path.display())]
    Image {
        /// Its layout.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A pod that asks for something that is not known here.
    #[error("the pod asks for {0}")]
    Pod(String),
    /// The process.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where it is on the machine.
    pub source: PathBuf,
    /// Where the container sees it.
    pub target: PathBuf,
    /// Whether the container may not write to it.
    pub read_only: bool,
}

/// Everything about one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The unpacked layers.
    pub root: PathBuf,
    /// Whether the container may not write to them.
    pub read_only_root: bool,
    /// What is mounted over them.
    pub mounts: Vec<Mount>,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Whether the program may get no more rights than it has.
    pub no_new_privileges: bool,
    /// The program, as the container sees it.
    pub program: PathBuf,
    /// Its arguments, without its own name.
    pub arguments: Vec<String>,
    /// Its whole environment.
    pub environment: Vec<(String, String)>,
}

impl Container {
    /// Starts it. `runtime` is a command that calls [`enter`] with what it reads from the file that is its last argument;
    /// what the container says goes to `log`.
    ///
    /// # Errors
    /// When the description can't be written beside the log, or the process can't be started.
    pub fn start(&self, runtime: &[&OsStr], log: &Path) -> Result<Supervised, ContainerError> {
        let path = log.with_extension("container.json");
        let failed = |source| ContainerError::File { path: path.clone(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(std::io::Error::other(error)))?;
        std::fs::write(&path, text).map_err(failed)?;
        let namespace = ["--mount", "--propagation", "private"].map(OsStr::new);
        let arguments = namespace.iter().chain(runtime).copied().chain([path.as_os_str()]);
        Ok(Supervised::start(Path::new("/usr/bin/unshare"), arguments, &[], log)?)
    }
}
