//! Writes an initrd archive: cpio in the "newc" format that the kernel unpacks
//! (kernel documentation, driver-api/early-userspace/buffer-format).

/// File type bits of a mode, as stat(2) has them.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// An archive being written. Inode numbers count up and times are zero, so that the same input gives the same bytes.
#[derive(Debug, Default)]
pub(crate) struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    pub(crate) fn folder(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, &[]);
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, REGULAR | mode, content);
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(path.len() + 1).unwrap_or(u32::MAX);
        // magic, then thirteen fields: ino, mode, uid, gid, nlink, mtime, size, device and special device, name size, check.
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn the_archive_is_padded_and_ends_with_a_trailer() {
        let mut archive = Cpio::default();
        archive.folder("dev");
        archive.file("init", 0o755, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("070701"));
        assert_eq!(text.matches("070701").count(), 3);
        assert!(text.contains("TRAILER!!!"));
    }

    #[test]
    fn cpio_itself_reads_what_we_write() {
        let mut archive = Cpio::default();
        archive.folder("dev");
        archive.file("init", 0o755, b"hello");
        let Ok(mut child) = Command::new("cpio").arg("-tv").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
            return; // the kernel is the judge in the boot tests; cpio is not on every machine
        };
        child.stdin.take().unwrap().write_all(&archive.finish()).unwrap();
        let listed = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&listed.stdout);
        assert!(listed.status.success() && text.contains("-rwxr-xr-x") && text.contains("drwxr-xr-x"), "{text}");
    }
}
