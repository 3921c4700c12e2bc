//! In which order a boot loader puts versions (UAPI Version Format Specification, "Version Comparison").
//!
//! It is not the order of releases: there `1.0-rc.1` comes before `1.0`, here after it. What counts when a slot is armed
//! is what the boot loader will do.

use std::cmp::Ordering;

/// Compares two versions as systemd-boot does.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        a = skip_separators(a);
        b = skip_separators(b);
        // '~' sorts before everything, also before the end.
        match (a.first() == Some(&b'~'), b.first() == Some(&b'~')) {
            (true, true) => {
                (a, b) = (rest(a), rest(b));
                continue;
            }
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        match (a.is_empty(), b.is_empty()) {
            (true, true) => return Ordering::Equal,
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            (false, false) => {}
        }
        // Then '-', '^' and '.', in this order; each ends what came before it.
        let mut ended = false;
        for sign in *b"-^." {
            match (a.first() == Some(&sign), b.first() == Some(&sign)) {
                (true, true) => {
                    (a, b) = (rest(a), rest(b));
                    ended = true;
                    break;
                }
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                (false, false) => {}
            }
        }
        if ended {
            continue;
        }
        let digits = |bytes: &[u8]| bytes.first().is_some_and(u8::is_ascii_digit);
        let order = if digits(a) || digits(b) {
            let (left, right) = (take(&mut a, u8::is_ascii_digit), take(&mut b, u8::is_ascii_digit));
            let (left, right) = (trim_zeros(left), trim_zeros(right));
            left.len().cmp(&right.len()).then_with(|| left.cmp(right))
        } else {
            let (left, right) = (take(&mut a, u8::is_ascii_alphabetic), take(&mut b, u8::is_ascii_alphabetic));
            left.cmp(right)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn rest(bytes: &[u8]) -> &[u8] {
    bytes.get(1..).unwrap_or_default()
}

fn skip_separators(bytes: &[u8]) -> &[u8] {
    let means_something = |b: &u8| b.is_ascii_alphanumeric() || b"~-^.".contains(b);
    let start = bytes.iter().position(means_something).unwrap_or(bytes.len());
    bytes.get(start..).unwrap_or_default()
}

fn take<'a>(bytes: &mut &'a [u8], wanted: impl Fn(&u8) -> bool) -> &'a [u8] {
    let end = bytes.iter().position(|b| !wanted(b)).unwrap_or(bytes.len());
    let (taken, left) = bytes.split_at(end);
    *bytes = left;
    taken
}

fn trim_zeros(digits: &[u8]) -> &[u8] {
    let start = digits.iter().position(|b| *b != b'0').unwrap_or(digits.len());
    digits.get(start..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_specification() {
        // UAPI.10, "Examples".
        for (a, order, b) in [
            ("11", '=', "11"),
            ("systemd-123", '=', "systemd-123"),
            ("bar-123", '<', "foo-123"),
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
        ] {
            let expected = match order {
                '<' => Ordering::Less,
                '>' => Ordering::Greater,
                _ => Ordering::Equal,
            };
            assert_eq!(compare(a, b), expected, "{a} {order} {b}");
            assert_eq!(compare(b, a), expected.reverse(), "{b} {a}");
        }
    }
}
