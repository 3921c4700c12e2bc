//! The values that a TPM's PCR 11 is expected to have when a UKI runs, computed as systemd-stub measures it.
//!
//! For each section that the stub knows, in the stub's own order and not in that of the file, the register is extended twice: by
//! the digest of the section's name with its NUL, and by that of its content as it lies in memory (systemd,
//! docs/TPM2_PCR_MEASUREMENTS.md, "PCR 11, EV_IPL, PE section name" and "PE section data"; UAPI.5, "PE Sections"). Then
//! userspace extends it by the digest of each phase's name, without a NUL ("PCR 11, boot phases").

use std::ops::Range;

use super::read::PROFILE;
use super::{ReadUkiError, Uki, UkiError};
use crate::digest::{Sha256, Sha256Stream};
use crate::release::measured::{Measured, PcrValue};

/// Sections in the order in which the stub measures them, with the first version of systemd whose stub does so (systemd,
/// src/fundamental/uki.h). `.pcrsig` is the one that it knows and does not measure: it signs the result.
const ORDER: [(&str, u32); 14] = [
    (".linux", 252),
    (".osrel", 252),
    (".cmdline", 252),
    (".initrd", 252),
    (".ucode", 256),
    (".splash", 252),
    (".dtb", 252),
    (".uname", 254),
    (".sbat", 254),
    (".pcrpkey", 252),
    (PROFILE, 257),
    (DEVICE_TREES, 257),
    (".hwids", 257),
    (".efifw", 258),
];
/// Of these the stub picks one by the machine that it runs on.
const DEVICE_TREES: &str = ".dtbauto";
/// The first version that is computed for: those before measured sections that were not there
/// (<https://github.com/systemd/systemd/issues/25761>).
const SINCE: u32 = 254;
/// The phases that systemd measures where nobody says others (systemd-measure(1), `--phase=`).
const PHASES: [&str; 4] = ["enter-initrd", "leave-initrd", "sysinit", "ready"];
/// Where a stub says what it is.
const MAGIC: &str = ".sdmagic";
/// How that begins (systemd, src/boot/stub.c).
const MAGIC_START: &str = "#### LoaderInfo: systemd-stub ";
/// Longest such text that is read.
const MAX_MAGIC: u64 = 4096;
/// How much of a section is read at once.
const PIECE: u64 = 1 << 20;

/// Why nothing is known of what a UKI is measured as.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// It could not be read, or is no UKI.
    #[error(transparent)]
    Uki(#[from] ReadUkiError),
    /// No stub of systemd's, or none that says what it is.
    #[error("the image has no stub of systemd's that says its version, so nothing is known of what it measures")]
    Stub,
    /// A stub that measures in another way.
    #[error("the image has the stub of systemd {0}; what stubs measure is known from 254 on")]
    OldStub(String),
    /// What is measured hangs on the machine.
    #[error("the image has .dtbauto, of which the stub measures what fits the machine that it runs on")]
    Machine,
}

impl From<UkiError> for MeasureError {
    fn from(error: UkiError) -> Self {
        Self::Uki(error.into())
    }
}

impl Uki<'_> {
    /// What the stub and systemd are expected to measure into PCR 11, in the bank of SHA-256, of the profile that boots by
    /// default. Add-ons, credentials and a command line from elsewhere go into other registers.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn measured(&self) -> Result<Measured, MeasureError> {
        let stub = self.stub_version()?;
        let major: String = stub.chars().take_while(char::is_ascii_digit).collect();
        let major = major.parse().ok().filter(|major: &u32| *major >= SINCE);
        let Some(major) = major else { return Err(MeasureError::OldStub(stub)) };
        if self.measured_section(DEVICE_TREES)?.is_some() && major >= 257 {
            return Err(MeasureError::Machine);
        }
        let mut register = Register::default();
        for (name, _) in ORDER.into_iter().filter(|(_, since)| *since <= major) {
            let Some((content, memory)) = self.measured_section(name)? else { continue };
            let mut named = name.as_bytes().to_vec();
            named.push(0);
            register.extend(Sha256::of(&named));
            register.extend(self.digest_in_memory(content, memory)?);
        }
        let mut values = vec![register.value("")];
        for (at, phase) in PHASES.iter().enumerate() {
            register.extend(Sha256::of(phase.as_bytes()));
            values.push(register.value(&PHASES.get(..=at).unwrap_or_default().join(":")));
        }
        Ok(Measured { stub, pcr11: values })
    }

    /// The version that the stub says it is of.
    fn stub_version(&self) -> Result<String, MeasureError> {
        let text = match self.section(MAGIC, MAX_MAGIC) {
            Ok(text) => text,
            Err(ReadUkiError::NotUki(UkiError::Section { found: 0, .. })) => return Err(MeasureError::Stub),
            Err(error) => return Err(error.into()),
        };
        let text = String::from_utf8_lossy(&text);
        let version = text.strip_prefix(MAGIC_START).and_then(|rest| rest.split(' ').next());
        let plain = |version: &&str| !version.is_empty() && version.len() <= crate::release::measured::MAX_TEXT;
        version.filter(plain).map(str::to_owned).ok_or(MeasureError::Stub)
    }

    /// Where a section's bytes lie, and how long it is in memory. One without any length is none, to the stub as well.
    fn measured_section(&self, name: &'static str) -> Result<Option<(Range<u64>, u64)>, MeasureError> {
        match self.place(name) {
            Ok((_, 0)) | Err(UkiError::Section { found: 0, .. }) => Ok(None),
            Ok(place) => Ok(Some(place)),
            Err(error) => Err(error.into()),
        }
    }

    /// The digest of a section as it lies in memory, where what the file does not have is zeros.
    fn digest_in_memory(&self, bytes: Range<u64>, memory: u64) -> Result<Sha256, ReadUkiError> {
        let mut stream = Sha256Stream::new();
        let mut at = bytes.start;
        while at < bytes.end {
            let length = PIECE.min(bytes.end - at);
            stream.update(&self.read(at, length)?);
            at += length;
        }
        let mut zeros = memory.saturating_sub(bytes.end - bytes.start);
        let empty = vec![0; PIECE.min(zeros) as usize];
        while zeros > 0 {
            let length = PIECE.min(zeros);
            stream.update(empty.get(..length as usize).unwrap_or_default());
            zeros -= length;
        }
        Ok(stream.finish())
    }
}

/// A register of a TPM in the bank of SHA-256.
#[derive(Debug, Clone, Copy)]
struct Register(Sha256);

impl Default for Register {
    fn default() -> Self {
        Self(Sha256::from_bytes([0; 32]))
    }
}

impl Register {
    /// TPM2_PCR_Extend (TCG, "Trusted Platform Module Library, Part 1", 17.2).
    fn extend(&mut self, digest: Sha256) {
        let mut both = self.0.as_bytes().to_vec();
        both.extend_from_slice(digest.as_bytes());
        self.0 = Sha256::of(&both);
    }

    fn value(self, phase: &str) -> PcrValue {
        PcrValue { phase: phase.to_owned(), value: self.0.into() }
    }
}

#[cfg(test)]
mod tests;
