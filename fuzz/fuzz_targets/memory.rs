//! See `bascule_fuzz_checks::memory`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    bascule_fuzz_checks::memory(bytes);
});
