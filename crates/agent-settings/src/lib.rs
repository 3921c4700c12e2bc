//! The settings of the node agent: which there are, where they are read from, and what each may be. Each value knows where it came
//! from, so that whoever is told that it can't be used finds it.
//!
//! The agent goes by them; `bascule disk` and `bascule install` check with the same rules what they put onto a machine's disk.

mod keys;
mod read;
mod values;

use std::path::{Path, PathBuf};

pub use keys::{KEYS, Key, Kind, comes_with_the_machine};
pub use read::{CREDENTIAL, Found, Origin, SettingsError, Sources, Value, read, read_what_can_be_used};
pub use values::Values;

/// Where the agent listens for metrics, health questions and break-glass commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address; metrics and health only.
    Tcp(std::net::SocketAddr),
}

/// Reads one settings file, without its drop-ins, and looks whether an agent could use it. Gives its text.
///
/// # Errors
/// [`SettingsError`] names the file and line.
pub fn check(path: &Path) -> Result<String, SettingsError> {
    let (text, found) = read::read_one(path)?;
    Values::new(&found).check()?;
    Ok(text)
}

#[cfg(test)]
mod tests;
