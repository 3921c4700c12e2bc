//! What fuzzing has found worth keeping: for each target the inputs that together reach all the code that any input was seen to
//! reach, and each input that once failed. `corpus/NAME.zst` holds them one behind the other, so that some hundred inputs are
//! one file in the repository.
//!
//! The format is ours and dull: the length as four bytes, little endian, then so many bytes, and all of it compressed.

use std::io::{self, Read as _};

/// More than this is no corpus of ours.
const MAX_LENGTH: u64 = 64 << 20;

/// Puts inputs together. The same inputs always give the same bytes, whatever their order.
///
/// # Errors
/// An input is longer than 4 GiB.
pub fn pack(mut inputs: Vec<Vec<u8>>) -> io::Result<Vec<u8>> {
    inputs.sort_by(|one, other| one.len().cmp(&other.len()).then_with(|| one.cmp(other)));
    inputs.dedup();
    let mut plain = Vec::new();
    for input in inputs {
        let length = u32::try_from(input.len()).map_err(io::Error::other)?;
        plain.extend(length.to_le_bytes());
        plain.extend(input);
    }
    zstd::bulk::compress(&plain, 19)
}

/// Takes them apart.
///
/// # Errors
/// It is no corpus.
pub fn unpack(packed: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut plain = Vec::new();
    zstd::Decoder::new(packed)?.take(MAX_LENGTH).read_to_end(&mut plain)?;
    let mut rest = plain.as_slice();
    let mut inputs = Vec::new();
    while !rest.is_empty() {
        let (length, more) = rest.split_first_chunk().ok_or(io::ErrorKind::UnexpectedEof)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (input, more) = more.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        inputs.push(input.to_vec());
        rest = more;
    }
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_half_of_one() {
        let inputs = vec![b"longer".to_vec(), b"b".to_vec(), Vec::new(), b"b".to_vec()];
        let packed = pack(inputs).unwrap();
        assert_eq!(unpack(&packed).unwrap(), [b"".to_vec(), b"b".to_vec(), b"longer".to_vec()]);
        let half = zstd::bulk::compress(&[9, 0, 0, 0, 1], 1).unwrap();
        assert_eq!(unpack(&half).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
