//! The channel file: which releases a channel offers, in which order, and through which of them a node must step.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use bascule_names::{Architecture, ChannelName, Product, Version};

use super::manifest::{File, Kubernetes};
use super::names::Severity;
use super::parse::{self, ParseError};
pub use super::refusal::Refusal;

/// The format this version reads and writes.
pub const FORMAT: u64 = 1;
/// Longest channel file in bytes.
pub const MAX_LENGTH: usize = 1 << 20;
/// Most releases of a channel.
pub const MAX_RELEASES: usize = 256;
/// Most fixed vulnerabilities listed for one release.
pub const MAX_FIXES: usize = 1024;
/// Longest identifier of a vulnerability in bytes.
pub const MAX_FIX_LENGTH: usize = 32;
/// Longest URL of release notes in bytes.
pub const MAX_URL_LENGTH: usize = 512;
/// Longest reason for a withdrawal in bytes.
pub const MAX_REASON_LENGTH: usize = 256;

const WHAT: &str = "channel file";

/// A channel's releases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Channel {
    /// Format version of this file, [`FORMAT`].
    pub format: u64,
    /// The product whose releases these are.
    pub product: Product,
    /// Name of the channel.
    pub channel: ChannelName,
    /// Releases in the order of publishing. The last one that is not withdrawn is what the channel offers.
    pub releases: Vec<Release>,
}

/// One release of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// Version; unique in the channel.
    pub version: Version,
    /// The manifest for each architecture the release exists for.
    pub manifests: BTreeMap<Architecture, File>,
    /// When it was added to this channel.
    pub published_at: DateTime<Utc>,
    /// Severity of the worst vulnerability it fixes.
    #[serde(default)]
    pub severity: Severity,
    /// Identifiers of the vulnerabilities it fixes, like `CVE-2026-12345`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fixes: Vec<String>,
    /// Where people read what changed; https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notes_url: Option<String>,
    /// The lowest version from which a node may go straight to this release. A node that runs less steps through the
    /// release with this version first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Version>,
    /// Whether nodes that run a newer version may install this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub downgrade: bool,
    /// What of Kubernetes its images bring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
    /// The highest state version that its manifests declare, for readers that plan ahead. A node goes by its own manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_version: Option<u32>,
    /// Set when the vendor took the release back: it is not installed any more. Nodes that run it keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<Withdrawal>,
}

/// Why and when a release was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Withdrawal {
    /// When.
    pub at: DateTime<Utc>,
    /// Why, in one sentence.
    pub reason: String,
}

impl Channel {
    /// Reads and checks a channel file.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let channel: Self = parse::parse(WHAT, bytes, MAX_LENGTH, FORMAT)?;
        channel.validate()?;
        Ok(channel)
    }

    /// The bytes to publish; the same channel always gives the same bytes. Refuses what [`Self::parse`] would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ParseError> {
        self.validate()?;
        let bytes = parse::print(WHAT, self)?;
        if bytes.len() > MAX_LENGTH {
            return Err(ParseError::TooLong { what: WHAT, length: bytes.len(), max: MAX_LENGTH });
        }
        Ok(bytes)
    }

    /// Refuses the channel file of another product.
    pub fn accept_for(&self, product: &Product) -> Result<(), Refusal> {
        if &self.product != product {
            return Err(Refusal::OtherProduct { found: self.product.clone(), accepted: product.clone() });
        }
        Ok(())
    }

    /// The release with this version, withdrawn or not.
    pub fn release(&self, version: &Version) -> Option<&Release> {
        self.releases.iter().find(|release| &release.version == version)
    }

    /// What the channel offers to hosts of an architecture: the last release in the file that exists for it and is not
    /// withdrawn.
    pub fn newest(&self, architecture: Architecture) -> Option<&Release> {
        let offered = |release: &&Release| release.withdrawn.is_none() && release.manifests.contains_key(&architecture);
        self.releases.iter().rev().find(offered)
    }

    /// The release with this version if a host of this architecture may be asked to install it from anywhere.
    pub fn installable(&self, version: &Version, architecture: Architecture) -> Result<&Release, Refusal> {
        let newest = || self.newest(architecture).map(|release| release.version.clone());
        let Some(release) = self.release(version) else {
            return Err(Refusal::NotInChannel {
                channel: self.channel.clone(),
                version: version.clone(),
                newest: newest(),
            });
        };
        if let Some(withdrawn) = &release.withdrawn {
            return Err(Refusal::Withdrawn {
                version: version.clone(),
                reason: withdrawn.reason.clone(),
                newest: newest(),
            });
        }
        if !release.manifests.contains_key(&architecture) {
            return Err(Refusal::OtherArchitecture {
                version: version.clone(),
                found: release.manifests.keys().copied().collect(),
                accepted: architecture,
            });
        }
        Ok(release)
    }

    /// The release that a node running `running` installs next on its way to `target`: the target itself, or the floor it
    /// must step through first.
    pub fn step_towards(
        &self,
        target: &Version,
        running: &Version,
        architecture: Architecture,
    ) -> Result<&Release, Refusal> {
        let mut step = self.installable(target, architecture)?;
        // A floor always lies below its release (validated), so this ends.
        while let Some(floor) = step.floor.as_ref().filter(|floor| running < *floor) {
            let next = self.installable(floor, architecture)?;
            if next.version >= step.version {
                return Err(Refusal::NoWay {
                    channel: self.channel.clone(),
                    version: target.clone(),
                    running: running.clone(),
                    at: step.version.clone(),
                });
            }
            step = next;
        }
        step.accept_from(running)?;
        Ok(step)
    }

    fn validate(&self) -> Result<(), ParseError> {
        let invalid = |field, reason| ParseError::Invalid { what: WHAT, field, reason };
        if self.releases.len() > MAX_RELEASES {
            let reason = format!("has {} entries, accepted are {MAX_RELEASES}", self.releases.len());
            return Err(invalid("releases", reason));
        }
        let mut versions = BTreeSet::new();
        for release in &self.releases {
            if !versions.insert(&release.version) {
                return Err(invalid("releases.version", format!("{} occurs twice", release.version)));
            }
            release.validate().map_err(|(field, reason)| invalid(field, format!("of {} {reason}", release.version)))?;
        }
        Ok(())
    }
}

impl Release {
    /// Whether a node that runs `running` may install this release directly.
    pub fn accept_from(&self, running: &Version) -> Result<(), Refusal> {
        if let Some(floor) = &self.floor
            && running < floor
        {
            return Err(Refusal::BelowFloor {
                version: self.version.clone(),
                floor: floor.clone(),
                running: running.clone(),
            });
        }
        if &self.version < running && !self.downgrade {
            return Err(Refusal::Downgrade { version: self.version.clone(), running: running.clone() });
        }
        Ok(())
    }

    fn validate(&self) -> Result<(), (&'static str, String)> {
        if self.manifests.is_empty() {
            return Err(("releases.manifests", "is empty; name at least one architecture".to_owned()));
        }
        if let Some(file) = self.manifests.values().find(|file| file.size > super::manifest::MAX_LENGTH as u64) {
            let reason = format!("is {}, accepted are at most {} bytes", file.size, super::manifest::MAX_LENGTH);
            return Err(("releases.manifests.size", reason));
        }
        if let Some(floor) = &self.floor
            && floor >= &self.version
        {
            return Err(("releases.floor", format!("is {floor}; it must be lower than the release")));
        }
        if self.fixes.len() > MAX_FIXES {
            return Err(("releases.fixes", format!("has {} entries, accepted are {MAX_FIXES}", self.fixes.len())));
        }
        let plain = |fix: &&String| {
            fix.is_empty()
                || fix.len() > MAX_FIX_LENGTH
                || !fix.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b':')
        };
        if let Some(fix) = self.fixes.iter().find(plain) {
            let shown: String = fix.chars().take(MAX_FIX_LENGTH).collect();
            let reason =
                format!("has {shown:?}; write identifiers like CVE-2026-12345 of at most {MAX_FIX_LENGTH} bytes");
            return Err(("releases.fixes", reason));
        }
        if let Some(url) = &self.notes_url {
            let printable = url.bytes().all(|byte| byte.is_ascii_graphic());
            if url.len() > MAX_URL_LENGTH || !url.starts_with("https://") || !printable {
                return Err(("releases.notesUrl", format!("must be https:// and at most {MAX_URL_LENGTH} bytes")));
            }
        }
        if let Some(withdrawn) = &self.withdrawn {
            let reason = &withdrawn.reason;
            if reason.is_empty() || reason.len() > MAX_REASON_LENGTH || reason.chars().any(char::is_control) {
                let accepted = format!("must be 1 to {MAX_REASON_LENGTH} bytes on one line");
                return Err(("releases.withdrawn.reason", accepted));
            }
        }
        Ok(())
    }
}
