//! Release versions and their order.

use crate::{NameError, name_type};
use std::cmp::Ordering;

/// The version of a release, e.g. `1.0`, `41.3.0` or `41.3.0-rc.1`.
///
/// Two to four numbers without leading zeros, then optionally `-` and dot-separated identifiers of letters and
/// digits. The order is that of Semantic Versioning 2.0.0, section 11, with absent numbers read as zero: a
/// pre-release comes before its release. Versions that differ only in trailing zeros (`1.0`, `1.0.0`) order by
/// their text, so that equality stays equality of text.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version(String);

const EXPECTED: &str = "two to four numbers joined by dots, optionally '-' and identifiers, like 41.3.0 or 41.3.0-rc.1";

impl Version {
    /// The longest accepted version, in bytes. With `A/B` labels and counters it still fits a GPT partition name
    /// (36 UTF-16 units, UEFI 2.10 section 5.3.3).
    pub const MAX_LENGTH: usize = 24;

    /// Parses a version.
    ///
    /// # Errors
    /// [`NameError`] when the text is too long or of another shape.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > Self::MAX_LENGTH {
            return Err(NameError::Length { what: "version", max: Self::MAX_LENGTH, len: text.len() });
        }
        let refuse = || NameError::shape("version", text, EXPECTED);
        let (numbers, pre) = match text.split_once('-') {
            Some((numbers, pre)) => (numbers, Some(pre)),
            None => (text, None),
        };
        let mut count = 0;
        for number in numbers.split('.') {
            count += 1;
            let digits = !number.is_empty() && number.len() <= 9 && number.bytes().all(|b| b.is_ascii_digit());
            if !digits || (number.len() > 1 && number.starts_with('0')) {
                return Err(refuse());
            }
        }
        if !(2..=4).contains(&count) {
            return Err(refuse());
        }
        if let Some(pre) = pre
            && !pre.split('.').all(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric()))
        {
            return Err(refuse());
        }
        Ok(Self(text.to_owned()))
    }

    /// The version as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn numbers(&self) -> [u32; 4] {
        let mut out = [0; 4];
        let numbers = self.0.split_once('-').map_or(self.0.as_str(), |(numbers, _)| numbers);
        for (slot, number) in out.iter_mut().zip(numbers.split('.')) {
            *slot = number.parse().unwrap_or(0);
        }
        out
    }

    fn pre_release(&self) -> Option<&str> {
        self.0.split_once('-').map(|(_, pre)| pre)
    }
}

fn compare_pre_release(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.split('.'), b.split('.'));
    loop {
        let order = match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(x), Some(y)) => match (x.parse::<u64>(), y.parse::<u64>()) {
                (Ok(x), Ok(y)) => x.cmp(&y),
                (Ok(_), Err(_)) => Ordering::Less,
                (Err(_), Ok(_)) => Ordering::Greater,
                (Err(_), Err(_)) => x.cmp(y),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.numbers()
            .cmp(&other.numbers())
            .then_with(|| match (self.pre_release(), other.pre_release()) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(a), Some(b)) => compare_pre_release(a, b),
            })
            .then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

name_type!(
    Version,
    r"^(0|[1-9][0-9]{0,8})(\.(0|[1-9][0-9]{0,8})){1,3}(-[0-9A-Za-z]+(\.[0-9A-Za-z]+)*)?$",
    24,
    "The version of a release, like 41.3.0 or 41.3.0-rc.1."
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn orders_like_semantic_versioning() {
        let ordered = [
            "0.9",
            "1.0-alpha",
            "1.0-alpha.1",
            "1.0-alpha.beta",
            "1.0-beta.2",
            "1.0-beta.11",
            "1.0",
            "1.0.1",
            "1.10",
            "41.3.0",
        ];
        for pair in ordered.windows(2) {
            assert!(v(pair[0]) < v(pair[1]), "{} < {}", pair[0], pair[1]);
        }
    }

    #[test]
    fn refuses_other_shapes_with_a_sentence() {
        for text in [
            "",
            "1",
            "1.",
            "01.2",
            "1.2.3.4.5",
            "1.2-",
            "1.2-a..b",
            "v1.2",
            "1.2+build",
            "1.2 ",
            "1.9999999999",
            "1.2/../x",
        ] {
            let error = Version::parse(text).unwrap_err().to_string();
            assert!(error.contains("version"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn order_is_total_and_agrees_with_equality(a in "[0-9]{1,2}\\.[0-9]{1,2}(-[a-z0-9]{1,2})?", b in "[0-9]{1,2}\\.[0-9]{1,2}(-[a-z0-9]{1,2})?") {
            if let (Ok(a), Ok(b)) = (Version::parse(&a), Version::parse(&b)) {
                prop_assert_eq!(a == b, a.cmp(&b) == Ordering::Equal);
                prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            }
        }

        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = Version::parse(&text);
        }
    }
}
