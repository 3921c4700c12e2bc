use std::process::Command;

use super::build::{DATA, SECTION_HEADER, parse, put};
use super::*;
use crate::io::ReadAt;
use object::LittleEndian as LE;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// A stub with the headers of systemd's: DOS header, PE32+, two sections, room for 13 more, a signature behind.
pub(super) fn stub() -> Vec<u8> {
    let mut file = vec![0; 0x400];
    put(&mut file, 0, b"MZ");
    put(&mut file, 0x3C, &0x80_u32.to_le_bytes());
    put(&mut file, 0x80, b"PE\0\0");
    put(&mut file, 0x84, &0x8664_u16.to_le_bytes());
    put(&mut file, 0x86, &2_u16.to_le_bytes());
    put(&mut file, 0x88, &0x1234_5678_u32.to_le_bytes());
    put(&mut file, 0x94, &240_u16.to_le_bytes());
    put(&mut file, 0x96, &0x206_u16.to_le_bytes());
    put(&mut file, 0x98, &0x20B_u16.to_le_bytes());
    for (offset, value) in [(32, 0x1000_u32), (36, 0x200), (56, 0x3000), (60, 0x400), (64, 0xBAD), (108, 16)] {
        put(&mut file, 0x98 + offset, &value.to_le_bytes());
    }
    put(&mut file, 0x98 + 68, &10_u16.to_le_bytes());
    put(&mut file, 0x98 + 112 + 4 * 8, &[1; 8]);
    for (at, (name, address, pointer)) in
        [(b".text\0\0\0", 0x1000_u32, 0x400_u32), (b".sbat\0\0\0", 0x2000, 0x600)].iter().enumerate()
    {
        let header = 0x188 + at * SECTION_HEADER;
        put(&mut file, header, *name);
        for (offset, value) in [(8, 0x150), (12, *address), (16, 0x200), (20, *pointer), (36, DATA)] {
            put(&mut file, header + offset, &value.to_le_bytes());
        }
    }
    file.extend(vec![0xCC; 0x400]);
    file.extend(b"a signature over the bare stub");
    file
}

pub(super) const COMMAND_LINE: &str =
    "roothash=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad rw quiet";

pub(super) fn parts(stub: &[u8]) -> Parts<'_> {
    Parts {
        stub,
        kernel: b"the kernel",
        initrd: &[7; 3000],
        command_line: COMMAND_LINE,
        os_release: "ID=acme\nVERSION_ID=1.0\n",
        kernel_release: Some("6.1.0-1"),
        pcr_public_key: &[],
        pcr_signature: &[],
    }
}

#[test]
fn what_goes_in_comes_out() {
    let stub = stub();
    let uki = build(&parts(&stub)).unwrap();
    assert_eq!(uki, build(&parts(&stub)).unwrap());
    let read = Uki::open(&uki).unwrap();
    assert_eq!(read.command_line().unwrap().as_str(), COMMAND_LINE);
    assert_eq!(read.os_release().unwrap().version(), Some("1.0"));
    assert_eq!(read.processor(), Processor::X86_64);
    assert_eq!(read.section(".linux", 100).unwrap(), b"the kernel");
    assert_eq!(read.section(".initrd", 3000).unwrap(), [7; 3000]);
    assert_eq!(read.section(".uname", 100).unwrap(), b"6.1.0-1");
    assert_eq!(read.section(".text", 1000).unwrap(), [0xCC; 0x150]);
    assert!(matches!(
        read.section(".initrd", 2999),
        Err(ReadUkiError::NotUki(UkiError::TooLong { what: ".initrd", found: 3000, max: 2999 }))
    ));
    assert_eq!(read.root_hash().unwrap().unwrap().as_str(), &COMMAND_LINE[9..73]);
    assert!(matches!(read.section_size(".dtb"), Err(UkiError::Section { name: ".dtb", found: 0 })));
    // Nothing of the stub's own identity is left: signature, directory entry, time stamp, checksum.
    assert!(!uki.windows(9).any(|window| window == b"signature"));
    assert_eq!(uki[0x98 + 112 + 32..][..8], [0; 8]);
    assert_eq!((uki[0x88..0x8C].to_vec(), uki[0xD8..0xDC].to_vec()), (vec![0; 4], vec![0; 4]));
}

#[test]
fn binutils_reads_systemds_stub_with_our_sections() {
    // Debian packages systemd-boot-efi (systemd-boot-efi:amd64) and binutils.
    let stub = std::fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").expect("install systemd-boot-efi");
    let uki = build(&parts(&stub)).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &uki).unwrap();
    let output = Command::new("objdump").arg("-h").arg(file.path()).output().expect("install binutils");
    let listing = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    let mut last_end = 0;
    for (name, size) in [(".osrel", 23), (".cmdline", COMMAND_LINE.len()), (".initrd", 3000), (".linux", 10)] {
        let line = listing.lines().find(|line| line.contains(name)).unwrap();
        let fields: Vec<u64> =
            line.split_whitespace().skip(2).take(2).map(|field| u64::from_str_radix(field, 16).unwrap()).collect();
        assert!(fields[0] >= size as u64, "{line}");
        assert!(fields[1] >= last_end, "sections lie one behind the other: {listing}");
        last_end = fields[1] + fields[0];
    }
    assert_eq!(Uki::open(&uki).unwrap().command_line().unwrap().as_str(), COMMAND_LINE);
}

#[test]
fn a_kernel_that_needs_more_memory_than_bytes_gets_it() {
    let stub = stub();
    let kernel = self::stub();
    let uki = build(&Parts { kernel: &kernel, ..parts(&stub) }).unwrap();
    let (headers, _, sections) = parse(&uki).unwrap();
    let linux = sections.iter().last().unwrap();
    assert_eq!(linux.virtual_size.get(LE), 0x3000);
    assert_eq!(headers.optional_header.size_of_image.get(LE), linux.virtual_address.get(LE) + 0x3000);
    assert_eq!(Uki::open(&uki).unwrap().section(".linux", 1 << 20).unwrap()[..kernel.len()], kernel);
}

#[test]
fn bad_parts_are_refused() {
    let good = stub();
    assert!(matches!(build(&Parts { stub: b"MZ", ..parts(&good) }), Err(UkiError::Pe { what: "EFI stub", .. })));
    assert!(matches!(build(&Parts { command_line: "a\nb", ..parts(&good) }), Err(UkiError::Text { .. })));
    let long = "x".repeat(MAX_COMMAND_LINE + 1);
    assert!(matches!(build(&Parts { command_line: &long, ..parts(&good) }), Err(UkiError::TooLong { .. })));
    let whole = build(&parts(&good)).unwrap();
    assert!(matches!(build(&parts(&whole)), Err(UkiError::Field { what: "EFI stub", field: "list of sections" })));
    for name in [b".profile", b".initrd\0", b".pcrsig\0", b".dtbauto"] {
        let mut other = stub();
        append(&mut other, name, b"ID=debug\n");
        let built = build(&parts(&other));
        assert!(matches!(built, Err(UkiError::Field { field: "list of sections", .. })), "{name:?}: {built:?}");
    }
    let mut full = stub();
    put(&mut full, 0x98 + 60, &0x1E0_u32.to_le_bytes());
    assert!(matches!(build(&parts(&full)), Err(UkiError::NoRoom { free: 0, needed: 5 })));
}

#[test]
fn broken_files_have_errors_and_never_a_panic() {
    let uki = build(&parts(&stub())).unwrap();
    for length in 0..uki.len() {
        let cut = uki[..length].to_vec();
        assert!(matches!(Uki::open(&cut), Err(ReadUkiError::NotUki(_))), "cut at {length}");
        shown(&cut).unwrap();
    }
    // Headers only: a changed byte of a section's content is another content.
    for at in 0..0x400 {
        for bit in 0..8 {
            let mut bad = uki.clone();
            bad[at] ^= 1 << bit;
            if let Ok(read) = Uki::open(&bad) {
                let _ = (read.command_line(), read.os_release(), read.root_hash());
            }
            let _ = shown(&bad);
            let _ = build(&Parts { kernel: &bad, ..parts(&bad) });
        }
    }
}

/// A file that counts what is read of it, and fails at one read.
struct Failing {
    bytes: Vec<u8>,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    fails_at: u64,
    kind: io::ErrorKind,
}

impl Failing {
    fn new(bytes: &[u8], fails_at: u64, kind: io::ErrorKind) -> Self {
        Self { bytes: bytes.to_vec(), reads: AtomicU64::new(0), read_bytes: AtomicU64::new(0), fails_at, kind }
    }
}

impl ReadAt for Failing {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        if self.reads.fetch_add(1, Ordering::Relaxed) == self.fails_at {
            return Err(self.kind.into());
        }
        self.bytes.read_at(buffer, offset)
    }

    fn size(&self) -> io::Result<u64> {
        if self.fails_at == u64::MAX - 1 { Err(self.kind.into()) } else { self.bytes.size() }
    }
}

/// All that the agent asks of a file.
fn look(file: &dyn ReadAt) -> Result<(Option<String>, Option<String>), ReadUkiError> {
    let uki = Uki::open(file)?;
    let hash = uki.root_hash()?.map(|hash| hash.to_string());
    Ok((hash, uki.os_release()?.version().map(str::to_owned)))
}

#[test]
fn whatever_read_fails_it_is_unreadable_and_never_another_content() {
    let good = build(&parts(&stub())).unwrap();
    let expected = look(&good).unwrap();
    for kind in [io::ErrorKind::Other, io::ErrorKind::OutOfMemory, io::ErrorKind::UnexpectedEof] {
        let mut failed = 0;
        for at in (0..8).chain([u64::MAX - 1]) {
            let file = Failing::new(&good, at, kind);
            match look(&file) {
                Ok(found) => assert_eq!(found, expected),
                Err(ReadUkiError::Unreadable { source, .. }) => {
                    assert_eq!(source.kind(), kind);
                    failed += 1;
                }
                Err(error) => panic!("read {at} failed and the file was judged: {error}"),
            }
        }
        assert_eq!(failed, 4, "length, headers, command line, os-release");
    }
}

#[test]
fn only_headers_and_asked_sections_are_read() {
    let stub = stub();
    let initrd = vec![7; 5 << 20];
    let uki = build(&Parts { initrd: &initrd, ..parts(&stub) }).unwrap();
    let file = Failing::new(&uki, u64::MAX, io::ErrorKind::Other);
    look(&file).unwrap();
    assert!(file.read_bytes.load(Ordering::Relaxed) < 8 << 10);
}

/// Appends a section to a file made by [`build`], whose stub has room for more headers.
fn append(uki: &mut Vec<u8>, name: &[u8; 8], bytes: &[u8]) {
    let count = u16::from_le_bytes([uki[0x86], uki[0x87]]);
    let mut header = name.to_vec();
    for field in [bytes.len(), 0x10_0000 + usize::from(count) * 0x1000, 0x200, uki.len(), 0, 0, 0, DATA as usize] {
        header.extend((field as u32).to_le_bytes());
    }
    put(uki, 0x188 + usize::from(count) * SECTION_HEADER, &header);
    put(uki, 0x86, &(count + 1).to_le_bytes());
    let mut padded = bytes.to_vec();
    padded.resize(0x200, 0);
    uki.extend(padded);
}

#[test]
fn of_several_profiles_the_first_one_boots() {
    let (other, third) = ("bb".repeat(32), "cc".repeat(32));
    let mut uki = build(&parts(&stub())).unwrap();
    append(&mut uki, b".profile", b"ID=main\n");
    assert_eq!(look(&uki).unwrap().0.as_deref(), Some(&COMMAND_LINE[9..73]), "what all have in common");
    append(&mut uki, b".cmdline", format!("roothash={other}").as_bytes());
    append(&mut uki, b".profile", b"ID=debug\n");
    append(&mut uki, b".cmdline", format!("roothash={third}").as_bytes());
    assert_eq!(look(&uki).unwrap().0, Some(other));
    // Twice within one profile is nothing that could be relied on.
    let mut uki = build(&parts(&stub())).unwrap();
    append(&mut uki, b".cmdline", b"quiet");
    assert!(matches!(look(&uki), Err(ReadUkiError::NotUki(UkiError::Section { name: ".cmdline", found: 2 }))));
}

/// Number, name and version of a profile that a boot loader shows.
type Entry = (usize, Option<String>, Option<String>);

fn entry(profile: usize, id: Option<&str>, version: Option<&str>) -> Entry {
    (profile, id.map(str::to_owned), version.map(str::to_owned))
}

fn entries(file: &[u8]) -> Vec<Entry> {
    let shown = shown(&file.to_vec()).unwrap().into_iter();
    shown.map(|entry| (entry.profile, entry.profile_id, entry.os_release.version().map(str::to_owned))).collect()
}

#[test]
fn a_boot_loader_shows_what_is_cut_short_behind_its_os_release() {
    let uki = build(&parts(&stub())).unwrap();
    let whole = vec![entry(0, None, Some("1.0"))];
    assert_eq!(entries(&uki), whole);
    let osrel = uki.windows(8).position(|bytes| bytes == b"ID=acme\n").unwrap();
    let end = osrel + parts(&stub()).os_release.len();
    for length in end..uki.len() {
        assert_eq!(entries(&uki[..length]), whole, "cut at {length}");
    }
    // In the middle of it, what is there is what it says.
    assert_eq!(entries(&uki[..osrel + 8]), vec![entry(0, None, None)]);
    assert_eq!(entries(&uki[..end - 3]), vec![entry(0, None, Some("1"))]);
    for length in [0, 2, 63, 0x80, 0x1FF, osrel, osrel + 3] {
        assert!(entries(&uki[..length]).is_empty(), "cut at {length}");
    }
    let unread = Failing::new(&uki[..end], 1, io::ErrorKind::Other);
    assert!(matches!(shown(&unread), Err(ReadUkiError::Unreadable { .. })));
}

/// The loader asks for no directories behind the optional header, which a linker always writes.
#[test]
fn a_boot_loader_reads_no_further_than_it_has_to() {
    let mut file = vec![0; 0xC8];
    put(&mut file, 0, b"MZ");
    put(&mut file, 0x3C, &0x40_u32.to_le_bytes());
    put(&mut file, 0x40, b"PE\0\0");
    for (offset, value) in [(4, 0x8664_u16), (6, 1), (20, 72), (24, 0x20B)] {
        put(&mut file, 0x40 + offset, &value.to_le_bytes());
    }
    put(&mut file, 0xA0, b".osrel");
    for (offset, value) in [(8, 8_u32), (16, 8), (20, 0xC8)] {
        put(&mut file, 0xA0 + offset, &value.to_le_bytes());
    }
    assert!(entries(&file).is_empty());
    file.extend(b"ID=acme\n");
    assert_eq!(entries(&file), vec![entry(0, None, None)]);
}

#[test]
fn a_boot_loader_shows_an_entry_for_each_profile() {
    let mut uki = build(&parts(&stub())).unwrap();
    append(&mut uki, b".profile", b"TITLE=Main\n");
    assert_eq!(entries(&uki), vec![entry(0, None, Some("1.0"))]);
    assert_eq!(Uki::open(&uki).unwrap().profiles(), 1);
    append(&mut uki, b".profile", b"ID=debug\n");
    append(&mut uki, b".cmdline", b"debug");
    append(&mut uki, b".profile", b"TITLE=Other\n");
    append(&mut uki, b".osrel\0\0", b"ID=other\nVERSION_ID=9\n");
    let debug = entry(1, Some("debug"), Some("1.0"));
    assert_eq!(entries(&uki), vec![entry(0, None, Some("1.0")), debug, entry(2, None, Some("9"))]);
    let read = Uki::open(&uki).unwrap();
    assert_eq!(read.profiles(), 3);
    assert_eq!(read.command_line().unwrap().as_str(), COMMAND_LINE);
    assert_eq!(read.of_profile(1).command_line().unwrap().as_str(), "debug");
    // The first has nothing to show.
    let mut second = without_os_release();
    append(&mut second, b".profile", b"ID=main\n");
    append(&mut second, b".profile", b"ID=extra\n");
    append(&mut second, b".osrel\0\0", b"ID=acme\nVERSION_ID=2\n");
    assert_eq!(entries(&second), vec![entry(1, Some("extra"), Some("2"))]);
}

/// A PE file with nothing but what the stub brings along.
fn without_os_release() -> Vec<u8> {
    let mut file = stub();
    file.truncate(0x800);
    file
}

#[test]
fn what_is_beyond_the_limits_of_this_reader_is_not_passed_over() {
    let long = format!("ID=acme\n#{}\n", "x".repeat(MAX_OS_RELEASE));
    let mut uki = without_os_release();
    append(&mut uki, b".osrel\0\0", long.as_bytes());
    // The helper stores half a KiB of each section: let it be all of this one.
    put(&mut uki, 0x188 + 2 * SECTION_HEADER + 16, &(long.len() as u32).to_le_bytes());
    uki.truncate(uki.len() - 0x200);
    uki.extend(long.as_bytes());
    assert!(matches!(shown(&uki), Err(ReadUkiError::NotUki(error)) if error.is_own_limit()));
    let mut many = stub();
    put(&mut many, 0x86, &200_u16.to_le_bytes());
    assert!(shown(&many).unwrap().is_empty(), "its table ends behind the file");
    many.resize(0x4000, 0);
    assert!(matches!(shown(&many), Err(ReadUkiError::NotUki(UkiError::TooMany { found: 200, .. }))));
}
