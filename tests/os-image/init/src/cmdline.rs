//! What the signed command line asks for.

use crate::Error;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// The root hash of the slot to run: SHA-256, 32 bytes.
    pub(crate) root_hash: [u8; 32],
}

impl CommandLine {
    /// Reads `/proc/cmdline`. The last `roothash=` counts, as with systemd-veritysetup-generator.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let value = text.split_whitespace().filter_map(|word| word.strip_prefix("roothash=")).next_back();
        let bytes = value.and_then(|value| hex::decode(value).ok()).ok_or(Error::NoRootHash)?;
        let root_hash = <[u8; 32]>::try_from(bytes).map_err(|_| Error::NoRootHash)?;
        Ok(Self { root_hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_root_hash_counts() {
        let text = format!("quiet roothash={} panic=5 roothash={}\n", "00".repeat(32), "ab".repeat(32));
        assert_eq!(CommandLine::parse(&text).unwrap().root_hash, [0xab; 32]);
    }

    #[test]
    fn a_short_or_missing_root_hash_is_refused() {
        for text in ["", "quiet", "roothash=", "roothash=abcd", "roothash=zz"] {
            assert!(matches!(CommandLine::parse(text), Err(Error::NoRootHash)), "{text}");
        }
    }
}
