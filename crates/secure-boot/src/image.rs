//! A PE image as the firmware hashes it, and the signatures behind it (Microsoft, "Windows Authenticode Portable Executable
//! Signature Format"; EDK2, `HashPeImage`).

use std::io;

use bascule_image::io::ReadAt;
use object::LittleEndian as LE;
use object::pe::{self, ImageDosHeader, ImageNtHeaders64};
use object::read::pe::ImageNtHeaders as _;
use ring::digest::{Algorithm, Context};
use uuid::{Uuid, uuid};

/// Headers longer than this are not accepted.
const MAX_HEADERS: u64 = 64 << 10;
/// Where reading begins.
const FIRST: u64 = 4 << 10;
/// Longest certificate table in bytes.
const MAX_TABLE: u64 = 1 << 20;
/// More signatures than this are not looked at.
const MAX_SIGNATURES: usize = 16;
/// What is hashed at once.
const CHUNK: u64 = 256 << 10;
/// WIN_CERTIFICATE, `wCertificateType`: PKCS#7 SignedData.
const PKCS_SIGNED_DATA: u16 = 0x0002;
/// `wCertificateType`: a GUID says what follows.
const EFI_GUID: u16 = 0x0EF1;
const PKCS7: Uuid = uuid!("4aafd29d-68df-49ee-8aa9-347d375665a7");

/// Why an image can't be judged.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Reading failed; nothing is known about the image.
    #[error("{length} bytes at offset {offset} of the boot image could not be read")]
    Unreadable {
        /// Where, in bytes.
        offset: u64,
        /// How much was asked for; 0 where the file's length was.
        length: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It was read and is no PE image that firmware would load.
    #[error("the boot image is no 64-bit PE image")]
    Pe(#[source] object::Error),
    /// Its headers contradict each other or the file.
    #[error("the boot image's {0} is not accepted")]
    Field(&'static str),
}

/// A PE image whose headers were read.
#[allow(missing_debug_implementations, reason = "it holds the caller's reader, which need not have it")]
pub struct SignedImage<'a> {
    file: &'a dyn ReadAt,
    /// What is hashed, in order.
    hashed: Vec<(u64, u64)>,
    /// PKCS#7 signatures, DER with padding behind.
    signatures: Vec<Vec<u8>>,
}

impl<'a> SignedImage<'a> {
    /// Reads headers and signatures.
    ///
    /// # Errors
    /// [`ImageError`].
    pub fn open(file: &'a dyn ReadAt) -> Result<Self, ImageError> {
        let size = file.size().map_err(|source| ImageError::Unreadable { offset: 0, length: 0, source })?;
        let start = read(file, 0, size.min(FIRST))?;
        let end = parse(&start).map(|(headers, _)| u64::from(headers.optional_header.size_of_headers.get(LE)));
        // Headers of more than a page do not parse from one.
        let end = end.unwrap_or(MAX_HEADERS);
        if end > MAX_HEADERS {
            return Err(ImageError::Field("size of headers"));
        }
        let bytes = if end <= start.len() as u64 { start } else { read(file, 0, end.min(size))? };
        let (headers, nt_offset) = parse(&bytes).map_err(ImageError::Pe)?;
        let mut behind = nt_offset + 24 + u64::from(headers.file_header.size_of_optional_header.get(LE));
        let sections = headers.sections(bytes.as_slice(), behind).map_err(ImageError::Pe)?;
        behind += sections.len() as u64 * 40;
        let end = u64::from(headers.optional_header.size_of_headers.get(LE));
        if end > size || end < behind {
            return Err(ImageError::Field("size of headers"));
        }
        let optional = nt_offset + 24;
        let directories = headers.optional_header.number_of_rva_and_sizes.get(LE) as usize;
        let check_sum = optional + 64;
        let mut hashed = vec![(0, check_sum)];
        let mut table = (0, 0);
        if directories > pe::IMAGE_DIRECTORY_ENTRY_SECURITY {
            let entry = optional + 112 + 8 * pe::IMAGE_DIRECTORY_ENTRY_SECURITY as u64;
            let numbers = usize::try_from(entry).ok().and_then(|at| bytes.get(at..)?.first_chunk::<8>());
            let [a, b, c, d, e, f, g, h] = *numbers.ok_or(ImageError::Field("security directory"))?;
            table = (u64::from(u32::from_le_bytes([a, b, c, d])), u64::from(u32::from_le_bytes([e, f, g, h])));
            hashed.extend([(check_sum + 4, entry), (entry + 8, end)]);
        } else {
            hashed.push((check_sum + 4, end));
        }
        let mut data: Vec<(u64, u64)> = sections
            .iter()
            .map(|section| (section.pointer_to_raw_data.get(LE), section.size_of_raw_data.get(LE)))
            .filter(|(_, length)| *length > 0)
            .map(|(at, length)| (u64::from(at), u64::from(at) + u64::from(length)))
            .collect();
        data.sort_unstable();
        let sum = end + data.iter().map(|(from, to)| to - from).sum::<u64>();
        if data.iter().any(|(_, to)| *to > size) {
            return Err(ImageError::Field("section layout"));
        }
        hashed.extend(data);
        let (table_at, table_length) = table;
        // The firmware's own rule: what is left behind headers and sections, less the signatures.
        if size > sum {
            let rest = size.checked_sub(table_length).filter(|rest| *rest >= sum);
            hashed.push((sum, rest.ok_or(ImageError::Field("certificate table"))?));
        }
        let signatures = if table_length == 0 { Vec::new() } else { signatures(file, table_at, table_length, size)? };
        Ok(Self { file, hashed, signatures })
    }

    /// The PKCS#7 signatures.
    pub fn signatures(&self) -> &[Vec<u8>] {
        &self.signatures
    }

    /// The Authenticode digest. Reads the whole file in pieces.
    ///
    /// # Errors
    /// [`ImageError::Unreadable`].
    pub fn digest(&self, algorithm: &'static Algorithm) -> Result<Vec<u8>, ImageError> {
        let mut context = Context::new(algorithm);
        let mut buffer = vec![0; CHUNK as usize];
        for (from, to) in &self.hashed {
            let mut at = *from;
            while at < *to {
                let length = (to - at).min(CHUNK);
                let part = buffer.get_mut(..length as usize).unwrap_or_default();
                let unreadable = |source| ImageError::Unreadable { offset: at, length, source };
                self.file.read_at(part, at).map_err(unreadable)?;
                context.update(part);
                at += length;
            }
        }
        Ok(context.finish().as_ref().to_vec())
    }
}

fn parse(bytes: &[u8]) -> Result<(&ImageNtHeaders64, u64), object::Error> {
    let mut offset = u64::from(ImageDosHeader::parse(bytes)?.nt_headers_offset());
    let start = offset;
    let (headers, _) = ImageNtHeaders64::parse(bytes, &mut offset)?;
    Ok((headers, start))
}

fn read(file: &dyn ReadAt, offset: u64, length: u64) -> Result<Vec<u8>, ImageError> {
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let unreadable = |source| ImageError::Unreadable { offset, length, source };
    if length > 0 {
        file.read_at(&mut bytes, offset).map_err(unreadable)?;
    }
    Ok(bytes)
}

/// WIN_CERTIFICATE structures, each at a multiple of eight bytes.
fn signatures(file: &dyn ReadAt, at: u64, length: u64, size: u64) -> Result<Vec<Vec<u8>>, ImageError> {
    const WHAT: ImageError = ImageError::Field("certificate table");
    if length > MAX_TABLE || at.checked_add(length).is_none_or(|end| end > size) {
        return Err(WHAT);
    }
    let table = read(file, at, length)?;
    let mut found = Vec::new();
    let mut rest = table.as_slice();
    while let Some(header) = rest.first_chunk::<8>() {
        let [a, b, c, d, _, _, e, f] = *header;
        let (length, kind) = (u32::from_le_bytes([a, b, c, d]) as usize, u16::from_le_bytes([e, f]));
        let data = rest.get(8..length).ok_or(WHAT)?;
        let signed = match kind {
            PKCS_SIGNED_DATA => Some(data),
            EFI_GUID => data.strip_prefix(&PKCS7.to_bytes_le()),
            _ => None,
        };
        found.extend(signed.map(<[u8]>::to_vec));
        if found.len() > MAX_SIGNATURES {
            return Err(WHAT);
        }
        rest = rest.get(length.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(found)
}
