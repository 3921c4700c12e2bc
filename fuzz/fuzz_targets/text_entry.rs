//! See `bascule_fuzz_checks::text_entry`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    bascule_fuzz_checks::text_entry(bytes);
});
