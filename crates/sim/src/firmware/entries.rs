//! Boot Loader Specification entries as systemd-boot finds, names and sorts them (src/boot/boot.c: `config_load_type1_entries`,
//! `config_load_type2_entries`, `boot_entry_parse_tries`, `boot_entry_compare`). Of type #1 only those that name a unified kernel
//! image can be started here; they are what the tests need.

use std::cmp::Ordering;
use std::io;

use bascule_image::digest::Sha256;
use bascule_names::compare_versions;

use super::{BootImage, Shown};
use crate::esp::Esp;

/// Where Type #2 entries lie.
pub const DIRECTORY: &str = "EFI/Linux";
/// Where Type #1 entries lie.
pub const TEXTS: &str = "loader/entries";
/// No Type #1 entry is longer.
const MAX_TEXT: u64 = 64 << 10;
/// No boot image is longer.
const MAX_IMAGE: u64 = 512 << 20;

/// Boot counters in a file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    /// Tries left.
    pub left: u32,
    /// Tries done.
    pub done: u32,
}

/// One entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Number of the partition that it lies on.
    pub partition: u32,
    /// [`DIRECTORY`] or [`TEXTS`].
    pub directory: &'static str,
    /// File name in it, counters included.
    pub file: String,
    /// Which profile of the file it starts and what that is called, from the second on.
    pub profile: Option<(usize, String)>,
    /// Whether it is a program that the firmware would load.
    pub starts: bool,
    /// What it is sorted by: key, machine ID (of type #1), version.
    pub sorted_by: (Option<String>, Option<String>, Option<String>),
    /// The name without counters and what the counters say, if it has any.
    pub tries: Option<Tries>,
    /// What the image says about itself.
    pub image: BootImage,
    /// Digest of the whole file.
    pub digest: Sha256,
}

/// Splits `name+LEFT[-DONE].efi`. A name whose last `+` is not followed by exactly that has no counters.
pub fn parse_tries(file: &str) -> Option<(&str, Tries)> {
    tries_in(strip(file, ".efi")?)
}

/// The same for either type of entry.
fn tries_of(file: &str) -> Option<(&str, Tries)> {
    tries_in(strip(file, ".efi").or_else(|| strip(file, ".conf"))?)
}

fn tries_in(stem: &str) -> Option<(&str, Tries)> {
    let (name, counters) = stem.rsplit_once('+')?;
    let (left, done) = counters.split_once('-').unwrap_or((counters, "0"));
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|value| digits && *value <= i32::MAX as u32)
    };
    Some((name, Tries { left: number(left)?, done: number(done)? }))
}

fn strip<'f>(file: &'f str, wanted: &str) -> Option<&'f str> {
    let at = file.len().checked_sub(wanted.len())?;
    let (stem, suffix) = (file.get(..at)?, file.get(at..)?);
    suffix.eq_ignore_ascii_case(wanted).then_some(stem)
}

/// `.efi` or `.conf`, as it is written.
fn ending(file: &str) -> Option<&str> {
    file.rfind('.').and_then(|at| file.get(at..))
}

impl Entry {
    /// An entry of type #2 of which nothing is known but its name and what it is sorted by.
    pub(crate) fn named(file: &str, sort_key: Option<String>, version: Option<String>) -> Self {
        Self {
            partition: 1,
            directory: DIRECTORY,
            file: file.to_owned(),
            profile: None,
            starts: true,
            sorted_by: (sort_key, None, version),
            tries: parse_tries(file).map(|(_, tries)| tries),
            image: BootImage::default(),
            digest: Sha256::of(b""),
        }
    }

    /// The loader's id: the file name in lower case, without counters, and the profile from the second on.
    pub fn id(&self) -> String {
        let file = self.id_without_profile();
        self.profile.as_ref().map_or(file.clone(), |(_, name)| format!("{file}@{}", name.to_ascii_lowercase()))
    }

    fn number(&self) -> usize {
        self.profile.as_ref().map_or(0, |(number, _)| *number)
    }

    fn id_without_profile(&self) -> String {
        let plain = tries_of(&self.file).and_then(|(name, _)| Some(format!("{name}{}", ending(&self.file)?)));
        plain.unwrap_or_else(|| self.file.clone()).to_ascii_lowercase()
    }

    /// The name that the file gets when it is picked: one try less left, one more done. `None` without counters.
    pub fn next_file(&self) -> Option<String> {
        let (name, tries) = tries_of(&self.file)?;
        let suffix = ending(&self.file)?;
        Some(format!("{name}+{}-{}{suffix}", tries.left.saturating_sub(1), tries.done.saturating_add(1)))
    }
}

/// Brings entries into the order of the menu.
pub(crate) fn sort(entries: &mut [Entry]) {
    entries.sort_by(compare);
}

/// All entries of one partition, in the order of the menu. Files that are no boot image are passed over.
pub fn load(esp: &Esp) -> io::Result<Vec<Entry>> {
    let mut entries = found(esp)?;
    entries.sort_by(compare);
    Ok(entries)
}

/// All entries of several partitions, in the order of the menu.
pub(super) fn load_all(partitions: &[Esp]) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for partition in partitions {
        entries.extend(found(partition)?);
    }
    entries.sort_by(compare);
    Ok(entries)
}

fn found(esp: &Esp) -> io::Result<Vec<Entry>> {
    let files = match esp.list(DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        files => files?,
    };
    let mut entries = texts(esp)?;
    for file in files {
        if is_hidden(&file.name) || strip(&file.name, ".efi").is_none() {
            continue;
        }
        let Ok(content) = esp.read(&format!("{DIRECTORY}/{}", file.name), MAX_IMAGE) else { continue };
        let digest = Sha256::of(&content);
        entries.extend(BootImage::shown(&content).into_iter().map(|Shown { profile, image, starts }| Entry {
            partition: esp.part().cache().0,
            directory: DIRECTORY,
            sorted_by: (image.sort_key.clone(), None, image.version.clone()),
            tries: parse_tries(&file.name).map(|(_, tries)| tries),
            digest,
            file: file.name.clone(),
            profile,
            starts,
            image,
        }));
    }
    Ok(entries)
}

fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || name.to_ascii_lowercase().starts_with("auto-")
}

/// Entries of type #1 that start a unified kernel image on the same partition.
fn texts(esp: &Esp) -> io::Result<Vec<Entry>> {
    let files = match esp.list(TEXTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        files => files?,
    };
    let mut entries = Vec::new();
    for file in files {
        if is_hidden(&file.name) || strip(&file.name, ".conf").is_none() {
            continue;
        }
        let Ok(bytes) = esp.read(&format!("{TEXTS}/{}", file.name), MAX_TEXT) else { continue };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let value = |key: &str| {
            let mut lines = text.lines().filter_map(|line| line.trim().split_once([' ', '\t']));
            lines.rfind(|(found, _)| *found == key).map(|(_, value)| value.trim().to_owned())
        };
        // As of systemd 258. No machine here is of a processor that a test would name.
        let other = ["linux", "efi", "architecture"].into_iter().any(|key| value(key).is_some());
        let Some(program) = value("uki").filter(|_| !other) else { continue };
        let path = program.replace('\\', "/");
        let Ok(content) = esp.read(path.trim_start_matches('/'), MAX_IMAGE) else { continue };
        let Some(image) = BootImage::read(&content) else { continue };
        entries.push(Entry {
            partition: esp.part().cache().0,
            directory: TEXTS,
            sorted_by: (value("sort-key"), value("machine-id"), value("version")),
            tries: tries_of(&file.name).map(|(_, tries)| tries),
            digest: Sha256::of(&content),
            file: file.name,
            profile: None,
            starts: true,
            image,
        });
    }
    Ok(entries)
}

/// Bad entries last; then by sort-key, machine-id, version descending, id descending, profiles of one file in their order, more tries
/// left, fewer done.
fn compare(a: &Entry, b: &Entry) -> Ordering {
    let bad = |entry: &Entry| entry.tries.is_some_and(|tries| tries.left == 0);
    bad(a)
        .cmp(&bad(b))
        .then_with(|| a.sorted_by.0.is_none().cmp(&b.sorted_by.0.is_none()))
        .then_with(|| match (&a.sorted_by, &b.sorted_by) {
            ((Some(key_a), id_a, version_a), (Some(key_b), id_b, version_b)) => {
                let version = |version: &Option<String>| version.clone().unwrap_or_default();
                let by_version = || compare_versions(&version(version_b), &version(version_a));
                key_a.cmp(key_b).then_with(|| id_a.cmp(id_b)).then_with(by_version)
            }
            _ => Ordering::Equal,
        })
        .then_with(|| compare_versions(&b.id_without_profile(), &a.id_without_profile()))
        .then_with(|| a.number().cmp(&b.number()))
        .then_with(|| match (a.tries, b.tries) {
            (Some(a), Some(b)) => b.left.cmp(&a.left).then(a.done.cmp(&b.done)),
            _ => Ordering::Equal,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(file: &str, sort_key: Option<&str>, version: &str) -> Entry {
        let image =
            BootImage { sort_key: sort_key.map(String::from), version: Some(version.into()), ..BootImage::default() };
        Entry {
            partition: 1,
            directory: DIRECTORY,
            sorted_by: (image.sort_key.clone(), None, image.version.clone()),
            file: file.into(),
            tries: parse_tries(file).map(|(_, tries)| tries),
            image,
            profile: None,
            starts: true,
            digest: Sha256::of(b""),
        }
    }

    fn order(entries: &[(&str, Option<&str>, &str)]) -> Vec<String> {
        let mut entries: Vec<_> = entries.iter().map(|(file, key, version)| entry(file, *key, version)).collect();
        entries.sort_by(compare);
        entries.into_iter().map(|entry| entry.file).collect()
    }

    #[test]
    fn counters_are_read_from_the_last_plus_and_only_where_the_whole_rest_is_counters() {
        let parsed = |file| parse_tries(file).map(|(name, tries)| (name, tries.left, tries.done));
        assert_eq!(parsed("acme-1.0+3-0.efi"), Some(("acme-1.0", 3, 0)));
        assert_eq!(parsed("acme-1.0+3.EFI"), Some(("acme-1.0", 3, 0)));
        assert_eq!(parsed("acme+2+1-2.efi"), Some(("acme+2", 1, 2)));
        for plain in ["acme.efi", "acme+.efi", "acme+3-.efi", "acme+3x.efi", "acme+3-0.conf", ".efi"] {
            assert_eq!(parsed(plain), None, "{plain}");
        }
        assert_eq!(entry("a+3-0.efi", None, "").next_file().unwrap(), "a+2-1.efi");
        assert_eq!(entry("a+0-3.efi", None, "").next_file().unwrap(), "a+0-4.efi");
        assert_eq!(entry("a.efi", None, "").next_file(), None);
    }

    #[test]
    fn bad_entries_are_last_then_sort_key_then_version_descending() {
        let sorted = order(&[
            ("acme-1.9+0-3.efi", Some("acme"), "1.9"),
            ("acme-1.2.efi", Some("acme"), "1.2"),
            ("acme-1.10+3-0.efi", Some("acme"), "1.10"),
            ("old.efi", None, "9"),
            ("zeta.efi", Some("zeta"), "99"),
        ]);
        assert_eq!(sorted, ["acme-1.10+3-0.efi", "acme-1.2.efi", "zeta.efi", "old.efi", "acme-1.9+0-3.efi"]);
    }
}
