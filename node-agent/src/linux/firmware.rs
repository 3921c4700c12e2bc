//! EFI variables through efivarfs.

use std::io::{self, Read as _};
use std::path::PathBuf;

use crate::host::{BOOT_LOADER_VENDOR, Firmware};

/// Longest variable in bytes; the boot loader's are far below.
const MAX: u64 = 64 << 10;
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

impl Firmware for EfiVariables {
    fn variable(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.folder.join(format!("{name}-{BOOT_LOADER_VENDOR}"));
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX).read_to_end(&mut bytes)?;
        Ok(bytes.get(ATTRIBUTES..).map(<[u8]>::to_vec))
    }
}
