//! What a unified kernel image says about itself (UAPI Unified Kernel Image Specification, sections `.osrel`, `.cmdline`).

use std::io::{self, Read, Seek, SeekFrom};

use bascule_image::io::ReadAt;
use object::read::ReadCache;
use object::read::pe::PeFile64;
use object::{Object as _, ObjectSection as _};

/// Sections longer than this are not read.
const MAX_TEXT: u64 = 64 << 10;

/// What a boot loader and the agent read from an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UkiFacts {
    /// IMAGE_ID, else ID: what the boot loader sorts by first.
    pub sort_key: Option<String>,
    /// IMAGE_VERSION, else VERSION_ID, else BUILD_ID: what it sorts by next.
    pub version: Option<String>,
    /// The kernel's command line.
    pub command_line: String,
}

/// Reads them. `None` if the bytes are no such image.
///
/// # Errors
/// Reading failed.
pub fn read(file: &dyn ReadAt) -> io::Result<Option<UkiFacts>> {
    let length = file.size()?;
    let cache = ReadCache::new(Stream { file, position: 0, length });
    let Ok(image) = PeFile64::parse(&cache) else { return Ok(None) };
    let text = |name: &str| {
        let section = image.section_by_name(name).filter(|section| section.size() <= MAX_TEXT)?;
        let bytes = section.data().ok()?;
        Some(String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned())
    };
    let Some(release) = text(".osrel") else { return Ok(None) };
    let fields = os_release(&release);
    let field = |names: &[&str]| {
        names.iter().find_map(|name| fields.iter().find(|(key, _)| key == name)).map(|(_, value)| value.clone())
    };
    Ok(Some(UkiFacts {
        sort_key: field(&["IMAGE_ID", "ID"]),
        version: field(&["IMAGE_VERSION", "VERSION_ID", "BUILD_ID"]),
        command_line: text(".cmdline").unwrap_or_default().trim().to_owned(),
    }))
}

/// The assignments of an os-release file that are not empty (os-release(5): shell-like, quotes optional).
pub fn os_release(text: &str) -> Vec<(String, String)> {
    let assignment = |line: &str| {
        let (key, value) = line.trim().split_once('=')?;
        let value = value.trim();
        let bare = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        let value = bare.unwrap_or(value);
        (!value.is_empty() && !key.starts_with('#')).then(|| (key.to_owned(), value.to_owned()))
    };
    text.lines().filter_map(assignment).collect()
}

struct Stream<'a> {
    file: &'a dyn ReadAt,
    position: u64,
    length: u64,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.length.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        let Some(part) = buffer.get_mut(..count).filter(|part| !part.is_empty()) else { return Ok(0) };
        self.file.read_at(part, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Stream<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_image_is_none() {
        assert_eq!(read(&b"MZ".to_vec()).unwrap(), None);
        assert_eq!(read(&Vec::new()).unwrap(), None);
    }

    #[test]
    fn os_release_takes_quotes_off_and_skips_comments() {
        let fields = os_release("# c\nID=acme\nNAME=\"Acme OS\"\nEMPTY=\nVERSION_ID='1.0'\n");
        let shown: Vec<_> = fields.iter().map(|(key, value)| format!("{key}:{value}")).collect();
        assert_eq!(shown, ["ID:acme", "NAME:Acme OS", "VERSION_ID:1.0"]);
    }
}
