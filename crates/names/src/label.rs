//! Short names: channels, products, architectures.

use crate::{NameError, name_type};

fn is_label(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && edge(text.bytes().next())
        && edge(text.bytes().last())
}

macro_rules! label {
    ($name:ident, $what:literal, $doc:literal, $description:literal) => {
        #[doc = $doc]
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The longest accepted text, in bytes (an RFC 1123 label).
            pub const MAX_LENGTH: usize = 63;

            /// Parses an RFC 1123 label: lower-case letters, digits and inner dashes.
            ///
            /// # Errors
            /// [`NameError`] when the text is too long or of another shape.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                if text.is_empty() || text.len() > Self::MAX_LENGTH {
                    return Err(NameError::Length { what: $what, max: Self::MAX_LENGTH, len: text.len() });
                }
                if !is_label(text) {
                    return Err(NameError::shape($what, text, "use lower-case letters, digits and inner dashes"));
                }
                Ok(Self(text.to_owned()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        name_type!($name, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", 63, $description);
    };
}

label!(
    ChannelName,
    "channel",
    "A channel of a release repository, e.g. `stable`.",
    "A channel of a release repository, like stable."
);
label!(
    Product,
    "product",
    "The product an OS image is built for, e.g. `acme-os`.",
    "The product that an OS image belongs to, like acme-os."
);

/// A processor architecture a release is built for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Architecture {
    /// 64-bit x86, `x86-64` in the Discoverable Partitions Specification, `amd64` to Kubernetes.
    X86_64,
    /// 64-bit Arm, `arm64` in both.
    Arm64,
}

impl Architecture {
    /// The name of the Discoverable Partitions Specification.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::X86_64 => "x86-64",
            Self::Arm64 => "arm64",
        }
    }

    /// Parses `x86-64` or `arm64`.
    ///
    /// # Errors
    /// [`NameError::Shape`] for anything else.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text {
            "x86-64" => Ok(Self::X86_64),
            "arm64" => Ok(Self::Arm64),
            _ => Err(NameError::shape("architecture", text, "x86-64 and arm64 are known")),
        }
    }
}

name_type!(Architecture, "^(x86-64|arm64)$", 6, "A processor architecture: x86-64 or arm64.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_rfc_1123() {
        assert!(ChannelName::parse("stable-41").is_ok());
        for text in ["", "-a", "a-", "A", "a_b", "a.b", &"a".repeat(64)] {
            assert!(ChannelName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn serde_checks() {
        assert!(serde_json::from_str::<Product>("\"../x\"").is_err());
        assert_eq!(serde_json::to_string(&Architecture::X86_64).unwrap(), "\"x86-64\"");
    }
}
