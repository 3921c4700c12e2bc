//! The few forms of DER (X.690) that a signature over a PE file is written in.

pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const NULL: [u8; 2] = [0x05, 0x00];
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;

/// Constructed, context-specific: `[number]`.
pub(super) const fn context(number: u8) -> u8 {
    0xA0 | number
}

/// A value with its tag and length (X.690, 8.1 and 10.1: the shortest length).
pub(super) fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut out = vec![tag];
    match body.len() {
        short @ 0..=0x7F => out.push(short as u8),
        long => {
            let digits: Vec<u8> = long.to_be_bytes().into_iter().skip_while(|digit| *digit == 0).collect();
            out.push(0x80 | digits.len() as u8);
            out.extend(digits);
        }
    }
    out.extend(body);
    out
}

/// A SET OF: its elements in the order of their bytes (X.690, 11.6).
pub(super) fn set_of(tag: u8, mut elements: Vec<Vec<u8>>) -> Vec<u8> {
    elements.sort();
    let parts: Vec<&[u8]> = elements.iter().map(Vec::as_slice).collect();
    value(tag, &parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_the_shortest() {
        assert_eq!(value(SEQUENCE, &[]), [0x30, 0]);
        assert_eq!(value(OCTET_STRING, &[&[7; 0x7F]])[..2], [4, 0x7F]);
        assert_eq!(value(OCTET_STRING, &[&[7; 0x80]])[..3], [4, 0x81, 0x80]);
        assert_eq!(value(OCTET_STRING, &[&[7; 0x1234]])[..4], [4, 0x82, 0x12, 0x34]);
        assert_eq!(set_of(SET, vec![vec![2, 1, 9], vec![2, 1, 1]]), [0x31, 6, 2, 1, 1, 2, 1, 9]);
    }
}
