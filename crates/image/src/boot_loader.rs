//! systemd-boot as a file: where it lies in an OS image and on an ESP, and which version it says it is.
//!
//! It is a PE file as a UKI is one, and is looked at by the same reader.

use bascule_names::Architecture;

use crate::io::ReadAt;
use crate::uki::{Processor, ReadUkiError, Uki, UkiError};

/// Longest boot loader in bytes; systemd's have some 150 KiB.
pub const MAX_SIZE: u64 = 4 << 20;
/// Longest version of one in bytes.
pub const MAX_VERSION: usize = 128;
/// Where systemd's package keeps it in an OS image, relative to the root (bootctl(1)).
pub const FOLDER: &str = "usr/lib/systemd/boot/efi";
/// Section in which a program says what it is (systemd, src/boot/util.h: `DECLARE_NOALLOC_SECTION(".sdmagic", …)`).
const MAGIC: &str = ".sdmagic";
/// How that begins and ends for systemd-boot (systemd, src/boot/boot.c).
const MAGIC_START: &str = "#### LoaderInfo: systemd-boot ";
const MAGIC_END: &str = " ####";
/// Longest such text that is read.
const MAX_MAGIC: u64 = 4096;

/// What firmware calls an architecture in file names (UEFI specification 2.10, section 3.5.1.1).
pub const fn suffix(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "x64",
        Architecture::Arm64 => "aa64",
    }
}

/// Its paths in an OS image, relative to the root: the signed one first, as `bootctl` takes it (bootctl(1), "Signed .efi files").
pub fn in_image(architecture: Architecture) -> [String; 2] {
    let plain = format!("{FOLDER}/systemd-boot{}.efi", suffix(architecture));
    [format!("{plain}.signed"), plain]
}

/// Its folder and name on an ESP, where a boot variable of the firmware names it.
pub fn in_systemd(architecture: Architecture) -> (&'static str, String) {
    ("EFI/systemd", format!("systemd-boot{}.efi", suffix(architecture)))
}

/// Folder and name where firmware looks on a disk that no boot variable names (UEFI specification 2.10, section 3.5.1.1).
pub fn in_fallback(architecture: Architecture) -> (&'static str, String) {
    ("EFI/BOOT", format!("BOOT{}.EFI", suffix(architecture).to_ascii_uppercase()))
}

/// What systemd-boot says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootLoader {
    /// Its version, as `LoaderInfo` has it once it has run.
    pub version: String,
    /// The processor that it is for.
    pub processor: Processor,
    /// Whether it has an `.sbat` section.
    pub has_sbat: bool,
}

impl BootLoader {
    /// Reads a file; `None` if it is whole and something else: another boot loader, shim, no program at all.
    ///
    /// # Errors
    /// It could not be read; what it is is not known.
    pub fn read(file: &dyn ReadAt) -> Result<Option<Self>, ReadUkiError> {
        match Self::parse(file) {
            Err(ReadUkiError::NotUki(_)) => Ok(None),
            outcome => outcome,
        }
    }

    fn parse(file: &dyn ReadAt) -> Result<Option<Self>, ReadUkiError> {
        let program = Uki::open(file)?;
        let text = program.section(MAGIC, MAX_MAGIC)?;
        let text = String::from_utf8_lossy(&text);
        let version = text.strip_prefix(MAGIC_START).and_then(|rest| Some(rest.split_once(MAGIC_END)?.0));
        let plain = |version: &&str| !version.is_empty() && is_plain(version);
        let Some(version) = version.filter(plain) else { return Ok(None) };
        let has_sbat = !matches!(program.section_size(".sbat"), Err(UkiError::Section { found: 0, .. }));
        Ok(Some(Self { version: version.to_owned(), processor: program.processor(), has_sbat }))
    }
}

/// Whether a text can be a version: printed and compared, and nothing else.
pub(crate) fn is_plain(version: &str) -> bool {
    version.len() <= MAX_VERSION && version.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The version of systemd-boot in a boot loader's own words (the variable `LoaderInfo`); `None` for another boot loader.
pub fn version_in(loader_info: &str) -> Option<&str> {
    let version = loader_info.strip_prefix("systemd-boot ")?.split(' ').next()?;
    (!version.is_empty() && is_plain(version)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn systemds(name: &str) -> Vec<u8> {
        std::fs::read(format!("/{FOLDER}/{name}")).expect("install systemd-boot-efi")
    }

    #[test]
    fn systemd_boot_says_its_version_and_nothing_else_does() {
        let program = systemds("systemd-bootx64.efi");
        let found = BootLoader::read(&program).unwrap().unwrap();
        assert!(found.version.starts_with(|digit: char| digit.is_ascii_digit()), "{found:?}");
        assert!(found.has_sbat && found.processor == Processor::X86_64, "{found:?}");
        assert_eq!(version_in(&format!("systemd-boot {}", found.version)), Some(found.version.as_str()));
        assert_eq!(BootLoader::read(&systemds("linuxx64.efi.stub")).unwrap(), None, "the stub is another program");
        for other in [&b"MZ"[..], b"", &program[..program.len() / 2]] {
            assert_eq!(BootLoader::read(&other.to_vec()).unwrap(), None, "{} bytes", other.len());
        }
        let mut arm = program;
        let headers = u32::from_le_bytes(arm[0x3C..0x40].try_into().unwrap()) as usize;
        arm[headers + 4..headers + 6].copy_from_slice(&0xAA64_u16.to_le_bytes());
        assert!(BootLoader::read(&arm).unwrap().unwrap().processor.is(Architecture::Arm64));
    }

    #[test]
    fn what_can_not_be_read_is_not_another_boot_loader() {
        struct Failing;
        impl ReadAt for Failing {
            fn read_at(&self, _: &mut [u8], _: u64) -> std::io::Result<()> {
                Err(std::io::Error::from_raw_os_error(5))
            }
            fn size(&self) -> std::io::Result<u64> {
                Ok(1000)
            }
        }
        assert!(BootLoader::read(&Failing).is_err());
    }

    #[test]
    fn a_boot_loader_is_told_by_its_own_words() {
        assert_eq!(version_in("systemd-boot 252.39-1~deb12u1"), Some("252.39-1~deb12u1"));
        assert_eq!(version_in("systemd-boot 260 (simulated)"), Some("260"));
        for other in ["GRUB 2.12", "systemd-boot", "systemd-boot ", "systemd-stub 257", ""] {
            assert_eq!(version_in(other), None, "{other}");
        }
    }

    #[test]
    fn the_places_are_those_of_bootctl_and_of_the_firmware() {
        let path = |(folder, name): (&str, String)| format!("{folder}/{name}");
        assert_eq!(path(in_systemd(Architecture::Arm64)), "EFI/systemd/systemd-bootaa64.efi");
        assert_eq!(path(in_fallback(Architecture::X86_64)), "EFI/BOOT/BOOTX64.EFI");
        let [signed, plain] = in_image(Architecture::X86_64);
        assert_eq!(plain, "usr/lib/systemd/boot/efi/systemd-bootx64.efi");
        assert_eq!(signed, format!("{plain}.signed"));
    }
}
