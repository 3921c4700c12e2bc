//! The names that cross every border of Bascule: release versions, digests, channels, architectures.
//!
//! They are parsed once, at the border, into types that can't be wrong. This crate exists apart from
//! `bascule-api` so that the release format (`bascule-image`) can share them without seeing Kubernetes.

mod digest;
mod entry;
mod kubernetes;
mod label;
mod version;
mod version_order;

pub use digest::{Digest, RootHash};
pub use entry::entry_base;
pub use kubernetes::KubernetesVersion;
pub use label::{Architecture, ChannelName, Product};
pub use version::Version;
pub use version_order::compare_versions;

/// Why a text is not a valid name. The message says what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty or longer than the limit (in bytes).
    #[error("{what} must have 1 to {max} characters, this one has {len}")]
    Length {
        /// What was parsed, e.g. `version`.
        what: &'static str,
        /// The longest accepted text, in bytes.
        max: usize,
        /// How long the text was, in bytes.
        len: usize,
    },
    /// The text has a character or a shape that is not accepted.
    #[error("{what} '{text}' is not valid: {expected}")]
    Shape {
        /// What was parsed.
        what: &'static str,
        /// The text, shortened to 80 characters.
        text: String,
        /// What would be accepted.
        expected: &'static str,
    },
}

impl NameError {
    pub(crate) fn shape(what: &'static str, text: &str, expected: &'static str) -> Self {
        Self::Shape { what, text: text.chars().take(80).collect(), expected }
    }
}

/// Implements what every name has in common: parsing from text, printing, serde as a checked string, and a JSON
/// schema whose pattern says the same as the parser.
macro_rules! name_type {
    ($name:ident, $pattern:literal, $max:expr, $description:literal) => {
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl std::str::FromStr for $name {
            type Err = $crate::NameError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::parse(text)
            }
        }
        impl TryFrom<String> for $name {
            type Error = $crate::NameError;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::parse(&text)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({
                    "type": "string", "pattern": $pattern, "minLength": 1, "maxLength": $max, "description": $description
                })
            }
        }
    };
}
pub(crate) use name_type;
