//! Whether a boot image is one that this machine would start: looked at when it is staged, before anybody drains the node, and
//! again before it is armed.

use bascule_api::{Architecture, NodeError, Product, Version};
use bascule_image::io::ReadAt;
use bascule_image::uki::{ReadUkiError, Uki};
use bascule_secure_boot::{Refusal, SecureBoot, StateError, judge};

use crate::host::Firmware;

/// What a boot image must be for.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The machine's processor.
    pub architecture: Architecture,
    /// The product that runs here, where it is os-release that says so.
    pub product: Option<&'a Product>,
    /// The release that the boot image belongs to.
    pub version: &'a Version,
    /// Whether it comes only now: what is here already, and may be the way back, is not refused for what a new release must not have.
    pub is_new: bool,
}

/// Why a boot image must not be armed here.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It can't be read, or is no UKI.
    #[error("the boot image can't be looked at")]
    Uki(#[from] ReadUkiError),
    /// It is for another processor.
    #[error(
        "the boot image is for {found}, this machine is {wanted}: publish one that is built on the EFI stub for {wanted}"
    )]
    Architecture {
        /// What its PE header says.
        found: String,
        /// The machine's.
        wanted: Architecture,
    },
    /// Its os-release says something else than the release: the boot loader would sort it wrongly, and the agent would take
    /// what it boots for another release.
    #[error("the boot image's os-release says {field}={found}, the release is {wanted}: publish one that agrees")]
    OsRelease {
        /// Which field.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it should say.
        wanted: String,
    },
    /// It has several profiles. The boot loader shows an entry for each, with one counter for all, and a person or a pin may pick one
    /// that boots something else than the release.
    #[error("the boot image has {found} profiles, and the boot loader would show each: publish one that has one")]
    Profiles {
        /// How many.
        found: usize,
    },
    /// What the firmware checks by is not known.
    #[error("whether this machine's firmware would start the boot image can't be told")]
    State(#[from] StateError),
    /// The firmware would refuse it.
    #[error("this machine's firmware would refuse the boot image of {version}")]
    SecureBoot {
        /// The release.
        version: Version,
        /// Why.
        #[source]
        source: Refusal,
    },
}

impl Unfit {
    /// The kind, for status and metrics.
    pub fn category(&self) -> NodeError {
        match self {
            Self::Uki(ReadUkiError::Unreadable { .. }) => NodeError::Storage,
            Self::Uki(_) | Self::Architecture { .. } | Self::OsRelease { .. } | Self::Profiles { .. } => {
                NodeError::Unsuitable
            }
            Self::State(_) => NodeError::BootControl,
            Self::SecureBoot { source, .. } if source.is_unreadable() => NodeError::Storage,
            Self::SecureBoot { .. } => NodeError::SecureBoot,
        }
    }
}

/// Looks at a boot image.
///
/// # Errors
/// [`Unfit`].
pub fn check(file: &dyn ReadAt, wanted: &Wanted<'_>, firmware: &dyn Firmware) -> Result<(), Unfit> {
    let uki = Uki::open(file)?;
    if !uki.processor().is(wanted.architecture) {
        return Err(Unfit::Architecture { found: uki.processor().to_string(), wanted: wanted.architecture });
    }
    let found = uki.profiles();
    if found > 1 && wanted.is_new {
        return Err(Unfit::Profiles { found });
    }
    let release = uki.os_release()?;
    let version: &[&'static str] = &["IMAGE_VERSION", "VERSION_ID"];
    let version = (version, Some(wanted.version.as_str()));
    let product: (&[&'static str], _) = (&["IMAGE_ID"], wanted.product.map(Product::as_str));
    for (names, wanted) in [version, product] {
        let Some(wanted) = wanted else { continue };
        let stated = names.iter().find_map(|name| Some((*name, release.first(&[name])?)));
        if let Some((field, found)) = stated.filter(|(_, found)| *found != wanted) {
            let found = found.chars().take(80).collect();
            return Err(Unfit::OsRelease { field, found, wanted: wanted.to_owned() });
        }
    }
    // What the reader gives up here it gives up on the boot partition too, where an image that was not read may boot anything: nobody
    // would take it away again, and nothing would be armed beside it.
    uki.root_hash()?;
    match SecureBoot::read(|vendor, name| firmware.variable_of(vendor, name))? {
        SecureBoot::Off { why } => tracing::debug!(why, "signatures of boot images are not checked here"),
        SecureBoot::On { databases, .. } => {
            let judged = judge(file, &databases);
            let accepted = judged.map_err(|source| Unfit::SecureBoot { version: wanted.version.clone(), source })?;
            tracing::info!(version = %wanted.version, ?accepted, "the firmware would start the boot image");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_sim::tiny::boot_image;
    use std::io;

    /// A machine with these variables.
    struct Variables(Vec<(&'static str, Result<Vec<u8>, i32>)>);

    impl Firmware for Variables {
        fn variable_of(&self, _: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
            let found = self.0.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.clone().map_err(io::Error::from_raw_os_error)).transpose()
        }
    }

    fn category(image: &dyn ReadAt, firmware: &Variables) -> Result<(), (NodeError, String)> {
        let product = Product::parse("acme-os").unwrap();
        let version = Version::parse("1.1").unwrap();
        let (architecture, is_new) = (Architecture::X86_64, true);
        let wanted = Wanted { architecture, product: Some(&product), version: &version, is_new };
        check(image, &wanted, firmware).map_err(|unfit| (unfit.category(), unfit.to_string()))
    }

    fn image(os_release: &str) -> Vec<u8> {
        boot_image(&[(".osrel", os_release.as_bytes()), (".cmdline", b"quiet")])
    }

    #[test]
    fn what_says_something_else_than_the_release_is_unsuitable() {
        let off = Variables(Vec::new());
        assert_eq!(category(&image("IMAGE_ID=acme-os\nIMAGE_VERSION=1.1\n"), &off), Ok(()));
        assert_eq!(category(&image("ID=debian\nVERSION_ID=1.1\n"), &off), Ok(()));
        for (text, named) in [
            ("IMAGE_ID=acme-os\nIMAGE_VERSION=1.0\n", "IMAGE_VERSION=1.0"),
            ("IMAGE_ID=acme-os\nVERSION_ID=12\n", "VERSION_ID=12"),
            ("IMAGE_ID=other\nIMAGE_VERSION=1.1\n", "IMAGE_ID=other"),
        ] {
            let (kind, message) = category(&image(text), &off).unwrap_err();
            assert!(kind == NodeError::Unsuitable && message.contains(named), "{message}");
        }
        let mut arm = image("IMAGE_ID=acme-os\nIMAGE_VERSION=1.1\n");
        arm[68..70].copy_from_slice(&0xAA64_u16.to_le_bytes());
        let (kind, message) = category(&arm, &off).unwrap_err();
        assert!(kind == NodeError::Unsuitable && message.contains("arm64"), "{message}");
        assert_eq!(category(&b"no image".to_vec(), &off).unwrap_err().0, NodeError::Unsuitable);
    }

    #[test]
    fn what_could_not_be_read_on_the_boot_partition_is_unsuitable_before_it_lies_there() {
        let osrel = (".osrel", &b"IMAGE_ID=acme-os\nIMAGE_VERSION=1.1\n"[..]);
        let quiet = (".cmdline", &b"quiet"[..]);
        let long = "x".repeat(3000);
        let off = Variables(Vec::new());
        assert_eq!(category(&boot_image(&[osrel]), &off), Ok(()));
        for sections in [vec![osrel, (".cmdline", long.as_bytes())], vec![osrel, quiet, quiet]] {
            let (kind, _) = category(&boot_image(&sections), &off).unwrap_err();
            assert_eq!(kind, NodeError::Unsuitable);
        }
    }

    #[test]
    fn an_image_with_more_than_one_profile_is_unsuitable() {
        let osrel = (".osrel", &b"IMAGE_ID=acme-os\nIMAGE_VERSION=1.1\n"[..]);
        let (quiet, profile) = ((".cmdline", &b"quiet"[..]), (".profile", &b"ID=x\n"[..]));
        let off = Variables(Vec::new());
        assert_eq!(category(&boot_image(&[osrel, quiet, profile]), &off), Ok(()));
        let (kind, message) = category(&boot_image(&[osrel, quiet, profile, profile]), &off).unwrap_err();
        assert!(kind == NodeError::Unsuitable && message.contains("2 profiles"), "{message}");
        // The way back may have been there before that was asked for. What its profiles are sorted by counts in the order of entries.
        let (product, version) = (Product::parse("acme-os").unwrap(), Version::parse("1.1").unwrap());
        let (architecture, is_new) = (Architecture::X86_64, false);
        let wanted = Wanted { architecture, product: Some(&product), version: &version, is_new };
        assert!(check(&boot_image(&[osrel, quiet, profile, profile]), &wanted, &off).is_ok());
    }

    #[test]
    fn an_unsigned_image_is_refused_where_secure_boot_is_on_or_can_not_be_told() {
        let good = image("IMAGE_ID=acme-os\nIMAGE_VERSION=1.1\n");
        let state =
            |secure: Result<Vec<u8>, i32>| category(&good, &Variables(vec![("SecureBoot", secure)])).map_err(|e| e.0);
        assert_eq!(state(Ok(vec![0])), Ok(()));
        assert_eq!(state(Ok(vec![1])), Err(NodeError::SecureBoot));
        assert_eq!(state(Err(5)), Err(NodeError::BootControl));
        let half = Variables(vec![("SecureBoot", Ok(vec![1])), ("dbx", Err(5))]);
        assert_eq!(category(&good, &half).unwrap_err().0, NodeError::BootControl);
    }

    #[test]
    fn what_can_not_be_read_is_no_verdict() {
        struct Failing;
        impl ReadAt for Failing {
            fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
                Err(io::Error::from_raw_os_error(5))
            }
            fn size(&self) -> io::Result<u64> {
                Ok(1000)
            }
        }
        assert_eq!(category(&Failing, &Variables(Vec::new())).unwrap_err().0, NodeError::Storage);
    }
}
