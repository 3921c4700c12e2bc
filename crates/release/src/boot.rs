//! What boots an image: kernel, initrd and command line in one file that carries the image's root hash.

use std::path::Path;

use bascule_image::release::manifest::MAX_UKI_SIZE;
use bascule_image::uki::{self, Parts};
use bascule_names::RootHash;

use crate::{Error, read_bounded};

/// Stands for the image's root hash in a command line.
const PLACEHOLDER: &str = "{roothash}";

/// What a unified kernel image is made of, as files.
#[derive(Debug, Clone, Copy)]
pub struct BootParts<'a> {
    /// systemd's EFI stub.
    pub stub: &'a Path,
    /// The kernel.
    pub kernel: &'a Path,
    /// The initrd; several are put together in this order.
    pub initrd: &'a [&'a Path],
    /// The kernel's command line. `{roothash}` in it stands for the image's root hash; without it, `roothash=…` is added.
    pub command_line: &'a str,
    /// What `uname -r` prints with this kernel, where known.
    pub kernel_release: Option<&'a str>,
}

impl BootParts<'_> {
    /// The unified kernel image of an image. The same parts always give the same bytes.
    ///
    /// # Errors
    /// A file can't be read or is too long, or the parts do not make a boot image.
    pub fn build(&self, root_hash: &RootHash, os_release: &str) -> Result<Vec<u8>, Error> {
        let mut initrd = Vec::new();
        for path in self.initrd {
            initrd.extend(read_bounded(path, MAX_UKI_SIZE)?);
            // The kernel takes several archives one after the other at multiples of four bytes.
            initrd.resize(initrd.len().next_multiple_of(4), 0);
        }
        Ok(uki::build(&Parts {
            stub: &read_bounded(self.stub, MAX_UKI_SIZE)?,
            kernel: &read_bounded(self.kernel, MAX_UKI_SIZE)?,
            initrd: &initrd,
            command_line: &command_line(self.command_line, root_hash),
            os_release,
            kernel_release: self.kernel_release,
        })?)
    }
}

fn command_line(template: &str, root_hash: &RootHash) -> String {
    if template.contains(PLACEHOLDER) {
        template.replace(PLACEHOLDER, root_hash.as_str())
    } else {
        format!("{template} roothash={root_hash}").trim_start().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_hash_is_put_where_it_belongs() {
        let root_hash = RootHash::from_bytes(&[1; 32]);
        assert_eq!(command_line("quiet", &root_hash), format!("quiet roothash={root_hash}"));
        assert_eq!(command_line("", &root_hash), format!("roothash={root_hash}"));
        assert_eq!(command_line("usrhash={roothash} quiet", &root_hash), format!("usrhash={root_hash} quiet"));
    }
}
