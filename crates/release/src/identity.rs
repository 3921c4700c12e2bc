//! Which release it is, and what is derived from that instead of being drawn.

use bascule_image::Sha256;
use bascule_image::verity::Parameters;
use bascule_names::{Architecture, Product, Version};
use uuid::Uuid;

/// Which release for whom. What of a release need not be random is derived from it, so that the same input gives the same bytes.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The product whose hosts may install it.
    pub product: &'a Product,
    /// Its version.
    pub version: &'a Version,
    /// The processors it is for.
    pub architecture: Architecture,
}

impl Identity<'_> {
    /// 32 bytes for a purpose.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        let text = format!("bascule {purpose}\n{}\n{}\n{}\n", self.product, self.version, self.architecture);
        *Sha256::of(text.as_bytes()).as_bytes()
    }

    /// A UUID for a purpose (RFC 9562, version 8: custom).
    #[must_use]
    pub fn uuid(&self, purpose: &str) -> Uuid {
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(self.derive(purpose)).for_each(|(to, from)| *to = from);
        uuid::Builder::from_custom_bytes(bytes).into_uuid()
    }

    /// Salt and UUID of the image's dm-verity tree.
    #[must_use]
    pub fn parameters(&self) -> Parameters {
        Parameters { salt: self.derive("verity salt").to_vec(), uuid: *self.uuid("verity").as_bytes() }
    }

    /// The path in a repository of one of its files.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        format!("releases/{}/{}/{name}", self.version, self.architecture)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_derived_depends_on_the_release_and_the_purpose() {
        let (product, version) = ("acme-os".parse().unwrap(), "1.0".parse().unwrap());
        let this = Identity { product: &product, version: &version, architecture: Architecture::X86_64 };
        let other = Identity { architecture: Architecture::Arm64, ..this };
        assert_eq!(this.derive("salt"), this.derive("salt"));
        assert_ne!(this.derive("salt"), this.derive("uuid"));
        assert_ne!(this.derive("salt"), other.derive("salt"));
        assert_eq!(this.uuid("x").get_version_num(), 8);
        assert_eq!(this.path("release.json"), "releases/1.0/x86-64/release.json");
    }
}
