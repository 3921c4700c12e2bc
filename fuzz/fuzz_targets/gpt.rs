//! See `bascule_fuzz_checks::gpt`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    bascule_fuzz_checks::gpt(bytes);
});
