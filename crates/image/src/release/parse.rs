//! Reading the signed JSON files: cap the length, look at the format version, and only then at anything else.

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Why a channel file or a manifest is refused before its meaning is looked at.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Longer than any file of its kind may be.
    #[error("the {what} has {length} bytes, more than the {max} that are accepted")]
    TooLong {
        /// Which file.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
        /// The cap in bytes.
        max: usize,
    },
    /// Written in a format this version does not know.
    #[error(
        "the {what} has format version {found}, this version accepts {accepted} at most; update through a release whose format it \
         knows"
    )]
    UnknownFormat {
        /// Which file.
        what: &'static str,
        /// The version found.
        found: u64,
        /// The highest version that this program reads; the lowest is 1.
        accepted: u64,
    },
    /// No JSON of the expected shape.
    #[error("the {what} is no JSON of its format")]
    Json {
        /// Which file.
        what: &'static str,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// JSON of the expected shape that contradicts itself or a limit.
    #[error("the {what} is not valid: {field} {reason}")]
    Invalid {
        /// Which file.
        what: &'static str,
        /// The field at fault.
        field: &'static str,
        /// What is wrong and what would be accepted.
        reason: String,
    },
}

impl ParseError {
    /// Stable label for metrics and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "file-too-long",
            Self::UnknownFormat { .. } => "format-unknown",
            Self::Json { .. } | Self::Invalid { .. } => "file-invalid",
        }
    }
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u64,
}

/// Parses `bytes`. A field that is not known is ignored: an addition that changes no meaning needs no new format version.
pub(super) fn parse<T: DeserializeOwned>(
    what: &'static str,
    bytes: &[u8],
    max: usize,
    accepted: u64,
) -> Result<T, ParseError> {
    if bytes.len() > max {
        return Err(ParseError::TooLong { what, length: bytes.len(), max });
    }
    let json = |source| ParseError::Json { what, source };
    let FormatOnly { format: found } = serde_json::from_slice(bytes).map_err(json)?;
    if found == 0 || found > accepted {
        return Err(ParseError::UnknownFormat { what, found, accepted });
    }
    serde_json::from_slice(bytes).map_err(json)
}

/// The published bytes: indented, ending in a newline, fields in the order of the specification.
pub(super) fn print<T: serde::Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, ParseError> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|source| ParseError::Json { what, source })?;
    bytes.push(b'\n');
    Ok(bytes)
}
