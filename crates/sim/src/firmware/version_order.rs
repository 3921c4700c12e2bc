//! The order of versions that boot loaders use: the UAPI Version Format Specification, which is what systemd's
//! `strverscmp_improved` implements (rpm's order with `~`, `-`, `^` and `.` as separators of falling weight).

use std::cmp::Ordering;

/// Compares two versions, older first.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        left = skip_foreign(left);
        right = skip_foreign(right);
        // A pre-release is older than anything, even than the end.
        if let Some(order) = separator(b'~', &mut left, &mut right) {
            return order;
        }
        if left.is_empty() || right.is_empty() {
            return left.len().min(1).cmp(&right.len().min(1));
        }
        for mark in *b"-^." {
            if let Some(order) = separator(mark, &mut left, &mut right) {
                return order;
            }
        }
        let digits = |bytes: &[u8]| bytes.first().is_some_and(u8::is_ascii_digit);
        let order = if digits(left) || digits(right) {
            let (a, b) = (take(&mut left, u8::is_ascii_digit), take(&mut right, u8::is_ascii_digit));
            // A number is newer than letters; longer (without leading zeros) is larger.
            let (significant_a, significant_b) = (without_zeros(a), without_zeros(b));
            (!a.is_empty())
                .cmp(&!b.is_empty())
                .then(significant_a.len().cmp(&significant_b.len()))
                .then(significant_a.cmp(significant_b))
        } else {
            take(&mut left, u8::is_ascii_alphabetic).cmp(take(&mut right, u8::is_ascii_alphabetic))
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Where one side starts with `mark` and the other does not, the side with it is older; where both do, it is skipped.
fn separator(mark: u8, left: &mut &[u8], right: &mut &[u8]) -> Option<Ordering> {
    match (left.strip_prefix(&[mark]), right.strip_prefix(&[mark])) {
        (Some(rest_left), Some(rest_right)) => {
            (*left, *right) = (rest_left, rest_right);
            None
        }
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (None, None) => None,
    }
}

fn skip_foreign(bytes: &[u8]) -> &[u8] {
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    bytes.iter().position(known).and_then(|at| bytes.get(at..)).unwrap_or_default()
}

fn take<'a>(bytes: &mut &'a [u8], wanted: fn(&u8) -> bool) -> &'a [u8] {
    let at = bytes.iter().position(|byte| !wanted(byte)).unwrap_or(bytes.len());
    let (head, rest) = bytes.split_at(at);
    *bytes = rest;
    head
}

fn without_zeros(digits: &[u8]) -> &[u8] {
    digits.iter().position(|digit| *digit != b'0').and_then(|at| digits.get(at..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_own_examples_hold() {
        // Newest last, from the examples of the Version Format Specification.
        let ordered = [
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-a1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for pair in ordered.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        for (left, right) in [("11", "0011"), ("bar_123", "bar-123"), ("", "")] {
            let expected = if left.contains('_') { Ordering::Greater } else { Ordering::Equal };
            assert_eq!(compare(left, right), expected, "{left} {right}");
        }
        assert_eq!(compare("systemd-123", "systemd-124"), Ordering::Less);
    }
}
