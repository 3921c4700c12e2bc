//! Which parts of a sparse file hold something.

use std::fs::File;
use std::io;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// File systems tell holes in units of their own; what goes to a disk is cut along these.
const BLOCK: u64 = 4096;

/// Offset and length of what was written, ascending; from the first `length` bytes of a file.
pub(crate) fn written(file: &File, length: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < length {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        let (from, to) = (start - start % BLOCK, end.next_multiple_of(BLOCK).min(length));
        found.push((from, to.saturating_sub(from)));
        at = end.max(at + 1);
    }
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn what_was_written_is_found_and_holes_are_not() {
        let file = tempfile::tempfile().unwrap();
        let length = 64 << 20;
        file.set_len(length).unwrap();
        assert_eq!(written(&file, length).unwrap(), []);
        file.write_all_at(&[1], 5_000).unwrap();
        file.write_all_at(&[0; 4096], 32 << 20).unwrap();
        file.write_all_at(&[1], length - 1).unwrap();
        let found = written(&file, length).unwrap();
        let holds = |at: u64| found.iter().any(|(start, length)| (*start..start + length).contains(&at));
        assert!(holds(5_000) && holds(32 << 20) && holds(length - 1), "{found:?}");
        assert!(!holds(16 << 20) && !holds(48 << 20), "{found:?}");
        assert!(
            found.iter().all(|(start, length)| start.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK)),
            "{found:?}"
        );
    }
}
