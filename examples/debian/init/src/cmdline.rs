//! What the signed command line asks for.

use bascule_image::command_line::{CommandLine, VerityOption};

use crate::Error;

/// The root hash of the slot to run, from the text of `/proc/cmdline`: SHA-256, 32 bytes.
pub(crate) fn root_hash(text: &str) -> Result<[u8; 32], Error> {
    let named = CommandLine::from(text).root_hash(VerityOption::Root).map_err(|_| Error::NoRootHash)?;
    named.map(|root_hash| root_hash.to_bytes()).ok_or(Error::NoRootHash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_root_hash_counts_and_a_short_or_missing_one_is_refused() {
        let text = format!("quiet roothash={} panic=5 roothash={}\n", "00".repeat(32), "ab".repeat(32));
        assert_eq!(root_hash(&text).unwrap(), [0xab; 32]);
        for text in ["", "quiet", "roothash=", "roothash=abcd", "roothash=zz"] {
            assert!(matches!(root_hash(text), Err(Error::NoRootHash)), "{text}");
        }
    }
}
