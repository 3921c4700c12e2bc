//! Boot selection by GPT attribute bits, as ChromeOS defined them (experimental: docs/decisions/0031-gptprio-stays-experimental.md).
//! Priority in bits 48 to 51, tries in 52 to 55, success in 56 of the data partition. The loader takes the highest priority that has
//! tries left or was successful, and takes one try off before it boots. Priority 0 never boots.

use crate::Entry;

const PRIORITY_SHIFT: u32 = 48;
const TRIES_SHIFT: u32 = 52;
const SUCCESSFUL: u64 = 1 << 56;
/// The highest value of priority and tries.
const MAX: u64 = 15;

/// The boot attributes of one data partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Higher goes first; 0 never boots.
    pub priority: u64,
    /// How often it may still be tried.
    pub tries: u64,
    /// It works; tries do not matter any more.
    pub successful: bool,
}

impl Attributes {
    /// The bits of a table entry that are these.
    pub const ALL: u64 = 0x1ff << PRIORITY_SHIFT;

    /// From a table entry's bits.
    pub const fn of(bits: u64) -> Self {
        Self {
            priority: bits >> PRIORITY_SHIFT & MAX,
            tries: bits >> TRIES_SHIFT & MAX,
            successful: bits & SUCCESSFUL != 0,
        }
    }

    /// As a table entry's bits.
    pub fn bits(self) -> u64 {
        let successful = if self.successful { SUCCESSFUL } else { 0 };
        self.priority.min(MAX) << PRIORITY_SHIFT | self.tries.min(MAX) << TRIES_SHIFT | successful
    }

    /// What they mean.
    pub(crate) fn entry(self, runs: bool) -> Entry {
        match self {
            Self { successful: true, priority: 1.., .. } => Entry::Good,
            Self { priority: 1.., tries: 1.., .. } => Entry::Trying { left: self.tries as u32, done: None },
            // The last try is running, or all are used up.
            Self { priority: 1.., .. } => Entry::Bad { done: None },
            // What runs without bits was given up just now, or started by hand: the next boot will not pick it.
            _ if runs => Entry::Bad { done: None },
            _ => Entry::None,
        }
    }

    /// The bits of a slot that works.
    pub fn permanent(self) -> Self {
        Self { priority: self.priority.max(1), tries: 0, successful: true }
    }

    /// Armed above `running`, which keeps its place and its right to boot. The first is the running slot's.
    pub fn armed_above(running: Self, tries: u32) -> (Self, Self) {
        let kept = Self { priority: running.priority.clamp(1, MAX - 1), successful: true, ..running };
        (kept, Self { priority: kept.priority + 1, tries: u64::from(tries), successful: false })
    }
}
