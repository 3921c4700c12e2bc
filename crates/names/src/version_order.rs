//! The order of versions that the whole of systemd uses: UAPI.10, "Version Format Specification", which systemd implements
//! as `strverscmp_improved`. systemd-boot sorts its entries by it, systemd-sysupdate its releases, and so does Bascule:
//! what the publisher, the planner and the agent call newer is what the boot loader starts first.

use std::cmp::Ordering;

/// Compares two versions, older first. Any text may be given: a boot loader compares what it finds. Texts that differ may be
/// equal (`1.0` and `1.00`, `1_` and `1`).
pub fn compare_versions(left: &str, right: &str) -> Ordering {
    let (mut left, mut right) = (left.as_bytes(), right.as_bytes());
    loop {
        (left, right) = (skip_foreign(left), skip_foreign(right));
        // A pre-release is older than anything, even than the end.
        if let Some(order) = separator(b'~', &mut left, &mut right) {
            return order;
        }
        if left.is_empty() || right.is_empty() {
            return (!left.is_empty()).cmp(&!right.is_empty());
        }
        for mark in *b"-^." {
            if let Some(order) = separator(mark, &mut left, &mut right) {
                return order;
            }
        }
        let digits = |bytes: &[u8]| bytes.first().is_some_and(u8::is_ascii_digit);
        let order = if digits(left) || digits(right) {
            let (a, b) = (take(&mut left, u8::is_ascii_digit), take(&mut right, u8::is_ascii_digit));
            // A number is newer than letters; the longer one, without leading zeros, is the larger one.
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

/// Where one side starts with `mark` and the other does not, the side with it is older; where both do, it is taken away.
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
    fn the_specifications_own_chain_holds() {
        // Oldest first, from UAPI.10, "Examples".
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
            assert_eq!(compare_versions(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare_versions(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
    }

    #[test]
    fn the_specifications_own_pairs_hold() {
        for (a, order, b) in [
            ("11", '=', "11"),
            ("11", '=', "0011"),
            ("systemd-123", '=', "systemd-123"),
            ("systemd-123", '<', "systemd-124"),
            ("bar-123", '<', "foo-123"),
            ("bar_123", '>', "bar-123"),
            ("123a", '>', "123"),
            ("123.a", '>', "123"),
            ("123.a", '<', "123.b"),
            ("123a", '>', "123.a"),
            ("11α", '=', "11β"),
            ("A", '<', "a"),
            ("", '<', "0"),
            ("0.", '>', "0"),
            ("0.0", '>', "0"),
            ("0", '>', "~"),
            ("", '>', "~"),
            ("1_", '=', "1"),
            ("_1", '=', "1"),
            ("1_", '<', "1.2"),
            ("1_2_3", '>', "1.3.3"),
            ("1+", '=', "1"),
            ("+1", '=', "1"),
            ("1+", '<', "1.2"),
            ("1+2+3", '>', "1.3.3"),
            ("1.10", '>', "1.9"),
            ("1.0-rc.1", '>', "1.0"),
            ("1.0~rc.1", '<', "1.0"),
            ("1.0", '>', "1.a"),
            ("1.00", '=', "1.0"),
        ] {
            let expected = match order {
                '<' => Ordering::Less,
                '>' => Ordering::Greater,
                _ => Ordering::Equal,
            };
            assert_eq!(compare_versions(a, b), expected, "{a} {order} {b}");
            assert_eq!(compare_versions(b, a), expected.reverse(), "{b} {a}");
        }
    }
}
