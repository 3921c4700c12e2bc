//! The lock on a folder that one process at a time may change.
//!
//! A lock of flock(2) belongs to the open file description, and a child process has that description too from fork(2) until its exec(3)
//! closes it. Closing alone is therefore not letting go: where another thread starts a program (a signer, say) at that instant, whoever
//! asks next would be told that the folder is in use, by nobody. Unlocking lets go whoever else still has the description.

use std::fs::{File, TryLockError};

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Lock {
    /// Takes the lock of `file` without waiting for it.
    ///
    /// # Errors
    /// Somebody else holds it, or the file system refuses.
    pub(crate) fn take(file: File) -> Result<Self, TryLockError> {
        file.try_lock()?;
        Ok(Self(file))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            // Closing the file, which follows, lets go of it as well, a moment later at worst.
            tracing::debug!(%error, "a lock could not be given back by name");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_description_in_a_child_does_not_keep_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let file = File::create(&path).unwrap();
        // What a child has between fork(2) and exec(3).
        let child = file.try_clone().unwrap();
        let held = Lock::take(file).unwrap();
        assert!(matches!(Lock::take(File::open(&path).unwrap()), Err(TryLockError::WouldBlock)));
        drop(held);
        Lock::take(File::open(&path).unwrap()).unwrap();
        drop(child);
    }
}
