//! What lies on the boot partitions of a new host: the boot loader in both places, its settings, and the first entry under the
//! name that the agent would give it, so that the agent takes it over.

use std::collections::{BTreeMap, BTreeSet};

use bascule_image::boot_loader::{self, suffix};
use bascule_image::uki::Uki;
use bascule_names::{Architecture, entry_base};

/// Folder of the entries (UAPI Boot Loader Specification, "Type #2 EFI Unified Kernel Images").
const ENTRIES: &str = "EFI/Linux";
/// The boot loader asks nobody.
const LOADER_CONF: &[u8] = b"timeout 0\nconsole-mode keep\n";
/// Longest path on a boot partition; FAT's names have 255 characters.
const MAX_PATH: usize = 255;
/// What FAT can't have in a long name (Microsoft FAT specification, section 7.3), beside control characters.
const RESERVED: &str = "\"*:<>?|\\";

/// Why a file can't go onto a boot partition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootFileError {
    /// FAT or the firmware can't have such a name.
    #[error(
        "'{0}' is no path for a boot partition: write names of ASCII letters, digits and signs with / between them"
    )]
    Path(String),
    /// The same name is a file and a folder.
    #[error("'{0}' would be a file and a folder at once: leave one of them out")]
    Both(String),
}

/// Why a boot loader is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootLoaderError {
    /// It is no program for firmware.
    #[error("the boot loader is no EFI program: give systemd-boot's, e.g. systemd-boot{suffix}.efi", suffix = suffix(*.0))]
    NoProgram(Architecture),
    /// It is for other processors.
    #[error("the boot loader is not for {0}: give that of the release's architecture, systemd-boot{suffix}.efi", suffix = suffix(*.0))]
    Machine(Architecture),
    /// It is something else.
    #[error("the boot loader is not systemd-boot, which counts the tries of a new release: give systemd-boot{suffix}.efi", suffix = suffix(*.0))]
    Other(Architecture),
}

/// Name of a release's entry when it is no trial.
pub fn entry_file(product: &str, version: &str) -> String {
    format!("{}.efi", entry_base(product, version))
}

/// systemd-boot, for an architecture.
#[derive(Debug, Clone, Copy)]
pub struct BootLoader<'a> {
    bytes: &'a [u8],
    architecture: Architecture,
}

impl<'a> BootLoader<'a> {
    /// Where systemd installs it to be copied from.
    pub fn usual_path(architecture: Architecture) -> String {
        let [_, plain] = boot_loader::in_image(architecture);
        format!("/{plain}")
    }

    /// Looks whether it is one.
    ///
    /// # Errors
    /// It is no EFI program, one for other processors, or another boot loader.
    #[allow(clippy::ptr_arg, reason = "the reader of headers takes a sized thing")]
    pub fn parse(bytes: &'a Vec<u8>, architecture: Architecture) -> Result<Self, BootLoaderError> {
        // Headers and sections are looked at as those of a UKI are: both are what the firmware starts.
        let program = Uki::open(bytes).map_err(|_| BootLoaderError::NoProgram(architecture))?;
        if !program.processor().is(architecture) {
            return Err(BootLoaderError::Machine(architecture));
        }
        match boot_loader::BootLoader::read(bytes) {
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return Err(BootLoaderError::Other(architecture)),
        }
        Ok(Self { bytes, architecture })
    }
}

/// Files of a boot partition by path. FAT does not tell `A` from `a`: a file replaces the one that is there under such a name.
#[derive(Debug, Clone, Default)]
pub struct BootFiles {
    files: BTreeMap<String, (String, Vec<u8>)>,
}

impl BootFiles {
    /// Those of an ESP: settings, and the boot loader where the firmware looks on a disk that no boot variable names, and where
    /// `bootctl` keeps it.
    pub fn of_esp(boot_loader: Option<BootLoader<'_>>) -> Self {
        let mut files = Self::default();
        files.put("loader/loader.conf", LOADER_CONF.to_vec());
        if let Some(BootLoader { bytes, architecture }) = boot_loader {
            for (folder, name) in [boot_loader::in_fallback(architecture), boot_loader::in_systemd(architecture)] {
                files.put(&format!("{folder}/{name}"), bytes.to_vec());
            }
        }
        files
    }

    /// Adds the entry of the first release.
    ///
    /// # Errors
    /// The name is none for FAT.
    pub fn add_entry(&mut self, name: &str, boot_image: Vec<u8>) -> Result<(), BootFileError> {
        self.add(&format!("{ENTRIES}/{name}"), boot_image)
    }

    /// Adds a file, or replaces it.
    ///
    /// # Errors
    /// The path is none for FAT, or a file is a folder of another one.
    pub fn add(&mut self, path: &str, content: Vec<u8>) -> Result<(), BootFileError> {
        let sound = |name: &str| {
            let known =
                name.bytes().all(|byte| (b' '..0x7F).contains(&byte)) && !name.contains(|c| RESERVED.contains(c));
            known && !name.is_empty() && !name.starts_with(' ') && !name.ends_with([' ', '.'])
        };
        if path.len() > MAX_PATH || !path.split('/').all(sound) {
            return Err(BootFileError::Path(path.to_owned()));
        }
        let key = path.to_ascii_lowercase();
        let inner = |long: &str, short: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with('/'));
        if self.files.keys().any(|other| inner(other, &key) || inner(&key, other)) {
            return Err(BootFileError::Both(path.to_owned()));
        }
        self.put(path, content);
        Ok(())
    }

    fn put(&mut self, path: &str, content: Vec<u8>) {
        self.files.insert(path.to_ascii_lowercase(), (path.to_owned(), content));
    }

    /// Bytes of all files, in whole clusters.
    pub fn size(&self) -> u64 {
        self.files.values().map(|(_, content)| (content.len() as u64).next_multiple_of(4096)).sum()
    }

    /// Files by path.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.files.values().map(|(path, content)| (path.as_str(), content.as_slice()))
    }

    /// Folders, each after the one that it lies in; those that the agent and the boot loader expect among them.
    pub(crate) fn folders(&self) -> Vec<String> {
        let mut folders: BTreeMap<String, String> = BTreeMap::new();
        let usual = ["EFI", ENTRIES, "loader"].map(|folder| format!("{folder}/"));
        let paths = usual.iter().map(String::as_str).chain(self.iter().map(|(path, _)| path));
        for path in paths {
            for (end, _) in path.match_indices('/') {
                let folder = path.get(..end).unwrap_or_default();
                folders.entry(folder.to_ascii_lowercase()).or_insert_with(|| folder.to_owned());
            }
        }
        let ordered: BTreeSet<(usize, String)> =
            folders.into_values().map(|folder| (folder.matches('/').count(), folder)).collect();
        ordered.into_iter().map(|(_, folder)| folder).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_firmware_can_not_have_are_refused() {
        let mut files = BootFiles::of_esp(None);
        for path in ["", "/a", "a/", "a//b", "a/../b", "..", "a:b", "a\\b", "é.efi", " a", "a ", "a.", &"x".repeat(256)]
        {
            assert_eq!(files.add(path, Vec::new()), Err(BootFileError::Path(path.to_owned())));
        }
        files.add("EFI/Linux/acme-os_1.0.efi", Vec::new()).unwrap();
        for path in ["efi/linux", "LOADER/loader.conf/more"] {
            assert_eq!(files.add(path, Vec::new()), Err(BootFileError::Both(path.to_owned())));
        }
    }

    #[test]
    fn a_name_in_other_letters_is_the_same_file() {
        let mut files = BootFiles::of_esp(None);
        files.add("Loader/LOADER.CONF", b"timeout 5\n".to_vec()).unwrap();
        assert_eq!(files.iter().collect::<Vec<_>>(), [("Loader/LOADER.CONF", &b"timeout 5\n"[..])]);
        assert_eq!(files.folders(), ["EFI", "loader", "EFI/Linux"]);
    }

    #[test]
    fn only_systemd_boot_for_the_architecture_is_taken() {
        let usual = BootLoader::usual_path(Architecture::X86_64);
        let mut program = std::fs::read(usual).unwrap();
        let parse = |bytes: &Vec<u8>, architecture| BootLoader::parse(bytes, architecture).map(drop);
        assert_eq!(parse(&program, Architecture::X86_64), Ok(()));
        let error = parse(&program, Architecture::Arm64).unwrap_err();
        let text = "the boot loader is not for arm64: give that of the release's architecture, systemd-bootaa64.efi";
        assert_eq!(error.to_string(), text);
        let headers = u32::from_le_bytes(program[0x3C..0x40].try_into().unwrap()) as usize;
        program[headers + 4..headers + 6].copy_from_slice(&0xAA64_u16.to_le_bytes());
        assert_eq!(parse(&program, Architecture::Arm64), Ok(()));
        assert_eq!(parse(&program, Architecture::X86_64), Err(BootLoaderError::Machine(Architecture::X86_64)));
        let stub = std::fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").unwrap();
        assert_eq!(parse(&stub, Architecture::X86_64), Err(BootLoaderError::Other(Architecture::X86_64)));
        let script = b"#!/bin/sh".to_vec();
        assert_eq!(parse(&script, Architecture::X86_64), Err(BootLoaderError::NoProgram(Architecture::X86_64)));
        assert_eq!(parse(&Vec::new(), Architecture::X86_64), Err(BootLoaderError::NoProgram(Architecture::X86_64)));
    }
}
