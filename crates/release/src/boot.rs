//! What boots an image: kernel, initrd and command line in one file that carries the image's root hash.

use std::path::Path;

use bascule_image::release::manifest::MAX_UKI_SIZE;
use bascule_image::uki::{self, MeasureError, Parts, Uki};
use bascule_names::RootHash;

use crate::policy::PcrPolicy;
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
    /// What of a TPM's policies goes into it.
    pub pcr: Pcr<'a>,
}

/// What a unified kernel image says about a TPM's policies.
#[derive(Debug, Clone, Copy, Default)]
pub enum Pcr<'a> {
    /// Nothing.
    #[default]
    Nothing,
    /// A public key, and what it signed elsewhere.
    Ready {
        /// In PEM.
        public_key: &'a [u8],
        /// As systemd-measure writes it.
        signature: &'a [u8],
    },
    /// A public key, and what it signs of this image.
    Signed(&'a PcrPolicy<'a>),
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
        let (stub, kernel) = (read_bounded(self.stub, MAX_UKI_SIZE)?, read_bounded(self.kernel, MAX_UKI_SIZE)?);
        let (pcr_public_key, pcr_signature) = match self.pcr {
            Pcr::Nothing => (&[][..], &[][..]),
            Pcr::Ready { public_key, signature } => (public_key, signature),
            Pcr::Signed(policy) => (policy.public_key_pem, &[][..]),
        };
        let parts = Parts {
            stub: &stub,
            kernel: &kernel,
            initrd: &initrd,
            command_line: &command_line(self.command_line, root_hash),
            os_release,
            kernel_release: self.kernel_release,
            pcr_public_key,
            pcr_signature,
        };
        let unsigned = uki::build(&parts)?;
        let Pcr::Signed(policy) = self.pcr else { return Ok(unsigned) };
        // The signatures are the one section that is not measured.
        let pcr11 = Uki::open(&unsigned).map_err(MeasureError::from).and_then(|uki| uki.pcr11())?;
        let signature = policy.signed(&pcr11).map_err(Error::PcrSignature)?;
        Ok(uki::build(&Parts { pcr_signature: &signature, ..parts })?)
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
