//! No bytes make the UKI reader or builder panic, and every section lies inside the file.
#![no_main]

use bascule_image::uki::{self, Parts, Uki};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(uki) = Uki::parse(bytes) {
        let _ = (uki.command_line(), uki.os_release(), uki.root_hash(), uki.section(".linux"));
    }
    let parts = Parts {
        stub: bytes,
        kernel: bytes,
        initrd: b"initrd",
        command_line: "quiet",
        os_release: "ID=acme",
        kernel_release: None,
    };
    if let Ok(built) = uki::build(&parts) {
        assert_eq!(Uki::parse(&built).expect("what was built can be read").command_line().expect("a command line"), "quiet");
    }
});
