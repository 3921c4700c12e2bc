//! What the firmware starts, and what the kernel is told.

use bascule_image::command_line::{CommandLine, VerityOption};
use bascule_image::uki::{OsRelease, ReadUkiError, Uki, UkiError};
use bascule_names::{Architecture, RootHash};

use super::{
    Finding, NO_KERNEL, NO_OOPS_PANIC, NO_PANIC_RESTART, NO_SBAT, OTHER_MACHINE, OTHER_PRODUCT, OTHER_ROOT_HASH,
    OTHER_VERSION, OWN_ROOT_HASH, SEVERAL_PROFILES, SHELL, Subject,
};

/// The machine type that a PE file must have (PE format, "Machine Types").
fn wanted(architecture: Architecture) -> u16 {
    match architecture {
        Architecture::X86_64 => 0x8664,
        Architecture::Arm64 => 0xAA64,
    }
}

/// The machine type of a PE file, or `None` for what is none.
fn machine(file: &[u8]) -> Option<u16> {
    let number = |at: usize, size: usize| {
        let bytes = file.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    if !file.starts_with(b"MZ") {
        return None;
    }
    let headers = usize::try_from(number(0x3C, 4)?).ok()?;
    if file.get(headers..headers.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    u16::try_from(number(headers + 4, 2)?).ok()
}

/// A file that the firmware starts: stub, UKI, boot loader.
pub(crate) fn firmware_file(what: &str, file: &[u8], architecture: Architecture) -> Vec<Finding> {
    match machine(file) {
        Some(found) if found == wanted(architecture) => Vec::new(),
        Some(0x8664) => vec![OTHER_MACHINE.found(format!("{what} is for x86-64, the release for {architecture}"))],
        Some(0xAA64) => vec![OTHER_MACHINE.found(format!("{what} is for arm64, the release for {architecture}"))],
        Some(other) => {
            vec![OTHER_MACHINE.found(format!("{what} is for machine {other:#06x}, the release for {architecture}"))]
        }
        None => vec![NO_KERNEL.found(format!("{what} is no PE file"))],
    }
}

/// The kernel that goes into a UKI.
pub(crate) fn kernel(file: &[u8], architecture: Architecture) -> Vec<Finding> {
    firmware_file("the kernel", file, architecture)
}

/// What `uname -r` prints with an x86 kernel (Linux, Documentation/arch/x86/boot.rst: `kernel_version`).
pub(crate) fn release_of_kernel(file: &[u8]) -> Option<String> {
    if file.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let offset = file.get(0x20E..0x210)?.try_into().ok().map(u16::from_le_bytes).filter(|offset| *offset != 0)?;
    let text = file.get(usize::from(offset) + 0x200..)?;
    let end = text.iter().take(128).position(|byte| *byte == 0 || byte.is_ascii_whitespace())?;
    let text = std::str::from_utf8(text.get(..end)?).ok()?;
    let plain = !text.is_empty() && text.chars().all(|letter| letter.is_ascii_graphic() && letter != '/');
    plain.then(|| text.to_owned())
}

/// What `--cmdline` says before the root hash is put in.
pub(crate) fn command_line(template: &str) -> Vec<Finding> {
    let named = root_hashes(&CommandLine::from(template));
    let written = named.into_iter().find(|(_, value)| value != "{roothash}");
    written.map(|(name, value)| OWN_ROOT_HASH.found(format!("--cmdline has {name}={value}"))).into_iter().collect()
}

/// All that a line says of a root hash: of several the last one counts, and whoever gives another one means something else.
fn root_hashes(line: &CommandLine) -> Vec<(&'static str, String)> {
    let options = [VerityOption::Root, VerityOption::Usr].map(VerityOption::name);
    options.into_iter().flat_map(|name| line.values(name).map(move |value| (name, value))).collect()
}

/// The finished UKI, built here or elsewhere.
#[allow(clippy::ptr_arg, reason = "the reader of UKIs takes a sized thing")]
pub(crate) fn uki(file: &Vec<u8>, root_hash: &RootHash, subject: Subject<'_>) -> anyhow::Result<Vec<Finding>> {
    let mut findings = firmware_file("the UKI", file, subject.architecture);
    if machine(file).is_none() {
        return Ok(findings);
    }
    let uki = Uki::open(file)?;
    match uki.profiles() {
        1 => {}
        found => findings.push(SEVERAL_PROFILES.found(format!("the UKI has {found} profiles"))),
    }
    findings.extend(options(&uki.command_line()?, root_hash));
    findings.extend(identity("the UKI's os-release", &uki.os_release()?, subject));
    match uki.section_size(".sbat") {
        Err(UkiError::Section { found: 0, .. }) => findings.push(NO_SBAT.found("the UKI has no .sbat section")),
        other => drop(other.map_err(ReadUkiError::from)?),
    }
    Ok(findings)
}

/// What the kernel is told.
fn options(line: &CommandLine, root_hash: &RootHash) -> Vec<Finding> {
    let mut findings = Vec::new();
    let hashes = root_hashes(line);
    match hashes.iter().find(|(_, hash)| !hash.eq_ignore_ascii_case(root_hash.as_str())) {
        Some((_, other)) => findings
            .push(OTHER_ROOT_HASH.found(format!(
                "the UKI's command line does not carry the image's root hash {root_hash}, but {other}"
            ))),
        None if hashes.is_empty() => findings.push(OTHER_ROOT_HASH.found(format!(
            "the UKI's command line does not carry the image's root hash {root_hash} (roothash= or usrhash=)"
        ))),
        None => {}
    }
    match line.value("panic").as_deref() {
        Some("0") | None => findings.push(NO_PANIC_RESTART.found("the command line has no panic=SECONDS")),
        Some(_) => {}
    }
    let mut missing = Vec::new();
    if line.value("oops").as_deref() != Some("panic") {
        missing.push("oops=panic");
    }
    if line.value("softlockup_panic").is_none_or(|text| text == "0") {
        missing.push("softlockup_panic=1");
    }
    if !missing.is_empty() {
        findings.push(NO_OOPS_PANIC.found(format!("the command line has no {}", missing.join(" and no "))));
    }
    let shell = |option: &&&str| {
        let option = **option;
        matches!(option, "single" | "emergency" | "shell" | "break" | "systemd.debug_shell" | "systemd.debug-shell")
            || option.starts_with("systemd.debug_shell=1")
            || option.starts_with("init=")
            || option.starts_with("rdinit=")
            || option.starts_with("systemd.unit=rescue")
            || option.starts_with("systemd.unit=emergency")
    };
    let words: Vec<String> = line.words().collect();
    // What is for the initrd only counts there, and that is where the root is set up.
    let all: Vec<&str> = words.iter().map(|word| word.strip_prefix("rd.").unwrap_or(word)).collect();
    if let Some(option) = all.iter().find(shell) {
        findings.push(SHELL.found(format!("the command line has {option}")));
    }
    findings
}

/// `IMAGE_ID` and `IMAGE_VERSION`, where they are said.
pub(super) fn identity(what: &str, os_release: &OsRelease, subject: Subject<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (product, version) = (subject.product.as_str(), subject.version.as_str());
    if let Some(found) = os_release.first(&["IMAGE_ID"]).filter(|found| *found != product) {
        findings.push(OTHER_PRODUCT.found(format!("{what} has IMAGE_ID={found}, the release is for {product}")));
    }
    if let Some(found) = os_release.first(&["IMAGE_VERSION"]).filter(|found| *found != version) {
        findings.push(OTHER_VERSION.found(format!("{what} has IMAGE_VERSION={found}, the release is {version}")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_names::{Product, Version};

    fn numbers(findings: &[Finding]) -> Vec<u16> {
        findings.iter().map(|finding| finding.check.number).collect()
    }

    #[test]
    fn the_command_line_is_judged_as_the_kernel_reads_it() {
        let root_hash = RootHash::from_bytes(&[1; 32]);
        let safe = format!("roothash={root_hash} panic=1 oops=panic softlockup_panic=1");
        for (line, found) in [
            (safe.clone(), vec![]),
            (format!("{safe} panic=0"), vec![23]),
            (format!("roothash={root_hash} panic=1"), vec![24]),
            (format!("{safe} init=/bin/sh"), vec![25]),
            (format!("{safe} usrhash={}", RootHash::from_bytes(&[2; 32])), vec![7]),
            ("panic=1 oops=panic softlockup_panic=1".to_owned(), vec![7]),
            // Part of another word is no root hash.
            (format!("x={root_hash} panic=1 oops=panic softlockup_panic=1"), vec![7]),
        ] {
            assert_eq!(numbers(&options(&CommandLine::from(line.as_str()), &root_hash)), found, "{line}");
        }
        assert_eq!(numbers(&command_line("quiet roothash=deadbeef")), [6]);
        assert_eq!(numbers(&command_line("quiet usrhash={roothash}")), [] as [u16; 0]);
        // As whoever reads it at boot parts it into words.
        assert_eq!(numbers(&command_line("quiet \"roothash=deadbeef\"")), [6]);
        assert_eq!(numbers(&command_line("rd.roothash=deadbeef")), [6]);
    }

    #[test]
    fn a_uki_with_more_than_one_profile_is_refused() {
        use bascule_image::uki::{Parts, build};
        // Debian package systemd-boot-efi.
        let stub = std::fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").expect("install systemd-boot-efi");
        let root_hash = RootHash::from_bytes(&[1; 32]);
        let parts = Parts {
            stub: &stub,
            kernel: b"the kernel",
            initrd: b"the initrd",
            command_line: &format!("roothash={root_hash} panic=1 oops=panic softlockup_panic=1"),
            os_release: "IMAGE_ID=acme-os\nIMAGE_VERSION=1.0\n",
            kernel_release: Some("6.1.0-1"),
            pcr_public_key: &[],
            pcr_signature: &[],
        };
        let (product, version) = (Product::parse("acme-os").unwrap(), Version::parse("1.0").unwrap());
        let subject = Subject { product: &product, version: &version, architecture: Architecture::X86_64 };
        let mut file = build(&parts).unwrap();
        for (section, found) in [(b".uname\0\0", vec![]), (b".initrd\0", vec![13])] {
            let place = file.windows(8).position(|name| name == section).unwrap();
            file[place..place + 8].copy_from_slice(b".profile");
            assert_eq!(numbers(&uki(&file, &root_hash, subject).unwrap()), found);
        }
    }

    #[test]
    fn a_machine_type_is_read_or_there_is_none() {
        for file in [&b""[..], b"MZ", &[b'M', b'Z', 0xFF, 0xFF], &[0; 4096]] {
            assert_eq!(machine(file), None);
        }
        let mut far = vec![0; 0x40];
        far[..2].copy_from_slice(b"MZ");
        far[0x3C..].copy_from_slice(&[0xFF; 4]);
        assert_eq!(machine(&far), None);
        let mut arm = vec![0; 0x100];
        arm[..2].copy_from_slice(b"MZ");
        arm[0x3C] = 0x80;
        arm[0x80..0x86].copy_from_slice(b"PE\0\0\x64\xAA");
        assert_eq!(machine(&arm), Some(0xAA64));
        assert_eq!(numbers(&kernel(&arm, Architecture::X86_64)), [4]);
        assert_eq!(numbers(&kernel(&arm, Architecture::Arm64)), [] as [u16; 0]);
    }
}
