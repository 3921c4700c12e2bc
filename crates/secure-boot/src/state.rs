//! What the machine's variables say: whether Secure Boot is on, and what it judges by.

use std::io;

use crate::judge::Databases;
use crate::list::{ListError, parse_lists};

/// Vendor GUID of `SecureBoot` and `SetupMode` (UEFI 2.10, section 3.3, `EFI_GLOBAL_VARIABLE`).
pub const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// Vendor GUID of `db` and `dbx` (UEFI 2.10, section 32.4, `EFI_IMAGE_SECURITY_DATABASE_GUID`).
pub const IMAGE_SECURITY: &str = "d719b2cb-3d3a-4596-a3bc-dad00e67656f";
/// Vendor GUID of shim's variables (shim, MokVars.txt).
pub const SHIM: &str = "605dab50-e046-4300-abb6-3dd810dd8b23";

/// Secure Boot as this boot of the machine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecureBoot {
    /// Images start whatever their signatures: no firmware that could check, switched off, in setup mode, or shim was told
    /// not to validate.
    Off {
        /// Why, for people.
        why: &'static str,
    },
    /// Images are checked.
    On {
        /// By these.
        databases: Box<Databases>,
        /// Whether shim runs, which accepts its own certificate and enrolled keys beside `db`.
        shim: bool,
    },
}

/// Why that can't be told.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A variable can't be read.
    #[error("the EFI variable {name} can't be read")]
    Read {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A variable holds something else.
    #[error("the EFI variable {name} can't be used")]
    List {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: ListError,
    },
}

impl SecureBoot {
    /// Reads it. `variable` gives the value of a variable of a vendor without its attributes, `None` where it is not set.
    ///
    /// # Errors
    /// [`StateError`]: nothing is known then. It is never taken for "off".
    pub fn read(variable: impl Fn(&str, &str) -> io::Result<Option<Vec<u8>>>) -> Result<Self, StateError> {
        let value = |vendor: &str, name: &'static str| {
            variable(vendor, name).map_err(|source| StateError::Read { name, source })
        };
        let flag = |vendor, name| Ok::<_, StateError>(value(vendor, name)?.map(|bytes| bytes.first() == Some(&1)));
        match flag(GLOBAL, "SecureBoot")? {
            None => return Ok(Self::Off { why: "this firmware has no Secure Boot" }),
            Some(false) => return Ok(Self::Off { why: "Secure Boot is switched off" }),
            Some(true) => {}
        }
        if flag(GLOBAL, "SetupMode")? == Some(true) {
            return Ok(Self::Off { why: "the firmware is in setup mode" });
        }
        if flag(SHIM, "MokSBStateRT")? == Some(true) {
            return Ok(Self::Off { why: "shim was told not to validate" });
        }
        let list = |vendor, name| {
            let bytes = value(vendor, name)?;
            let shown = bytes.is_some();
            let parsed = parse_lists(&bytes.unwrap_or_default());
            Ok::<_, StateError>((parsed.map_err(|source| StateError::List { name, source })?, shown))
        };
        let (mut allowed, _) = list(IMAGE_SECURITY, "db")?;
        let (mut forbidden, _) = list(IMAGE_SECURITY, "dbx")?;
        let (enrolled, shim) = list(SHIM, "MokListRT")?;
        let (banned, _) = list(SHIM, "MokListXRT")?;
        allowed.extend(enrolled);
        forbidden.extend(banned);
        Ok(Self::On { databases: Box::new(Databases { allowed, forbidden }), shim })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[(&str, &[u8])]) -> Result<SecureBoot, StateError> {
        SecureBoot::read(|_, name| {
            let found = values.iter().find(|(known, _)| *known == name);
            match found {
                Some((_, b"EIO")) => Err(io::Error::from_raw_os_error(5)),
                found => Ok(found.map(|(_, value)| value.to_vec())),
            }
        })
    }

    #[test]
    fn what_can_not_be_read_is_never_off() {
        assert!(matches!(read(&[]), Ok(SecureBoot::Off { .. })));
        assert!(matches!(read(&[("SecureBoot", &[0])]), Ok(SecureBoot::Off { .. })));
        assert!(matches!(read(&[("SecureBoot", &[1]), ("SetupMode", &[1])]), Ok(SecureBoot::Off { .. })));
        assert!(matches!(read(&[("SecureBoot", &[1]), ("MokSBStateRT", &[1])]), Ok(SecureBoot::Off { .. })));
        assert!(matches!(read(&[("SecureBoot", &[1])]), Ok(SecureBoot::On { shim: false, .. })));
        assert!(matches!(read(&[("SecureBoot", &[1]), ("MokListRT", &[])]), Ok(SecureBoot::On { shim: true, .. })));
        for name in ["SecureBoot", "SetupMode", "MokSBStateRT", "db", "dbx", "MokListRT", "MokListXRT"] {
            let failed = read(&[(name, b"EIO"), ("SecureBoot", &[1])]);
            assert!(matches!(failed, Err(StateError::Read { name: found, .. }) if found == name), "{name}");
        }
        let cut = read(&[("SecureBoot", &[1]), ("dbx", &[1, 2, 3])]);
        assert!(matches!(cut, Err(StateError::List { name: "dbx", .. })));
    }
}
