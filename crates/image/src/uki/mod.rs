//! Unified kernel images: one PE file that the firmware starts, with kernel, initrd, command line and os-release as sections
//! (UAPI.5, "Unified Kernel Image").
//!
//! [`build`] does what systemd's `ukify` does for an unsigned image; the output depends on the input alone. [`Uki`] is the one
//! reader: the agent (what does this file boot?), the publisher, simulated firmware and the tests all look through it. It
//! reads headers and the asked sections, never the whole file, and keeps "could not be read" apart from "is no UKI":
//! whoever decides about a boot image must not take the one for the other. [`shown`] is what a boot loader makes of a file, which asks
//! for less: what it shows may be no whole UKI.

mod build;
mod measure;
mod os_release;
mod read;
mod shown;
#[cfg(test)]
mod tests;

pub use build::{Parts, build};
pub use measure::{MeasureError, Pcr11, PhaseError, PhasePath};
pub use os_release::{OsRelease, STATE_VERSION};
pub use read::{Processor, ReadUkiError, Uki};
pub use shown::{ShownEntry, shown};

/// Longest kernel command line in bytes: x86's COMMAND_LINE_SIZE, the smallest of the supported architectures.
pub const MAX_COMMAND_LINE: usize = 2048;
/// Longest os-release file in bytes.
pub const MAX_OS_RELEASE: usize = 64 << 10;
/// Longest section with a TPM's key or with what it signed, in bytes.
pub const MAX_PCR_SECTION: u64 = 256 << 10;
/// The PE specification's limit for images that every loader accepts.
const MAX_SECTIONS: usize = 96;

/// Why a UKI could not be built, or why bytes are none.
#[derive(Debug, thiserror::Error)]
pub enum UkiError {
    /// The stub or the UKI is no 64-bit PE file, or an offset in it leads outside.
    #[error("the {what} is no 64-bit PE file")]
    Pe {
        /// Stub or UKI.
        what: &'static str,
        /// Why.
        #[source]
        source: object::Error,
    },
    /// A PE file with numbers that no linker writes.
    #[error("the {what} is a PE file whose {field} is not accepted")]
    Field {
        /// Stub or UKI.
        what: &'static str,
        /// Which field.
        field: &'static str,
    },
    /// Something is longer than allowed.
    #[error("the {what} has {found} bytes, accepted are at most {max}")]
    TooLong {
        /// What.
        what: &'static str,
        /// Its length.
        found: u64,
        /// The cap.
        max: u64,
    },
    /// The stub has no room for the headers of further sections.
    #[error(
        "the EFI stub has room for {free} more sections, {needed} are needed; take the stub of systemd 252 or later"
    )]
    NoRoom {
        /// Headers that fit.
        free: usize,
        /// Headers that are needed.
        needed: usize,
    },
    /// More sections than the PE specification lets every loader expect.
    #[error("the UKI has {found} sections, accepted are at most {max}")]
    TooMany {
        /// How many there are.
        found: usize,
        /// The cap.
        max: usize,
    },
    /// A section that a UKI must have is missing, or occurs twice.
    #[error("the UKI has {found} sections {name}, accepted is one")]
    Section {
        /// Name of the section.
        name: &'static str,
        /// How many there are.
        found: usize,
    },
    /// A text section holds something else.
    #[error("the {what} is no text: it must be UTF-8 without control characters")]
    Text {
        /// Which text.
        what: &'static str,
    },
}

impl UkiError {
    /// Stable label for metrics and conditions.
    pub fn category(&self) -> &'static str {
        "uki-invalid"
    }

    /// Whether this reader gave up where a boot loader may go on: a limit of its own, or a section that occurs twice, of which a
    /// loader takes the first. What the file boots was not found out then.
    pub const fn is_own_limit(&self) -> bool {
        matches!(self, Self::TooLong { .. } | Self::TooMany { .. } | Self::Section { found: 2.., .. })
    }
}
