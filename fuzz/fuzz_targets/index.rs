//! Whatever parses as an index prints as the same bytes, and its frames lie one behind the other.
#![no_main]

use bascule_image::pack::PackIndex;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(index) = PackIndex::parse(bytes) else { return };
    assert_eq!(index.to_bytes(), bytes);
    let mut stored = 0;
    let mut raw = 0;
    for frame in index.frames() {
        assert_eq!((frame.stored_offset, frame.image_offset), (stored, raw));
        stored += u64::from(frame.stored_length);
        raw += u64::from(frame.length);
    }
    assert_eq!((stored, raw), (index.stored_length(), index.image_size()));
});
