//! What kind of file system an image holds, from its superblock.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::Context as _;

use super::{COMPRESSED, Finding, UNKNOWN_FORMAT};

/// EROFS: magic and features of the superblock, which lies at 1024 (Linux, fs/erofs/erofs_fs.h).
const EROFS_AT: u64 = 1024;
const EROFS_MAGIC: u32 = 0xE0F5_E1E2;
const EROFS_INCOMPATIBLE: usize = 80;
/// ZERO_PADDING, COMPR_CFGS, ZTAILPACKING: set where files are compressed.
const EROFS_COMPRESSED: u32 = 0x01 | 0x02 | 0x10;

pub(crate) fn image(path: &Path) -> anyhow::Result<Vec<Finding>> {
    let mut start = vec![0; 4096];
    let file = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
    let mut length = 0;
    while let Some(rest) = start.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, length as u64).with_context(|| format!("can't read {}", path.display()))? {
            0 => break,
            count => length += count,
        }
    }
    Ok(judge(start.get(..length).unwrap_or_default()))
}

fn judge(start: &[u8]) -> Vec<Finding> {
    let number = |at: usize| start.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
    let at = EROFS_AT as usize;
    if number(at) == Some(EROFS_MAGIC) {
        return match number(at + EROFS_INCOMPATIBLE) {
            Some(features) if features & EROFS_COMPRESSED == 0 => Vec::new(),
            _ => vec![COMPRESSED.found("the EROFS image is compressed")],
        };
    }
    if start.starts_with(b"hsqs") {
        return vec![COMPRESSED.found("the image is squashfs, which is compressed")];
    }
    // ext2/3/4: magic at 56 of the superblock.
    if start.get(at + 56..at + 58) == Some(&[0x53, 0xEF]) {
        return Vec::new();
    }
    vec![UNKNOWN_FORMAT.found("the image is in no file system that is known here")]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_mkfs_makes_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        std::fs::write(tree.join("file"), vec![b'a'; 200_000]).unwrap();
        for (option, compressed) in [(None, false), (Some("-zlz4"), true), (Some("-zlz4hc,12"), true)] {
            let image = folder.path().join("image");
            let mut command = Command::new("mkfs.erofs");
            let output = command.args(option).arg(&image).arg(&tree).output().expect("install erofs-utils");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let found = super::image(&image).unwrap();
            assert_eq!(found.iter().any(|finding| finding.check == COMPRESSED), compressed, "{option:?} {found:?}");
            assert!(compressed || found.is_empty(), "{found:?}");
            std::fs::remove_file(&image).unwrap();
        }
        assert_eq!(judge(b"hsqs")[0].check, COMPRESSED);
        assert_eq!(judge(&[7; 4096])[0].check, UNKNOWN_FORMAT);
        assert_eq!(judge(b"")[0].check, UNKNOWN_FORMAT);
    }
}
