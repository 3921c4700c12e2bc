//! Small validated texts that only the signed files have: target paths and severities.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest target path in bytes.
pub const MAX_PATH_LENGTH: usize = 200;

/// Why a text is refused as a target path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{shown:?} is no target path: write a relative path of at most 200 bytes, segments of letters, digits and ._~^- not \
     starting with a dot"
)]
pub struct PathError {
    /// The refused text, cut to a bounded length.
    pub shown: String,
}

/// Path of a TUF target, relative to the repository's targets: segments of letters, digits and `._~^-` joined by `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TargetPath(String);

impl TargetPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TargetPath {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TargetPath> for String {
    fn from(path: TargetPath) -> Self {
        path.0
    }
}

impl fmt::Display for TargetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for TargetPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let segment_is_plain = |segment: &str| {
            !segment.is_empty()
                && !segment.starts_with('.')
                && segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~^-".contains(&byte))
        };
        if text.len() > MAX_PATH_LENGTH || !text.split('/').all(segment_is_plain) {
            return Err(PathError { shown: text.chars().take(64).collect() });
        }
        Ok(Self(text.to_owned()))
    }
}

/// How much a release's fixes matter. Ordered: `Critical` is the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub enum Severity {
    /// No known security fix.
    #[default]
    None,
    /// Fixes that can wait for the usual window.
    Low,
    /// Fixes that should not wait for long.
    Medium,
    /// Fixes that should be installed soon.
    High,
    /// Fixes that justify an emergency: a policy may ignore windows from here.
    Critical,
}

impl Severity {
    /// The spelling in the channel file and in policies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Low => "Low",
            Self::Medium => "Medium",
            Self::High => "High",
            Self::Critical => "Critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_can_not_leave_the_repository() {
        for text in ["", "/etc", "a//b", "../a", "a/../b", "a/.b", "a b", "a\\b", "a/", "a%2e", &"a".repeat(201)] {
            assert!(text.parse::<TargetPath>().is_err(), "{text:?}");
        }
        for version in ["1.0~rc.1", "1.0^git1", "24.04", "1_0-2"] {
            assert!(format!("releases/{version}/x86-64/full.pack").parse::<TargetPath>().is_ok());
        }
    }

    #[test]
    fn severities_are_ordered_and_spelled_once() {
        assert!(Severity::Critical > Severity::High && Severity::Low > Severity::None);
        for severity in [Severity::None, Severity::Low, Severity::Medium, Severity::High, Severity::Critical] {
            assert_eq!(serde_json::to_value(severity).unwrap(), severity.as_str());
        }
    }
}
