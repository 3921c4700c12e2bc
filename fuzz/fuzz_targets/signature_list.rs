//! See `bascule_fuzz_checks::signature_list`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    bascule_fuzz_checks::signature_list(bytes);
});
