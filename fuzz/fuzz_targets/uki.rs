//! See `bascule_fuzz_checks::uki`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    bascule_fuzz_checks::uki(bytes);
});
