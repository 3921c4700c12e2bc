//! What a bad disk does: errors, short writes, lies. Rules are data, so that a test says which access goes wrong how.

use super::Cache;

/// Which kind of access a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading, through the page cache or past it.
    Read,
    /// Writing.
    Write,
    /// `fsync`, `fdatasync`, `syncfs`.
    Flush,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The call fails with EIO. A failed flush also loses the writes it was to make durable: Linux marks the pages
    /// clean and reports the error once, so that the next `fsync` succeeds although nothing reached the disk.
    Eio,
    /// The call fails with ENOMEM: the kernel had no page for it.
    NoMemory,
    /// The call fails with ENOSPC (a thin-provisioned disk or file system that is full).
    NoSpace,
    /// The call fails with EROFS.
    ReadOnly,
    /// Only so many bytes are written (at least one), and the call says so. Of a read: it ends early, and what is asked for
    /// next is the end.
    Short(usize),
    /// Reported as written, readable through the cache, but one bit is wrong on the medium. The number picks the bit.
    FlipBit(u64),
    /// Reported as written, readable through the cache, but never reaches the medium. Of a flush: reported as done, but
    /// nothing became durable.
    Lose,
}

/// One rule: the accesses it matches, how many of them pass before it strikes, how often it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// The kind of access.
    pub access: Access,
    /// Only accesses through this cache (whole disk, or a partition); `None`: all.
    pub cache: Option<Cache>,
    /// So many matching accesses still pass.
    pub skip: u64,
    /// So many matching accesses fail after that; `u64::MAX` is for ever.
    pub times: u64,
    /// What happens to them.
    pub effect: Effect,
}

impl FaultRule {
    /// A rule that strikes at every matching access for ever.
    pub fn always(access: Access, cache: Option<Cache>, effect: Effect) -> Self {
        Self { access, cache, skip: 0, times: u64::MAX, effect }
    }

    /// A rule that lets `skip` accesses pass and strikes once.
    pub fn once(access: Access, cache: Option<Cache>, skip: u64, effect: Effect) -> Self {
        Self { access, cache, skip, times: 1, effect }
    }

    /// Whether the rule strikes at this access; counts it.
    pub(super) fn strikes(&mut self, access: Access, cache: Cache) -> bool {
        if self.access != access || self.cache.is_some_and(|only| only != cache) || self.times == 0 {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.times = if self.times == u64::MAX { u64::MAX } else { self.times - 1 };
        true
    }
}

impl Effect {
    /// The error that a call ends with, where the effect is an error.
    pub(super) fn error(self) -> Option<std::io::Error> {
        // Numbers of Linux's errno.h; `std::io::ErrorKind` has no stable name for EIO.
        let code = match self {
            Effect::Eio => 5,
            Effect::NoMemory => 12,
            Effect::NoSpace => 28,
            Effect::ReadOnly => 30,
            Effect::Short(_) | Effect::FlipBit(_) | Effect::Lose => return None,
        };
        Some(std::io::Error::from_raw_os_error(code))
    }
}
