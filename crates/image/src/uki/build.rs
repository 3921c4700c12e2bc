//! Building a UKI: systemd's EFI stub with sections appended, as `ukify` does for an unsigned image.

use object::LittleEndian as LE;
use object::pe::{self, ImageDataDirectory, ImageDosHeader, ImageNtHeaders64, ImageSectionHeader};
use object::read::pe::{ImageNtHeaders, SectionTable};

use super::measure::makes_an_image;
use super::{MAX_COMMAND_LINE, MAX_OS_RELEASE, MAX_PCR_SECTION, MAX_SECTIONS, UkiError};
use crate::release::manifest::MAX_UKI_SIZE;

/// What kind of PE section holds data that the stub only reads.
pub(super) const DATA: u32 = pe::IMAGE_SCN_CNT_INITIALIZED_DATA.0 | pe::IMAGE_SCN_MEM_READ.0;
/// What kind of PE section holds the kernel, which the stub may start in place.
const CODE: u32 = pe::IMAGE_SCN_CNT_CODE.0 | pe::IMAGE_SCN_MEM_EXECUTE.0 | pe::IMAGE_SCN_MEM_READ.0;
pub(super) const SECTION_HEADER: usize = size_of::<ImageSectionHeader>();

/// What a UKI is made of.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// systemd's EFI stub (`linuxx64.efi.stub`, `linuxaa64.efi.stub`).
    pub stub: &'a [u8],
    /// The kernel.
    pub kernel: &'a [u8],
    /// The initrd; several are put together one after the other, as the kernel accepts them.
    pub initrd: &'a [u8],
    /// The kernel's command line, with `roothash=` of the image.
    pub command_line: &'a str,
    /// The os-release of the image; boot menus take name and version from it.
    pub os_release: &'a str,
    /// The kernel's release (`uname -r`), where known.
    pub kernel_release: Option<&'a str>,
    /// The key whose signatures a TPM is to accept, in PEM; without it there are no such signatures. It is measured.
    pub pcr_public_key: &'a [u8],
    /// What that key signed of the values of PCR 11 (systemd-measure(1), `sign`). It is not measured.
    pub pcr_signature: &'a [u8],
}

/// Builds a UKI. The same parts always give the same bytes.
pub fn build(parts: &Parts<'_>) -> Result<Vec<u8>, UkiError> {
    check_text("command line", parts.command_line, MAX_COMMAND_LINE, false)?;
    check_text("os-release", parts.os_release, MAX_OS_RELEASE, true)?;
    check_text("kernel release", parts.kernel_release.unwrap_or_default(), 64, false)?;
    for (what, part) in [("TPM's public key", parts.pcr_public_key), ("TPM's signatures", parts.pcr_signature)] {
        if part.len() as u64 > MAX_PCR_SECTION {
            return Err(UkiError::TooLong { what, found: part.len() as u64, max: MAX_PCR_SECTION });
        }
    }
    let total = [parts.stub, parts.kernel, parts.initrd].iter().map(|part| part.len() as u64).sum();
    if total > MAX_UKI_SIZE {
        return Err(UkiError::TooLong { what: "UKI", found: total, max: MAX_UKI_SIZE });
    }
    // The kernel may need more memory than it has bytes. It comes last: it is decompressed towards higher addresses.
    let kernel_memory = Layout::read("kernel", parts.kernel).map_or(0, |layout| layout.size_of_image);
    let mut sections = vec![
        (*b".osrel\0\0", parts.os_release.as_bytes(), 0, DATA),
        (*b".cmdline", parts.command_line.as_bytes(), 0, DATA),
    ];
    if let Some(release) = parts.kernel_release {
        sections.push((*b".uname\0\0", release.as_bytes(), 0, DATA));
    }
    for (name, bytes) in
        [(*b".pcrpkey", parts.pcr_public_key), (*b".pcrsig\0", parts.pcr_signature), (*b".initrd\0", parts.initrd)]
    {
        if !bytes.is_empty() {
            sections.push((name, bytes, 0, DATA));
        }
    }
    sections.push((*b".linux\0\0", parts.kernel, kernel_memory, CODE));

    let stub = Layout::read("EFI stub", parts.stub)?;
    // A whole UKI in place of the stub would give two kernels, and the first one would be started. What lies behind a profile belongs to it
    // alone, and what is there already is part of every image (an initrd, a device tree, signatures).
    let (_, _, present) = parse(parts.stub).map_err(|source| UkiError::Pe { what: "EFI stub", source })?;
    if present.iter().any(|found| makes_an_image(found.name)) {
        return Err(UkiError::Field { what: "EFI stub", field: "list of sections" });
    }
    let free = (stub.size_of_headers.saturating_sub(stub.headers_end)) / SECTION_HEADER;
    if free < sections.len() || stub.sections + sections.len() > MAX_SECTIONS {
        return Err(UkiError::NoRoom { free, needed: sections.len() });
    }
    // Whatever follows the last section is a signature over the bare stub, which is void now.
    let mut uki = parts.stub.get(..stub.file_end).unwrap_or(parts.stub).to_vec();
    uki.resize(uki.len().next_multiple_of(stub.file_alignment), 0);
    let mut address = stub.memory_end.next_multiple_of(stub.section_alignment);
    let mut added = 0;
    for (at, (name, bytes, memory, kind)) in sections.iter().enumerate() {
        let raw_size = bytes.len().next_multiple_of(stub.file_alignment);
        let virtual_size = bytes.len().max(*memory as usize);
        let mut header = Vec::with_capacity(SECTION_HEADER);
        header.extend_from_slice(name);
        for field in [virtual_size, address, raw_size, uki.len(), 0, 0, 0] {
            header.extend_from_slice(&(field as u32).to_le_bytes());
        }
        header.extend_from_slice(&kind.to_le_bytes());
        put(&mut uki, stub.headers_end + at * SECTION_HEADER, &header);
        uki.extend_from_slice(bytes);
        uki.resize(uki.len().next_multiple_of(stub.file_alignment), 0);
        address = (address + virtual_size).next_multiple_of(stub.section_alignment);
        added += raw_size;
    }
    stub.patch(&mut uki, sections.len(), address, added);
    Ok(uki)
}

pub(super) fn check_text(what: &'static str, text: &str, max: usize, lines: bool) -> Result<(), UkiError> {
    if text.len() > max {
        return Err(UkiError::TooLong { what, found: text.len() as u64, max: max as u64 });
    }
    if text.chars().any(|letter| letter.is_control() && !(lines && letter == '\n')) {
        return Err(UkiError::Text { what });
    }
    Ok(())
}

pub(super) fn put(file: &mut [u8], offset: usize, bytes: &[u8]) {
    file.iter_mut().skip(offset).zip(bytes).for_each(|(to, from)| *to = *from);
}

/// The numbers of a PE file that building needs, read and checked at once.
struct Layout {
    nt_headers: usize,
    sections: usize,
    headers_end: usize,
    size_of_headers: usize,
    file_alignment: usize,
    section_alignment: usize,
    size_of_image: u32,
    initialized_data: u32,
    directories: usize,
    file_end: usize,
    memory_end: usize,
}

impl Layout {
    fn read(what: &'static str, file: &[u8]) -> Result<Self, UkiError> {
        let broken = |source| UkiError::Pe { what, source };
        let field = |field| UkiError::Field { what, field };
        let (headers, nt_headers, sections) = parse(file).map_err(broken)?;
        let optional = headers.optional_header();
        let alignment = |value: u32| value.is_power_of_two() && (0x200..=0x1_0000).contains(&value);
        let (file_alignment, section_alignment) = (optional.file_alignment.get(LE), optional.section_alignment.get(LE));
        if !alignment(file_alignment) || !alignment(section_alignment) {
            return Err(field("alignment"));
        }
        let (mut file_end, mut memory_end) = (0_u64, 0_u64);
        for section in sections.iter() {
            let (offset, size) = section.pe_file_range();
            file_end = file_end.max(u64::from(offset) + u64::from(size));
            let raw_end = u64::from(section.pointer_to_raw_data.get(LE)) + u64::from(section.size_of_raw_data.get(LE));
            file_end = file_end.max(raw_end);
            let end = u64::from(section.virtual_address.get(LE)) + u64::from(section.virtual_size.get(LE));
            memory_end = memory_end.max(end);
        }
        if file_end > file.len() as u64 || memory_end > MAX_UKI_SIZE * 4 {
            return Err(field("section layout"));
        }
        let optional_end = nt_headers + 24 + usize::from(headers.file_header().size_of_optional_header.get(LE));
        let size_of_headers = optional.size_of_headers.get(LE) as usize;
        let headers_end = optional_end + sections.len() * SECTION_HEADER;
        let first_data = sections.iter().map(|section| section.pointer_to_raw_data.get(LE)).filter(|at| *at > 0).min();
        if first_data.is_some_and(|first| (first as usize) < size_of_headers) || size_of_headers > file_end as usize {
            return Err(field("size of headers"));
        }
        Ok(Self {
            nt_headers,
            sections: sections.len(),
            headers_end,
            size_of_headers,
            file_alignment: file_alignment as usize,
            section_alignment: section_alignment as usize,
            size_of_image: optional.size_of_image.get(LE).min(MAX_UKI_SIZE as u32),
            initialized_data: optional.size_of_initialized_data.get(LE),
            directories: optional.number_of_rva_and_sizes.get(LE) as usize,
            file_end: file_end as usize,
            memory_end: memory_end as usize,
        })
    }

    /// Brings the headers in line with the appended sections. Offsets: PE format, "COFF File Header" and "Optional Header".
    fn patch(&self, uki: &mut [u8], added_sections: usize, memory_end: usize, added_bytes: usize) {
        let (file_header, optional) = (self.nt_headers + 4, self.nt_headers + 24);
        put(uki, file_header + 2, &((self.sections + added_sections) as u16).to_le_bytes());
        // Time stamp, symbol table and checksum say something about the bare stub, if anything.
        put(uki, file_header + 4, &[0; 12]);
        put(uki, optional + 8, &self.initialized_data.saturating_add(added_bytes as u32).to_le_bytes());
        put(uki, optional + 56, &(memory_end as u32).to_le_bytes());
        put(uki, optional + 64, &[0; 4]);
        if self.directories > pe::IMAGE_DIRECTORY_ENTRY_SECURITY {
            let entry = optional + 112 + pe::IMAGE_DIRECTORY_ENTRY_SECURITY * size_of::<ImageDataDirectory>();
            put(uki, entry, &[0; 8]);
        }
    }
}

pub(super) fn parse(file: &[u8]) -> Result<(&ImageNtHeaders64, usize, SectionTable<'_>), object::Error> {
    let mut offset = u64::from(ImageDosHeader::parse(file)?.nt_headers_offset());
    let start = offset as usize;
    let (headers, _) = ImageNtHeaders64::parse(file, &mut offset)?;
    let sections = headers.sections(file, offset)?;
    Ok((headers, start, sections))
}
