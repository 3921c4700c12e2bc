//! EFI variables through efivarfs, and SMBIOS structures as the kernel has them.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::host::Firmware;

/// Longest variable, and longest table of SMBIOS structures, in bytes. The boot loader's are far below; a `dbx` has some tens of KiB,
/// and so have the structures.
const MAX: u64 = 1 << 20;
/// Attributes before the value (kernel, Documentation/filesystems/efivarfs.rst).
const ATTRIBUTES: usize = 4;

/// The firmware of the running machine.
#[derive(Debug)]
pub struct EfiVariables {
    folder: PathBuf,
    /// The file of structures, on a machine that may have some.
    smbios: Option<PathBuf>,
}

impl Default for EfiVariables {
    fn default() -> Self {
        // kernel, Documentation/ABI/testing/sysfs-firmware-dmi-tables
        let smbios = Some("/sys/firmware/dmi/tables/DMI".into());
        Self { folder: "/sys/firmware/efi/efivars".into(), smbios }
    }
}

impl EfiVariables {
    /// The variables below another folder than the kernel's, of a machine without SMBIOS structures.
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder, smbios: None }
    }
}

impl Firmware for EfiVariables {
    fn variable_of(&self, vendor: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(bytes) = read(&self.folder.join(format!("{name}-{vendor}")))? else { return Ok(None) };
        // The kernel gives the attributes with the value or not at all: less was cut off, and is no variable that is unset.
        bytes.get(ATTRIBUTES..).map(|value| Some(value.to_vec())).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn smbios(&self) -> io::Result<Vec<u8>> {
        let Some(path) = &self.smbios else { return Ok(Vec::new()) };
        Ok(read(path)?.unwrap_or_default())
    }
}

/// A whole file; `None` where there is none.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(Some(bytes)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::BOOT_LOADER_VENDOR;

    #[test]
    fn what_is_cut_or_too_long_is_an_error_and_never_unset() {
        let folder = tempfile::tempdir().unwrap();
        let variables = EfiVariables::new(folder.path().to_owned());
        let file = |name: &str| folder.path().join(format!("{name}-{BOOT_LOADER_VENDOR}"));
        assert_eq!(variables.variable("LoaderInfo").unwrap(), None);
        std::fs::write(file("LoaderInfo"), [7, 0, 0, 0, b'x']).unwrap();
        assert_eq!(variables.variable("LoaderInfo").unwrap(), Some(b"x".to_vec()));
        std::fs::write(file("LoaderInfo"), [7, 0]).unwrap();
        assert_eq!(variables.variable("LoaderInfo").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        std::fs::write(file("LoaderInfo"), vec![0; (1 << 20) + 1]).unwrap();
        assert_eq!(variables.variable("LoaderInfo").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        std::fs::create_dir(file("Folder")).unwrap();
        assert!(variables.variable("Folder").is_err());
    }
    #[test]
    fn a_machine_has_smbios_structures_or_none_and_not_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("DMI");
        let firmware = EfiVariables { smbios: Some(file.clone()), ..EfiVariables::new(folder.path().to_owned()) };
        assert!(firmware.smbios().unwrap().is_empty());
        std::fs::write(&file, [127, 4, 0, 0, 0, 0]).unwrap();
        assert_eq!(firmware.smbios().unwrap(), [127, 4, 0, 0, 0, 0]);
        std::fs::write(&file, vec![0; (1 << 20) + 1]).unwrap();
        assert_eq!(firmware.smbios().unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
