//! What one update or one search may cost, asked before each fetch.

use std::time::Duration;

use crate::error::Error;

/// Bounds of one update or of one search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests.
    pub requests: u32,
    /// Bytes of metadata, all files together; of a search also those of roles that are kept from an earlier one.
    pub bytes: u64,
    /// Delegated roles that a search visits (5.6.7.1).
    pub roles: usize,
    /// Delegations from the top-level role down to one that a search visits.
    pub depth: usize,
    /// Time from beginning to end.
    pub time: Duration,
}

/// What is left of [`Limits`].
#[derive(Debug, Clone)]
pub struct Budget {
    limits: Limits,
    requests: u32,
    bytes: u64,
}

impl Budget {
    /// Nothing is spent yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, requests: 0, bytes: 0 }
    }

    /// The bounds themselves.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Asks for one more fetch of a file that has this signed length, if one is signed, and is never longer than `most`.
    /// Gives how many bytes it may have.
    ///
    /// # Errors
    /// [`Error::Limit`]; then nothing may be fetched.
    pub fn admit(&mut self, what: &str, signed: Option<u64>, most: u64, elapsed: Duration) -> Result<u64, Error> {
        let refuse = |reason: String| Err(Error::Limit { what: what.to_owned(), reason });
        if self.requests >= self.limits.requests {
            return refuse(format!("{} requests were made already", self.requests));
        }
        if elapsed >= self.limits.time {
            return refuse(format!("{} s have passed already", self.limits.time.as_secs()));
        }
        let left = self.limits.bytes.saturating_sub(self.bytes);
        if let Some(signed) = signed.filter(|signed| *signed > most) {
            return refuse(format!("it is signed with {signed} bytes, accepted are at most {most}"));
        }
        if signed.unwrap_or(1) > left {
            return refuse(format!("{} bytes of metadata came already", self.bytes));
        }
        self.requests += 1;
        Ok(signed.unwrap_or(most).min(left))
    }

    /// Counts what is there already like what is fetched: it takes the same memory, and what a search may cost does not depend on what
    /// others have fetched before it.
    ///
    /// # Errors
    /// [`Error::Limit`]
    pub fn reuse(&mut self, what: &str, bytes: usize) -> Result<(), Error> {
        if bytes as u64 > self.limits.bytes.saturating_sub(self.bytes) {
            let reason = format!("{} bytes of metadata came already", self.bytes);
            return Err(Error::Limit { what: what.to_owned(), reason });
        }
        self.spend(bytes);
        Ok(())
    }

    /// Counts what came.
    pub fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_is_asked_before_the_fetch() {
        let limits = Limits { requests: 3, bytes: 100, roles: 0, depth: 0, time: Duration::from_secs(9) };
        let mut budget = Budget::new(limits);
        let soon = Duration::from_secs(1);
        assert_eq!(budget.admit("x", None, 60, soon).unwrap(), 60);
        budget.spend(60);
        assert!(budget.admit("x", Some(61), 60, soon).is_err(), "longer than such a file may be");
        assert!(budget.admit("x", Some(41), 60, soon).is_err(), "more than is left");
        assert!(budget.admit("x", Some(1), 60, limits.time).is_err(), "no time");
        assert_eq!(budget.admit("x", Some(40), 60, soon).unwrap(), 40);
        assert_eq!(budget.admit("x", None, 60, soon).unwrap(), 40, "what is left");
        assert!(budget.admit("x", None, 60, soon).is_err(), "no requests");
        assert!(budget.reuse("x", 41).is_err(), "more than is left");
        budget.reuse("x", 40).unwrap();
        assert!(Budget { requests: 0, ..budget }.admit("x", None, 60, soon).is_err(), "no bytes");
    }
}
