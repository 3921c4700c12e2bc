//! EFI variables through efivarfs.

use std::io::{self, Read as _};
use std::path::PathBuf;

use crate::host::Firmware;

/// Longest variable in bytes. The boot loader's are far below; a `dbx` has some tens of KiB.
const MAX: u64 = 1 << 20;
/// Attributes before the value (kernel, Documentation/filesystems/efivarfs.rst).
const ATTRIBUTES: usize = 4;

/// The variables of the running machine.
#[derive(Debug)]
pub struct EfiVariables {
    folder: PathBuf,
}

impl Default for EfiVariables {
    fn default() -> Self {
        Self { folder: "/sys/firmware/efi/efivars".into() }
    }
}

impl EfiVariables {
    /// The variables below another folder than the kernel's.
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }
}

impl Firmware for EfiVariables {
    fn variable_of(&self, vendor: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.folder.join(format!("{name}-{vendor}"));
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // The kernel gives the attributes with the value or not at all: less was cut off, and is no variable that is unset.
        bytes.get(ATTRIBUTES..).map(|value| Some(value.to_vec())).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
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
}
