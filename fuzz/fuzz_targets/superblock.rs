//! Whatever parses as a verity superblock prints as the same bytes.
#![no_main]

use bascule_image::verity::Superblock;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(superblock) = Superblock::parse(bytes) {
        assert_eq!(&superblock.to_bytes()[..], &bytes[..512]);
    }
});
