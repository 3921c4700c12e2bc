use std::process::Command;

use super::*;

/// A stub with the headers of systemd's: DOS header, PE32+, two sections, room for 13 more, a signature behind.
fn stub() -> Vec<u8> {
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

const COMMAND_LINE: &str = "roothash=ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad rw quiet";

fn parts(stub: &[u8]) -> Parts<'_> {
    Parts {
        stub,
        kernel: b"the kernel",
        initrd: &[7; 3000],
        command_line: COMMAND_LINE,
        os_release: "ID=acme\nVERSION_ID=1.0\n",
        kernel_release: Some("6.1.0-1"),
    }
}

#[test]
fn what_goes_in_comes_out() {
    let stub = stub();
    let uki = build(&parts(&stub)).unwrap();
    assert_eq!(uki, build(&parts(&stub)).unwrap());
    let read = Uki::parse(&uki).unwrap();
    assert_eq!(read.command_line().unwrap(), COMMAND_LINE);
    assert_eq!(read.os_release().unwrap(), "ID=acme\nVERSION_ID=1.0");
    assert_eq!(read.section(".linux").unwrap(), b"the kernel");
    assert_eq!(read.section(".initrd").unwrap(), [7; 3000]);
    assert_eq!(read.section(".uname").unwrap(), b"6.1.0-1");
    assert_eq!(read.section(".text").unwrap(), [0xCC; 0x150]);
    assert_eq!(read.root_hash().unwrap().unwrap().as_str(), &COMMAND_LINE[9..73]);
    assert!(matches!(read.section(".dtb"), Err(UkiError::Section { name: ".dtb", found: 0 })));
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
    assert_eq!(Uki::parse(&uki).unwrap().command_line().unwrap(), COMMAND_LINE);
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
    assert_eq!(Uki::parse(&uki).unwrap().section(".linux").unwrap()[..kernel.len()], kernel);
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
    let mut full = stub();
    put(&mut full, 0x98 + 60, &0x1E0_u32.to_le_bytes());
    assert!(matches!(build(&parts(&full)), Err(UkiError::NoRoom { free: 0, needed: 5 })));
}

#[test]
fn broken_files_have_errors_and_never_a_panic() {
    let uki = build(&parts(&stub())).unwrap();
    for length in 0..uki.len() {
        let read = Uki::parse(&uki[..length]);
        assert!(read.is_err(), "cut at {length}");
    }
    // Headers only: a changed byte of a section's content is another content.
    for at in 0..0x400 {
        for bit in 0..8 {
            let mut bad = uki.clone();
            bad[at] ^= 1 << bit;
            if let Ok(read) = Uki::parse(&bad) {
                let _ = (read.command_line(), read.os_release(), read.root_hash());
            }
            let _ = build(&Parts { kernel: &bad, ..parts(&bad) });
        }
    }
}
