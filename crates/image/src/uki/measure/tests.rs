use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::uki::tests::{COMMAND_LINE, parts, stub};
use crate::uki::{Parts, build};

/// The stub of the other tests, saying that it is of this version of systemd, in place of its `.sbat`.
fn stub_of(version: &str) -> Vec<u8> {
    let mut stub = stub();
    let name = stub.windows(8).position(|name| name == b".sbat\0\0\0").unwrap();
    stub[name..name + 8].copy_from_slice(b".sdmagic");
    let text = format!("{MAGIC_START}{version} ####\0");
    // Where the section lies in the file.
    stub[0x600..0x600 + text.len()].copy_from_slice(text.as_bytes());
    stub
}

#[allow(clippy::ptr_arg, reason = "the reader of UKIs takes a sized thing")]
fn measured(uki: &Vec<u8>) -> Result<Vec<(String, String)>, String> {
    let found = Uki::open(uki).unwrap().pcr11().map_err(|error| error.to_string())?.measured(&[]);
    let short = |value: PcrValue| (value.phase, value.value.as_str().trim_start_matches("sha256:").to_owned());
    Ok(found.pcr11.into_iter().map(short).collect())
}

/// The UKI with one of its sections under another name.
fn renamed(uki: &[u8], from: &[u8; 8], to: &[u8; 8]) -> Vec<u8> {
    let mut uki = uki.to_vec();
    let place = uki.windows(8).position(|name| name == from).unwrap();
    uki[place..place + 8].copy_from_slice(to);
    uki
}

/// Computed by hand (in another language) from the documentation that the module names; of `.linux`, `.osrel`, `.cmdline` and
/// `.initrd` alone in the same way as systemd-measure 252 does.
#[test]
fn values_that_were_computed_elsewhere() {
    let stub = stub_of("257.9-1~deb13u1");
    let uki = build(&parts(&stub)).unwrap();
    let expected = [
        ("", "96fc30a08b78fe4a47defe5b3abc29868556108ddf230b46a94dfb0d352072af"),
        ("enter-initrd", "627dd56d0763d216fd269a5b004972da8a64847bc3329948c1748061851abf04"),
        ("enter-initrd:leave-initrd", "d4639ead39f2e1d616ebb5e5c4fb2457f19a4a26e041143b553d2730b9a3bc68"),
        ("enter-initrd:leave-initrd:sysinit", "5a005b1d4666e063a0d732a5d35343b9d78221cc63885e84d1c2d8841241aba9"),
        ("enter-initrd:leave-initrd:sysinit:ready", "75a3400e1ae060ba62a90072627d41bcdf6c586312d20aee94a22ef5322fec44"),
    ];
    let found = measured(&uki).unwrap();
    assert_eq!(found, expected.map(|(phase, value)| (phase.to_owned(), value.to_owned())));
    assert_eq!(Uki::open(&uki).unwrap().pcr11().unwrap().measured(&[]).stub, "257.9-1~deb13u1");
    for (to, value) in [
        // The key is measured, in its own place; the signature of the result can't be.
        (b".pcrpkey", "c1f4c97b41c1a80660d4f1e67a0aa6baa512cd5342a039d763f4ac48866dd3fc"),
        (b".pcrsig\0", "f82cf8c372956581558a163f433132a88e75990841d115cfd5f5d85c0a008638"),
        (b".mine\0\0\0", "f82cf8c372956581558a163f433132a88e75990841d115cfd5f5d85c0a008638"),
    ] {
        assert_eq!(measured(&renamed(&uki, b".uname\0\0", to)).unwrap()[0].1, value);
    }
}

#[test]
fn a_kernel_that_needs_more_memory_is_measured_with_it() {
    let stub = stub_of("257");
    let mut uki = build(&parts(&stub)).unwrap();
    let header = uki.windows(8).position(|name| name == b".linux\0\0").unwrap();
    uki[header + 8..header + 12].copy_from_slice(&0x500_u32.to_le_bytes());
    assert_eq!(measured(&uki).unwrap()[0].1, "0f505fec93cee41303780d9478a47ee14141182c7945baefc14a71e21d67d250");
}

#[test]
fn what_is_not_known_is_not_said() {
    let plain = stub();
    assert!(measured(&build(&parts(&plain)).unwrap()).unwrap_err().contains("no stub of systemd's"));
    for (version, why) in [("252.39-1", "systemd 252.39-1"), ("v257", "systemd v257"), ("", "no stub")] {
        let stub = stub_of(version);
        let refused = measured(&build(&parts(&stub)).unwrap()).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
    let stub = stub_of("258");
    let uki = build(&parts(&stub)).unwrap();
    let refused = measured(&renamed(&uki, b".uname\0\0", b".dtbauto")).unwrap_err();
    assert!(refused.contains("fits the machine"), "{refused}");
}

/// Computed by `systemd-measure sign` of systemd 257.13.
#[test]
fn policies_are_those_that_systemd_measure_signs() {
    let stub = stub_of("257.13-1~deb13u1");
    let parts = Parts {
        stub: &stub,
        kernel: b"the kernel",
        initrd: b"the initrd",
        command_line: "quiet",
        os_release: "ID=x\n",
        kernel_release: None,
        pcr_public_key: b"a public key\n",
        pcr_signature: &[],
    };
    let uki = build(&parts).unwrap();
    let pcr11 = Uki::open(&uki).unwrap().pcr11().unwrap();
    for (phases, policy) in [
        ("", "998ed459ed05f099f7ec20e3a338944a2628f2054c741704d10234399309bedb"),
        ("enter-initrd", "4fbdcc72ef9eda8cf508c2ce6935feca4f22d5a9a9da140efde501da9d79a75f"),
        ("sysinit", "70818bf9372d0e23aa7c9baf7bcd52c8c8e1552dbcecce4c031d04846549c728"),
    ] {
        assert_eq!(pcr11.policy(&phases.parse().unwrap()).to_string(), policy, "{phases}");
    }
    // What was signed is no part of what is signed; the key is.
    let signed = build(&Parts { pcr_signature: b"{}", ..parts }).unwrap();
    let read = Uki::open(&signed).unwrap();
    assert_eq!(read.section(".pcrsig", 100).unwrap(), b"{}");
    assert_eq!(read.section(".pcrpkey", 100).unwrap(), b"a public key\n");
    assert_eq!(read.pcr11().unwrap().measured(&[]), pcr11.measured(&[]));
    let other = build(&Parts { pcr_public_key: b"another key\n", ..parts }).unwrap();
    assert_ne!(Uki::open(&other).unwrap().pcr11().unwrap().measured(&[]), pcr11.measured(&[]));
}

#[test]
fn phases_are_those_that_a_boot_can_come_to() {
    let usual: Vec<String> = PhasePath::usual().iter().map(|path| path.as_str().to_owned()).collect();
    assert_eq!(usual[0], "enter-initrd");
    assert_eq!(usual[3], "enter-initrd:leave-initrd:sysinit:ready");
    let possible = PhasePath::possible();
    assert_eq!(possible.len(), 64);
    for path in ["", "sysinit", "sysinit:ready", "enter-initrd:leave-initrd:sysinit:ready:shutdown:final"] {
        assert!(possible.contains(&path.parse().unwrap()), "{path}");
    }
    assert!(!possible.contains(&"ready:sysinit".parse().unwrap()));
    for path in [":", "a:", ":a", "a::b", "a b", "a\n", &"a".repeat(129)] {
        assert!(path.parse::<PhasePath>().is_err(), "{path}");
    }
}

#[test]
fn a_manifest_has_the_phases_of_the_vendor_once_and_last() {
    let stub = stub_of("257");
    let uki = build(&parts(&stub)).unwrap();
    let own: Vec<PhasePath> = ["sysinit", "enter-initrd", "sysinit", ""].map(|path| path.parse().unwrap()).to_vec();
    let measured = Uki::open(&uki).unwrap().pcr11().unwrap().measured(&own);
    let phases: Vec<&str> = measured.pcr11.iter().map(|value| value.phase.as_str()).collect();
    assert_eq!((phases.len(), phases[0], phases[1], phases[5]), (6, "", "enter-initrd", "sysinit"));
}

/// Debian's package systemd has it; where it is not installed the values above hold the computation.
#[test]
fn systemd_measure_says_the_same() {
    let tool = Path::new("/usr/lib/systemd/systemd-measure");
    if !tool.exists() {
        // Past the harness, which keeps to itself what a test that passes prints. Without a standard error there is nobody to tell.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {} is not here to judge PCR 11", tool.display());
        return;
    }
    let stub = stub_of("257.9");
    let parts = Parts { kernel_release: None, ..parts(&stub) };
    let uki = build(&parts).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(tool);
    command.args(["calculate", "--bank=sha256"]);
    let files = [("linux", parts.kernel), ("osrel", parts.os_release.as_bytes()), ("cmdline", COMMAND_LINE.as_bytes())];
    for (name, content) in files.into_iter().chain([("initrd", parts.initrd)]) {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        command.arg(format!("--{name}={}", path.display()));
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let theirs: Vec<&str> = said.lines().filter_map(|line| line.trim().strip_prefix("11:sha256=")).collect();
    let ours = measured(&uki).unwrap();
    // It begins with the first phase.
    assert_eq!(theirs, ours.iter().skip(1).map(|(_, value)| value.as_str()).collect::<Vec<_>>());
}
