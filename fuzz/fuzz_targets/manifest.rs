//! Whatever parses as a manifest or a channel file prints as something that parses as the same.
#![no_main]

use bascule_image::{Channel, Manifest};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes) {
        let printed = manifest.to_bytes().expect("what was read can be written");
        assert_eq!(Manifest::parse(&printed).expect("what was written can be read"), manifest);
    }
    if let Ok(channel) = Channel::parse(bytes) {
        let printed = channel.to_bytes().expect("what was read can be written");
        assert_eq!(Channel::parse(&printed).expect("what was written can be read"), channel);
    }
});
