//! Release versions and their order.

use crate::{NameError, compare_versions, name_type};
use std::cmp::Ordering;

/// The version of a release, as an OS image says it in `IMAGE_VERSION`: `1.0`, `24.04`, `2026.03.1`, `20260315`,
/// `41.3.0~rc.1`.
///
/// Letters, at least one digit, and `. ~ ^ - _`, beginning with a letter or digit: what os-release(5) and UAPI.10 ("Version Format
/// Specification") allow. Not `+`, which the Boot Loader Specification gives to the counter in the names of boot entries.
///
/// The order is that of [`compare_versions`], systemd's: `~` marks a pre-release (`1.0~rc.1` is older than `1.0`), while
/// `-` and `^` mark what came after (`1.0-rc.1` is newer than `1.0`). Versions that systemd holds equal (`1.0`, `1.00`)
/// order by their text, so that equality stays equality of text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version(String);

const EXPECTED: &str = "letters, digits and . ~ ^ - _, beginning with a letter or digit, with a digit somewhere, like 24.04 or 41.3.0~rc.1";

impl Version {
    /// The longest accepted version, in bytes. With `A/B` labels and counters it still fits a GPT partition name
    /// (36 UTF-16 units, UEFI 2.10 section 5.3.3).
    pub const MAX_LENGTH: usize = 24;

    /// Parses a version.
    ///
    /// # Errors
    /// [`NameError`] when the text is too long or has other characters.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > Self::MAX_LENGTH {
            return Err(NameError::Length { what: "version", max: Self::MAX_LENGTH, len: text.len() });
        }
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        // What has no digit is the label of somebody else's partition ("rootfs") or the name of a channel.
        let counts = text.bytes().any(|byte| byte.is_ascii_digit());
        if !begins || !counts || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".~^-_".contains(&byte)) {
            return Err(NameError::shape("version", text, EXPECTED));
        }
        Ok(Self(text.to_owned()))
    }

    /// The version as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        compare_versions(&self.0, &other.0).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

name_type!(
    Version,
    r"^([0-9]|[A-Za-z][A-Za-z.~^_-]*[0-9])[0-9A-Za-z.~^_-]*$",
    24,
    "The version of a release, like 24.04 or 41.3.0~rc.1."
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn orders_as_systemd_does() {
        let ordered = [
            "0.9",
            "1.0~alpha",
            "1.0~alpha.1",
            "1.0~beta.2",
            "1.0~beta.11",
            "1.0",
            "1.00",
            "1.0-rc.1",
            "1.0^git1",
            "1.0.1",
            "1.10",
            "24.04",
            "24.10",
            "2026.03.1",
            "2026.03.10",
            "20260315",
            "20260401",
        ];
        for pair in ordered.windows(2) {
            assert!(v(pair[0]) < v(pair[1]), "{} < {}", pair[0], pair[1]);
        }
    }

    #[test]
    fn refuses_other_shapes_with_a_sentence() {
        let long = "1".repeat(25);
        for text in [
            "",
            "stable",
            ".1",
            "-1",
            "~1",
            "_1",
            "1.2+build",
            "1+3-0",
            "1.2 ",
            "1.2/../x",
            "1:2",
            "1,2",
            "1.2\n",
            "1.ä",
            &long,
        ] {
            let error = Version::parse(text).unwrap_err().to_string();
            assert!(error.contains("version"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn order_is_total_and_agrees_with_equality(texts in proptest::array::uniform3("[0-2][0-2ab.~^_-]{0,5}")) {
            let [a, b, c] = texts.each_ref().map(|text| v(text));
            prop_assert_eq!(a == b, a.cmp(&b) == Ordering::Equal);
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            if a <= b && b <= c {
                prop_assert!(a <= c, "{} {} {}", a, b, c);
            }
        }

        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = Version::parse(&text);
        }
    }
}
