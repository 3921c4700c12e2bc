//! EFI variables of the boot loader interface, with systemd's vendor GUID, as bytes the way efivarfs would show them
//! (without its four bytes of attributes): UTF-16, little endian, with a NUL.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Vendor GUID of the boot loader interface.
pub const LOADER_GUID: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Variables that survive a restart; all others are gone when the firmware starts.
const NON_VOLATILE: [&str; 5] = [
    "LoaderEntryDefault",
    "LoaderEntryPreferred",
    "LoaderEntryOneShot",
    "LoaderEntryLastBooted",
    "LoaderConfigTimeout",
];

/// All variables of one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Variables {
    values: BTreeMap<String, Vec<u8>>,
}

impl Variables {
    /// Raw bytes of a variable.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.values.get(name).map(Vec::as_slice)
    }

    /// Raw bytes of a variable of another vendor than the boot loader's.
    pub fn bytes_of(&self, vendor: &str, name: &str) -> Option<&[u8]> {
        if vendor == LOADER_GUID { self.bytes(name) } else { self.bytes(&format!("{name}-{vendor}")) }
    }

    /// Sets a variable of another vendor than the boot loader's; it survives a restart.
    pub fn set_bytes_of(&mut self, vendor: &str, name: &str, value: Vec<u8>) {
        self.set_bytes(&format!("{name}-{vendor}"), value);
    }

    /// A string variable; `None` where it is unset or no UTF-16.
    pub fn string(&self, name: &str) -> Option<String> {
        let units: Vec<u16> = self
            .bytes(name)?
            .chunks_exact(2)
            .map(|pair| pair.iter().rev().fold(0, |value, byte| value << 8 | u16::from(*byte)))
            .take_while(|unit| *unit != 0)
            .collect();
        String::from_utf16(&units).ok()
    }

    /// Sets a string variable.
    pub fn set_string(&mut self, name: &str, value: &str) {
        self.set_bytes(name, value.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect());
    }

    /// Sets a variable.
    pub fn set_bytes(&mut self, name: &str, value: Vec<u8>) {
        self.values.insert(name.to_owned(), value);
    }

    /// Removes a variable.
    pub fn unset(&mut self, name: &str) {
        self.values.remove(name);
    }

    /// What a start leaves: the non-volatile ones.
    pub fn restart(&mut self) {
        self.values.retain(|name, _| name.contains('-') || NON_VOLATILE.contains(&name.as_str()));
    }
}
