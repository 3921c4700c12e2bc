//! The values that a TPM's PCR 11 is expected to have when a UKI runs, computed as systemd-stub measures it.
//!
//! For each section that the stub knows, in the stub's own order and not in that of the file, the register is extended twice: by
//! the digest of the section's name with its NUL, and by that of its content as it lies in memory (systemd,
//! docs/TPM2_PCR_MEASUREMENTS.md, "PCR 11, EV_IPL, PE section name" and "PE section data"; UAPI.5, "PE Sections"). Then
//! userspace extends it by the digest of each phase's name, without a NUL ("PCR 11, boot phases").

use std::ops::Range;
use std::str::FromStr;

use super::read::PROFILE;
use super::{ReadUkiError, Uki, UkiError};
use crate::digest::{Sha256, Sha256Stream};
use crate::release::measured::{MAX_TEXT, Measured, PcrValue};

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
/// The one of them that a bare stub has, too.
const OF_A_STUB: &str = ".sbat";
/// What the stub takes from an image and does not measure.
const NOT_MEASURED: &str = ".pcrsig";
/// Of these the stub picks one by the machine that it runs on.
const DEVICE_TREES: &str = ".dtbauto";
/// The first version that is computed for: those before measured sections that were not there
/// (<https://github.com/systemd/systemd/issues/25761>).
const SINCE: u32 = 254;
/// The phases that systemd measures where nobody says others (systemd-measure(1), `--phase=`).
const PHASES: [&str; 4] = ["enter-initrd", "leave-initrd", "sysinit", "ready"];
/// All phases that systemd's units measure, in the order of a boot (systemd-pcrphase.service(8)).
const KNOWN_PHASES: [&str; 6] = ["enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final"];
/// Where a stub says what it is.
const MAGIC: &str = ".sdmagic";
/// How that begins (systemd, src/boot/stub.c).
const MAGIC_START: &str = "#### LoaderInfo: systemd-stub ";
/// Longest such text that is read.
const MAX_MAGIC: u64 = 4096;
/// How much of a section is read at once.
const PIECE: u64 = 1 << 20;

/// Whether a section with this name (padded with zeros) is what makes an image of a stub: for the stub it means something, and a bare stub
/// has none.
pub(super) fn makes_an_image(name: [u8; 8]) -> bool {
    let known = ORDER.iter().map(|(known, _)| *known).chain([NOT_MEASURED]);
    let mut makes = known.filter(|known| *known != OF_A_STUB).map(str::as_bytes);
    makes.any(|known| name.strip_prefix(known).is_some_and(|rest| rest.iter().all(|byte| *byte == 0)))
}

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

/// What the stub of an image is expected to measure into PCR 11, in the bank of SHA-256.
#[derive(Debug, Clone)]
pub struct Pcr11 {
    /// The version of systemd that the stub is of.
    stub: String,
    register: Register,
}

impl Pcr11 {
    /// The value once these phases were entered, in this order; with none of them that when the kernel starts.
    pub fn after(&self, phases: &PhasePath) -> Sha256 {
        let mut register = self.register;
        for phase in phases.0.split(':').filter(|phase| !phase.is_empty()) {
            register.extend(Sha256::of(phase.as_bytes()));
        }
        register.0
    }

    /// The digest of the policy that a TPM grants while PCR 11 has that value: TPM2_PolicyPCR of a session with SHA-256 that has no
    /// other policy yet (TCG, "Trusted Platform Module Library, Part 3", 23.7; Part 2, 10.5.2 and 10.9.7).
    pub fn policy(&self, phases: &PhasePath) -> Sha256 {
        /// TPM_CC_PolicyPCR.
        const COMMAND: [u8; 4] = 0x17F_u32.to_be_bytes();
        /// TPML_PCR_SELECTION: one, of TPM_ALG_SHA256, with three bytes of registers, of which the eleventh.
        const SELECTION: [u8; 10] = [0, 0, 0, 1, 0x00, 0x0B, 3, 0, 1 << 3, 0];
        let value = Sha256::of(self.after(phases).as_bytes());
        Sha256::of(&[&[0_u8; 32][..], &COMMAND, &SELECTION, value.as_bytes()].concat())
    }

    /// What a manifest says: the value when the kernel starts, those of systemd's own phases, and those of `further` paths.
    pub fn measured(&self, further: &[PhasePath]) -> Measured {
        let mut paths = vec![PhasePath::default()];
        paths.extend(PhasePath::usual());
        for path in further {
            if !paths.contains(path) {
                paths.push(path.clone());
            }
        }
        let value = |path: &PhasePath| PcrValue { phase: path.0.clone(), value: self.after(path).into() };
        Measured { stub: self.stub.clone(), pcr11: paths.iter().map(value).collect() }
    }
}

/// Phases of a boot in the order in which they are entered, joined by colons (systemd-measure(1), `--phase=`). Empty: none yet,
/// as when the kernel starts, and until switch-root where no systemd runs in the initrd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PhasePath(String);

impl PhasePath {
    /// Those that systemd-measure and ukify take where nobody says others.
    pub fn usual() -> Vec<Self> {
        (1..=PHASES.len()).map(|count| Self(PHASES.get(..count).unwrap_or_default().join(":"))).collect()
    }

    /// All that systemd's own units can come to, whichever of them an image has: each choice of its phases, in their order.
    pub fn possible() -> Vec<Self> {
        let mut paths: Vec<Vec<&str>> = vec![Vec::new()];
        for phase in KNOWN_PHASES {
            let with: Vec<Vec<&str>> = paths.iter().map(|path| [path.as_slice(), &[phase]].concat()).collect();
            paths.extend(with);
        }
        paths.into_iter().map(|path| Self(path.join(":"))).collect()
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PhasePath {
    type Err = PhaseError;

    fn from_str(text: &str) -> Result<Self, PhaseError> {
        let plain = text.len() <= MAX_TEXT && text.bytes().all(|byte| byte.is_ascii_graphic());
        let whole = text.is_empty() || text.split(':').all(|phase| !phase.is_empty());
        if plain && whole { Ok(Self(text.to_owned())) } else { Err(PhaseError) }
    }
}

/// A text that names no phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("boot phases are words joined by colons, like enter-initrd:leave-initrd, of at most {MAX_TEXT} bytes")]
pub struct PhaseError;

impl Uki<'_> {
    /// What the stub is expected to measure into PCR 11, of the profile that boots by default. Add-ons, credentials and a command
    /// line from elsewhere go into other registers.
    ///
    /// # Errors
    /// [`MeasureError`].
    pub fn pcr11(&self) -> Result<Pcr11, MeasureError> {
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
        Ok(Pcr11 { stub, register })
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
        let plain = |version: &&str| !version.is_empty() && version.len() <= MAX_TEXT;
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
}

#[cfg(test)]
mod tests;
