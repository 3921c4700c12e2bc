//! What a TPM holds once a release's boot image has run, as far as that follows from the image alone.

use bascule_names::Digest;
use serde::{Deserialize, Serialize};

/// Most boot phases of one image.
pub const MAX_PHASES: usize = 16;
/// Longest name of a phase, and of a stub's version, in bytes.
pub const MAX_TEXT: usize = 128;

/// The expected values of PCR 11, in which systemd-stub measures the sections of a unified kernel image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Measured {
    /// The version of systemd whose stub the image has: which sections are measured hangs on it.
    pub stub: String,
    /// The values in the bank of SHA-256, in the order in which the boot comes to them.
    pub pcr11: Vec<PcrValue>,
}

/// A value at one moment of the boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PcrValue {
    /// The phases that were entered, joined by colons, as systemd-measure(1) has them; empty when the kernel starts.
    pub phase: String,
    /// The value.
    pub value: Digest,
}

impl Measured {
    pub(super) fn validate(&self) -> Result<(), (&'static str, String)> {
        let plain = |text: &str| text.len() <= MAX_TEXT && text.bytes().all(|byte| byte.is_ascii_graphic());
        if self.pcr11.is_empty() || self.pcr11.len() > MAX_PHASES {
            let reason = format!("has {} entries, accepted are 1 to {MAX_PHASES}", self.pcr11.len());
            return Err(("measured.pcr11", reason));
        }
        if self.stub.is_empty() || !plain(&self.stub) || self.pcr11.iter().any(|value| !plain(&value.phase)) {
            let reason = format!("names a stub or a phase that is no plain text of at most {MAX_TEXT} bytes");
            return Err(("measured", reason));
        }
        Ok(())
    }
}
