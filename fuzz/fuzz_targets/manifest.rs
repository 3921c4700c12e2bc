//! See `bascule_fuzz_checks::manifest`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    bascule_fuzz_checks::manifest(bytes);
});
