//! What systemd-boot shows of a file among the boot images. It reads the section table and, for each profile, `.osrel` and `.profile`, and
//! never compares a section with the file's length: an image that was cut short behind its os-release is an entry like any other, which
//! is picked by its name and does not start (systemd, src/boot/boot.c, `boot_entry_add_type2`; src/boot/pe.c,
//! `pe_section_table_from_file`, `pe_locate_profile_sections`).
//!
//! An entry for each profile is shown from systemd 257 on, by some of these (until #37576) none behind the first profile without a
//! `.cmdline`. An older one shows one entry for a file, by the last `.osrel` in it. Each shows only what is for its own processor. Here
//! are all that any of them shows.

use super::build::SECTION_HEADER;
use super::read::{FIRST, PROFILE, ReadUkiError, is_called, length_of, read};
use super::{MAX_OS_RELEASE, MAX_SECTIONS, OsRelease, UkiError};
use crate::io::ReadAt;

/// Length of the DOS header.
const DOS_HEADER: u64 = 64;
/// Length of all that the loader reads of the PE header: signature, file header, and of the optional header what PE32 and PE32+ have in
/// common.
const PE_HEADER: u64 = 4 + 20 + 72;
/// A longer section table is not read by the loader, in bytes.
const MAX_TABLE: u64 = 16 << 20;

/// An entry that the boot loader shows for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownEntry {
    /// Which profile it starts; the first is 0.
    pub profile: usize,
    /// What the profile calls itself (`ID` in `.profile`).
    pub profile_id: Option<String>,
    /// What it is sorted by.
    pub os_release: OsRelease,
}

struct Section {
    name: [u8; 8],
    virtual_size: u32,
    stored: u32,
    offset: u32,
}

/// The entries that the boot loader shows for a file, by their profiles; none if it passes over it.
///
/// # Errors
/// [`ReadUkiError::Unreadable`], or a limit of this reader that a boot loader has not ([`UkiError::is_own_limit`]).
pub fn shown(file: &dyn ReadAt) -> Result<Vec<ShownEntry>, ReadUkiError> {
    let length = length_of(file)?;
    let sections = section_table(file, length)?;
    let places = (0_usize..).zip(&sections).filter(|(_, section)| is_called(&section.name, PROFILE));
    let starts: Vec<usize> = places.map(|(at, _)| at).collect();
    let ends = starts.iter().skip(1).copied().chain([sections.len()]);
    let part = |from: usize, to: usize| sections.get(from..to).unwrap_or_default();
    let mut profiles: Vec<&[Section]> = starts.iter().zip(ends).map(|(from, to)| part(*from, to)).collect();
    // What stands before the first profile all have in common; without any it is all there is.
    let common = part(0, starts.first().copied().unwrap_or(sections.len()));
    if profiles.is_empty() {
        profiles.push(&[]);
    }
    let mut entries = Vec::new();
    for (profile, own) in profiles.into_iter().enumerate() {
        // Of several the first counts, also if it has no length, and then it is as if there were none.
        let find = |name: &str| {
            let mut parts = [own, common].into_iter();
            let found = parts.find_map(|part| part.iter().find(|section| is_called(&section.name, name)));
            found.filter(|section| section.virtual_size != 0)
        };
        let Some(section) = find(".osrel") else { continue };
        let Some(os_release) = text(file, length, section)? else { continue };
        if os_release.title().is_none() {
            continue;
        }
        let profile_id = match find(PROFILE) {
            None => None,
            Some(section) => match text(file, length, section)? {
                Some(text) => text.first(&["ID"]).map(str::to_owned),
                None => continue,
            },
        };
        entries.push(ShownEntry { profile, profile_id, os_release });
    }
    Ok(entries)
}

/// The assignments in a section, as far as the file goes and up to the first NUL. `None` if it begins behind the file's end, where the
/// firmware reads nothing.
fn text(file: &dyn ReadAt, length: u64, section: &Section) -> Result<Option<OsRelease>, ReadUkiError> {
    let (offset, stored) = (u64::from(section.offset), u64::from(section.stored.min(section.virtual_size)));
    let Some(left) = length.checked_sub(offset) else { return Ok(None) };
    // Without a length the loader reads the rest of the file.
    let wanted = if stored == 0 { left } else { stored.min(left) };
    let max = MAX_OS_RELEASE as u64;
    let mut bytes = read(file, offset, wanted.min(max + 1))?;
    match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => bytes.truncate(end),
        None if bytes.len() as u64 > max => {
            return Err(UkiError::TooLong { what: "os-release", found: wanted, max }.into());
        }
        None => {}
    }
    Ok(Some(OsRelease::parse(&String::from_utf8_lossy(&bytes))))
}

/// The section table; empty where the loader finds none.
fn section_table(file: &dyn ReadAt, length: u64) -> Result<Vec<Section>, ReadUkiError> {
    let start = read(file, 0, length.min(FIRST))?;
    if length < DOS_HEADER || !start.starts_with(b"MZ") {
        return Ok(Vec::new());
    }
    let header = u64::from(number32(&start, 0x3c));
    if header + PE_HEADER > length {
        return Ok(Vec::new());
    }
    let pe = part(file, &start, header, PE_HEADER)?;
    let (count, optional) = (number16(&pe, 6), number16(&pe, 20));
    // PE32 and PE32+.
    if !pe.starts_with(b"PE\0\0") || count == 0 || !matches!(number16(&pe, 24), 0x10b | 0x20b) {
        return Ok(Vec::new());
    }
    let (begin, size) = (header + 24 + u64::from(optional), u64::from(count) * SECTION_HEADER as u64);
    if size > MAX_TABLE || begin + size > length {
        return Ok(Vec::new());
    }
    if usize::from(count) > MAX_SECTIONS {
        return Err(UkiError::TooMany { found: usize::from(count), max: MAX_SECTIONS }.into());
    }
    let table = part(file, &start, begin, size)?;
    let section = |header: &[u8]| Section {
        name: header.first_chunk().copied().unwrap_or_default(),
        virtual_size: number32(header, 8),
        stored: number32(header, 16),
        offset: number32(header, 20),
    };
    Ok(table.chunks_exact(SECTION_HEADER).map(section).collect())
}

/// Bytes of the file, of which the start was read already.
fn part(file: &dyn ReadAt, start: &[u8], offset: u64, length: u64) -> Result<Vec<u8>, ReadUkiError> {
    let place = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    match start.get(place(offset)..place(offset + length)) {
        Some(bytes) => Ok(bytes.to_vec()),
        None => read(file, offset, length),
    }
}

fn number16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |two| u16::from_le_bytes(*two))
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |four| u32::from_le_bytes(*four))
}
