//! Reading a UKI through [`ReadAt`]: headers first, then only the sections that are asked for.

use std::io;
use std::ops::Range;

use bascule_names::{Architecture, RootHash};
use object::LittleEndian as LE;
use object::pe::{self, ImageDosHeader};

use super::build::{SECTION_HEADER, check_text, parse};
use super::{MAX_COMMAND_LINE, MAX_OS_RELEASE, MAX_SECTIONS, OsRelease, UkiError};
use crate::command_line::CommandLine;
use crate::io::ReadAt;
use crate::release::manifest::MAX_UKI_SIZE;

const WHAT: &str = "UKI";
/// What is read at first: DOS header, PE headers and section table of every UKI that linkers and `ukify` write.
pub(super) const FIRST: u64 = 4 << 10;
/// Headers that end further in than this are not read, and then the file is not judged.
const MAX_HEADERS: u64 = 64 << 10;
/// Length of the PE signature and the file header.
const NT_START: u64 = 24;
/// Separates the profiles of a UKI with several (UAPI.5, "Multi-Profile UKIs").
pub(super) const PROFILE: &str = ".profile";

/// Why a UKI could not be read. The two are never to be confused: what could not be read may be anything, the running
/// system's own boot image too.
#[derive(Debug, thiserror::Error)]
pub enum ReadUkiError {
    /// The file system or the medium failed; nothing is known about the content.
    #[error("{length} bytes at offset {offset} of the UKI could not be read")]
    Unreadable {
        /// Where, in bytes.
        offset: u64,
        /// How much was asked for; 0 where the file's length was.
        length: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was read, and it is no UKI or has not what was asked for.
    #[error(transparent)]
    NotUki(#[from] UkiError),
}

impl ReadUkiError {
    /// Stable label for metrics and conditions.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "uki-unreadable",
            Self::NotUki(error) => error.category(),
        }
    }
}

/// The processor that a UKI is for, by its PE header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// x86-64.
    X86_64,
    /// arm64.
    Arm64,
    /// Another one: IMAGE_FILE_MACHINE_*.
    Other(u16),
}

impl Processor {
    /// Whether machines of this architecture have it.
    pub const fn is(self, architecture: Architecture) -> bool {
        matches!((self, architecture), (Self::X86_64, Architecture::X86_64) | (Self::Arm64, Architecture::Arm64))
    }
}

impl std::fmt::Display for Processor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::X86_64 => f.write_str("x86-64"),
            Self::Arm64 => f.write_str("arm64"),
            Self::Other(number) => write!(f, "PE machine {number:#06x}"),
        }
    }
}

#[derive(Debug, Clone)]
struct Section {
    name: [u8; 8],
    bytes: Range<u64>,
    /// Its length in memory, where zeros follow what the file has of it.
    memory: u64,
}

impl Section {
    fn is(&self, name: &str) -> bool {
        is_called(&self.name, name)
    }
}

/// Whether a section is called so. Names end at the first NUL.
pub(super) fn is_called(section: &[u8; 8], name: &str) -> bool {
    section.split(|byte| *byte == 0).next() == Some(name.as_bytes())
}

/// A UKI whose headers were read and checked: every section lies inside the file.
#[derive(Clone)]
#[allow(missing_debug_implementations, reason = "it holds the caller's reader, which need not have it")]
pub struct Uki<'a> {
    file: &'a dyn ReadAt,
    processor: Processor,
    sections: Vec<Section>,
    /// The profile whose sections are found.
    profile: usize,
}

impl<'a> Uki<'a> {
    /// Reads and checks the headers.
    ///
    /// # Errors
    /// [`ReadUkiError`].
    pub fn open(file: &'a dyn ReadAt) -> Result<Self, ReadUkiError> {
        let length = length_of(file)?;
        if length > MAX_UKI_SIZE {
            return Err(UkiError::TooLong { what: WHAT, found: length, max: MAX_UKI_SIZE }.into());
        }
        let headers = headers(file, length)?;
        let broken = |source| UkiError::Pe { what: WHAT, source };
        let field = |field| UkiError::Field { what: WHAT, field };
        let (nt_headers, _, table) = parse(&headers).map_err(broken)?;
        if table.len() > MAX_SECTIONS {
            return Err(UkiError::TooMany { found: table.len(), max: MAX_SECTIONS }.into());
        }
        let mut sections = Vec::with_capacity(table.len());
        for section in table.iter() {
            let start = u64::from(section.pointer_to_raw_data.get(LE));
            let raw = u64::from(section.size_of_raw_data.get(LE));
            // The padding behind a section belongs to the file: without it the file is truncated.
            if start + raw > length {
                return Err(field("section layout").into());
            }
            let (start, size) = section.pe_file_range();
            let start = u64::from(start);
            let end = start + u64::from(size);
            if end > length {
                return Err(field("section layout").into());
            }
            let memory = u64::from(section.virtual_size.get(LE));
            sections.push(Section { name: section.name, bytes: start..end, memory });
        }
        let processor = match nt_headers.file_header.machine.get(LE) {
            pe::IMAGE_FILE_MACHINE_AMD64 => Processor::X86_64,
            pe::IMAGE_FILE_MACHINE_ARM64 => Processor::Arm64,
            other => Processor::Other(other.0),
        };
        Ok(Self { file, processor, sections, profile: 0 })
    }

    /// The same UKI as another profile of it boots, of which the first is 0.
    #[must_use]
    pub fn of_profile(mut self, profile: usize) -> Self {
        self.profile = profile;
        self
    }

    /// How many profiles it has. One without any is one.
    pub fn profiles(&self) -> usize {
        self.sections.iter().filter(|section| section.is(PROFILE)).count().max(1)
    }

    /// The processor it is for.
    pub const fn processor(&self) -> Processor {
        self.processor
    }

    /// Length in bytes of the section with this name (like `.linux`) that boots by default.
    ///
    /// # Errors
    /// [`UkiError::Section`]: there is none, or more than one.
    pub fn section_size(&self, name: &'static str) -> Result<u64, UkiError> {
        self.find(name).map(|section| section.bytes.end - section.bytes.start)
    }

    /// The bytes of that section, at most `max`.
    ///
    /// # Errors
    /// [`ReadUkiError`].
    pub fn section(&self, name: &'static str, max: u64) -> Result<Vec<u8>, ReadUkiError> {
        let Section { bytes: Range { start, end }, .. } = self.find(name)?;
        let (offset, length) = (*start, end - start);
        if length > max {
            return Err(UkiError::TooLong { what: name, found: length, max }.into());
        }
        read(self.file, offset, length)
    }

    /// Where the bytes of a section lie in the file, and its length in memory.
    pub(super) fn place(&self, name: &'static str) -> Result<(Range<u64>, u64), UkiError> {
        // What separates profiles belongs to the one that it begins.
        let section = match name {
            PROFILE => self.sections.iter().filter(|section| section.is(PROFILE)).nth(self.profile),
            _ => return self.find(name).map(|section| (section.bytes.clone(), section.memory)),
        };
        section.map(|section| (section.bytes.clone(), section.memory)).ok_or(UkiError::Section { name, found: 0 })
    }

    /// Bytes of the file.
    pub(super) fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, ReadUkiError> {
        read(self.file, offset, length)
    }

    /// Of a UKI with several profiles the first one boots, unless another is asked for: its own sections, and what all have in common.
    fn find(&self, name: &'static str) -> Result<&Section, UkiError> {
        let mut parts = self.sections.split(|section| section.is(PROFILE));
        let (common, own) = (parts.next().unwrap_or_default(), parts.nth(self.profile).unwrap_or_default());
        for part in [own, common] {
            let mut found = part.iter().filter(|section| section.is(name));
            match (found.next(), found.count()) {
                (Some(section), 0) => return Ok(section),
                (Some(_), more) => return Err(UkiError::Section { name, found: more + 1 }),
                (None, _) => {}
            }
        }
        Err(UkiError::Section { name, found: 0 })
    }

    /// The kernel's command line.
    ///
    /// # Errors
    /// [`ReadUkiError`].
    pub fn command_line(&self) -> Result<CommandLine, ReadUkiError> {
        Ok(CommandLine::from(self.text("command line", ".cmdline", MAX_COMMAND_LINE, false)?))
    }

    /// The image's os-release.
    ///
    /// # Errors
    /// [`ReadUkiError`].
    pub fn os_release(&self) -> Result<OsRelease, ReadUkiError> {
        Ok(OsRelease::parse(&self.text("os-release", ".osrel", MAX_OS_RELEASE, true)?))
    }

    /// The image's os-release as a boot loader reads it, which takes whatever bytes there are up to the first NUL.
    ///
    /// # Errors
    /// [`ReadUkiError`]; among them no text at all.
    pub fn shown_os_release(&self) -> Result<OsRelease, ReadUkiError> {
        let mut bytes = self.text_bytes("os-release", ".osrel", MAX_OS_RELEASE)?;
        bytes.truncate(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
        Ok(OsRelease::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// The verity root hash that the command line names, `None` where it names none. A UKI without a command line takes it
    /// from elsewhere and names none either.
    ///
    /// # Errors
    /// [`ReadUkiError`]; also where a root hash is named that is none.
    pub fn root_hash(&self) -> Result<Option<RootHash>, ReadUkiError> {
        if matches!(self.find(".cmdline"), Err(UkiError::Section { found: 0, .. })) {
            return Ok(None);
        }
        let named = self.command_line()?.verity_hash();
        Ok(named.map_err(|_| UkiError::Text { what: "root hash" })?)
    }

    fn text_bytes(&self, what: &'static str, name: &'static str, max: usize) -> Result<Vec<u8>, ReadUkiError> {
        // Some builders end the text with NUL bytes, and pad it to the section's end; the stub ignores them too.
        let mut bytes = self.section(name, (max as u64).next_multiple_of(FIRST) + FIRST)?;
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.truncate(end);
        if bytes.len() > max {
            return Err(UkiError::TooLong { what, found: bytes.len() as u64, max: max as u64 }.into());
        }
        Ok(bytes)
    }

    fn text(&self, what: &'static str, name: &'static str, max: usize, lines: bool) -> Result<String, ReadUkiError> {
        let bytes = self.text_bytes(what, name, max)?;
        let mut text = String::from_utf8(bytes).map_err(|_| UkiError::Text { what })?;
        text.truncate(text.trim_end().len());
        check_text(what, &text, max, lines)?;
        Ok(text)
    }
}

pub(super) fn length_of(file: &dyn ReadAt) -> Result<u64, ReadUkiError> {
    file.size().map_err(|source| ReadUkiError::Unreadable { offset: 0, length: 0, source })
}

pub(super) fn read(file: &dyn ReadAt, offset: u64, length: u64) -> Result<Vec<u8>, ReadUkiError> {
    let unreadable = |source| ReadUkiError::Unreadable { offset, length, source };
    let size = usize::try_from(length).map_err(|_| unreadable(io::ErrorKind::OutOfMemory.into()))?;
    let mut bytes = vec![0; size];
    if size > 0 {
        file.read_at(&mut bytes, offset).map_err(unreadable)?;
    }
    Ok(bytes)
}

/// The file's start as far as its headers go.
fn headers(file: &dyn ReadAt, length: u64) -> Result<Vec<u8>, ReadUkiError> {
    let start = read(file, 0, length.min(FIRST))?;
    let broken = |source| UkiError::Pe { what: WHAT, source };
    let offset = u64::from(ImageDosHeader::parse(start.as_slice()).map_err(broken)?.nt_headers_offset());
    // Signature and file header, which say how far the rest goes.
    let nt_end = offset + NT_START;
    if length <= FIRST || nt_end > length {
        return Ok(start);
    }
    let place = usize::try_from(offset).unwrap_or(usize::MAX);
    let nt = match start.get(place..).and_then(|nt| nt.get(..NT_START as usize)) {
        Some(nt) => nt.to_vec(),
        None => read(file, offset, NT_START)?,
    };
    let number = |at: usize| nt.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |two| u16::from_le_bytes(*two));
    let end = nt_end + u64::from(number(20)) + u64::from(number(6)) * SECTION_HEADER as u64;
    if end <= start.len() as u64 || !nt.starts_with(b"PE\0\0") {
        return Ok(start);
    }
    if end > MAX_HEADERS {
        return Err(UkiError::TooLong { what: "PE header of the UKI", found: end, max: MAX_HEADERS }.into());
    }
    read(file, 0, length.min(end))
}
