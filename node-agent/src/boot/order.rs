//! In which order a boot loader puts versions (UAPI Version Format Specification, "Version Comparison").
//!
//! It is not the order of releases: there `1.0-rc.1` comes before `1.0`, here after it. What counts when a slot is armed
//! is what the boot loader will do.

use std::cmp::Ordering;

/// Compares two versions as systemd-boot does.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (skip_separators(a), skip_separators(b));
        // '~' sorts before everything, also before the end.
        if let Some(order) = sign(b'~', &mut a, &mut b) {
            return order;
        }
        if a.is_empty() || b.is_empty() {
            return (!a.is_empty()).cmp(&!b.is_empty());
        }
        for mark in *b"-^." {
            if let Some(order) = sign(mark, &mut a, &mut b) {
                return order;
            }
        }
        let digits = |bytes: &[u8]| bytes.first().is_some_and(u8::is_ascii_digit);
        let order = if digits(a) || digits(b) {
            let (left, right) = (take(&mut a, u8::is_ascii_digit), take(&mut b, u8::is_ascii_digit));
            // A number is newer than letters, whatever it is: "1.0" than "1.a".
            let numbers = (!left.is_empty()).cmp(&!right.is_empty());
            let (left, right) = (trim_zeros(left), trim_zeros(right));
            numbers.then_with(|| left.len().cmp(&right.len())).then_with(|| left.cmp(right))
        } else {
            let (left, right) = (take(&mut a, u8::is_ascii_alphabetic), take(&mut b, u8::is_ascii_alphabetic));
            left.cmp(right)
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// Which side begins with `sign` is older; where both do, it is taken away.
fn sign(sign: u8, a: &mut &[u8], b: &mut &[u8]) -> Option<Ordering> {
    match (a.first() == Some(&sign), b.first() == Some(&sign)) {
        (true, true) => {
            (*a, *b) = (rest(a), rest(b));
            None
        }
        (true, false) => Some(Ordering::Less),
        (false, true) => Some(Ordering::Greater),
        (false, false) => None,
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
            ("1.0~rc.1", '<', "1.0"),
            ("1.0", '>', "1.a"),
            ("1.a", '<', "1.0"),
            ("1.00", '=', "1.0"),
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
