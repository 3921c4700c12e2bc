//! The boot loader as a file, on machines whose firmware starts one from the ESP. On all others it is just there.

use std::collections::BTreeMap;

use bascule_image::digest::Sha256;

use crate::esp::Esp;

/// Longest file that the firmware takes for a program.
const MAX: u64 = 1 << 20;

/// Boot loaders of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaders {
    /// Their paths on the ESP, in the order in which the firmware tries them.
    pub places: Vec<String>,
    /// The programs that run, by their digests, with the version that they say: what is torn anywhere is none of them.
    pub known: BTreeMap<Sha256, String>,
}

impl Loaders {
    /// The version of what each place has; `None` for what would not run.
    pub fn versions(&self, esp: &Esp) -> Vec<Option<String>> {
        self.places.iter().map(|place| self.version(esp, place)).collect()
    }

    /// The first that runs: its place and version.
    pub fn start(&self, esp: &Esp) -> Option<(String, String)> {
        self.places.iter().find_map(|place| Some((place.clone(), self.version(esp, place)?)))
    }

    fn version(&self, esp: &Esp, place: &str) -> Option<String> {
        // Firmware goes on to the next boot option whatever is wrong with one.
        let program = esp.read(place, MAX).ok()?;
        self.known.get(&Sha256::of(&program)).cloned()
    }
}
