//! Entries of type #1 (`loader/entries/*.conf`), read as systemd-boot reads them (systemd, src/boot/boot.c): whether it shows one, and
//! what it sorts it by. The agent places none and touches none, but the boot loader may take one before what is armed.
//!
//! What only some versions show counts as shown: `uki` and `uki-url` are not known before 258, and an entry that names programs of
//! two kinds is passed over since then.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::BootError;
use super::error::esp;
use crate::core::boot::name::EntryName;
use crate::core::boot::{BootPartition, TextContent, TextEntry, TextFacts};
use crate::engine::in_one_line;
use crate::host::Esp;

/// Where they lie.
const TEXTS: &str = "loader/entries";
/// More are not looked at, and then nothing is concluded.
const MAX_FILES: usize = 256;
/// Longest entry in bytes.
const MAX_ENTRY: u64 = 64 << 10;
/// Longest value that an entry is sorted by, in characters. With a longer one it is not judged.
const MAX_VALUE: usize = 512;

/// Reads those of one partition. A folder that can't be listed is one entry that could not be read, for whatever lies in it: the
/// agent's own entries lie elsewhere, and are seen all the same.
pub fn text_entries(esp_fs: &dyn Esp, partition: BootPartition) -> Vec<TextEntry> {
    read(esp_fs, partition).unwrap_or_else(|error| {
        let content = TextContent::Unread(in_one_line(&error));
        vec![TextEntry { partition: Some(partition), name: TEXTS.to_owned(), content }]
    })
}

fn read(esp_fs: &dyn Esp, partition: BootPartition) -> Result<Vec<TextEntry>, BootError> {
    let mut listed = esp_fs.list(TEXTS).map_err(esp("listing", TEXTS))?;
    listed.retain(|file| EntryName::parse_text(&file.name).is_some());
    if listed.len() > MAX_FILES {
        return Err(BootError::TooMany { path: TEXTS.to_owned(), limit: MAX_FILES });
    }
    listed.sort();
    let read = |name: String| {
        let content = content(esp_fs, &name);
        TextEntry { partition: Some(partition), name, content }
    };
    Ok(listed.into_iter().map(|file| read(file.name)).collect())
}

fn content(esp_fs: &dyn Esp, name: &str) -> TextContent {
    match esp_fs.read(&format!("{TEXTS}/{name}"), MAX_ENTRY) {
        Ok(bytes) => judged(esp_fs, &bytes),
        Err(error) => TextContent::Unread(error.to_string()),
    }
}

/// What the boot loader makes of an entry's text, with the programs of a partition.
pub(super) fn judged(esp_fs: &dyn Esp, text: &[u8]) -> TextContent {
    let Some(entry) = parse_text_entry(&String::from_utf8_lossy(text), machine_type()) else {
        return TextContent::NotShown;
    };
    let shown = match entry.unknown {
        None => TextContent::Shown(entry.facts),
        Some(unknown) => TextContent::Unread(unknown.to_string()),
    };
    for program in entry.programs {
        let Program::File(path) = program else { return shown };
        match esp_fs.open(&path) {
            Ok(_) => return shown,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return TextContent::Unread(format!("{path}, which it names: {error}")),
        }
    }
    TextContent::NotShown
}

/// What an entry starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A file on the same partition, by its path below the root.
    File(String),
    /// Something that nobody looks for here.
    Elsewhere,
}

/// What an entry says that the boot loader shows if one of its programs is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParsedText {
    /// What it is sorted by.
    pub facts: TextFacts,
    /// What it may start: of each kind the last that it names. At least one.
    pub programs: Vec<Program>,
    /// What else it is sorted by, so that its place can't be told.
    pub unknown: Option<UnknownValue>,
}

/// The boot loader sorts an entry by something that is not kept here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its {key} is longer than {MAX_VALUE} characters, or no UTF-8")]
pub struct UnknownValue {
    /// Of which line.
    pub key: &'static str,
}

/// What UEFI calls this machine's processor in file names; `None` where no entry says that it is for another.
fn machine_type() -> Option<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Some("x64"),
        "aarch64" => Some("aa64"),
        _ => None,
    }
}

/// What an entry says. `None`: the boot loader does not show it, as it names nothing, or another processor than `machine`.
pub fn parse_text_entry(text: &str, machine: Option<&str>) -> Option<ParsedText> {
    let mut facts = TextFacts::default();
    let mut programs: BTreeMap<&str, Program> = BTreeMap::new();
    let mut unknown: BTreeSet<&'static str> = BTreeSet::new();
    for (key, value) in text.split(['\n', '\r']).filter_map(key_and_value) {
        // Of several lines the last one counts.
        let mut kept = |key| {
            // What stands for bytes that are no text may be any others.
            if value.chars().nth(MAX_VALUE).is_some() || value.contains('\u{fffd}') {
                unknown.insert(key);
                return None;
            }
            unknown.remove(key);
            Some(value.to_owned())
        };
        match key {
            "sort-key" => facts.sort_key = kept("sort-key"),
            "machine-id" => facts.machine_id = kept("machine-id"),
            "version" => facts.version = kept("version"),
            "linux" | "efi" | "uki" => {
                programs.insert(key, path_of(value).map_or(Program::Elsewhere, Program::File));
            }
            "uki-url" => {
                programs.insert(key, Program::Elsewhere);
            }
            "architecture" if machine.is_some_and(|own| !own.eq_ignore_ascii_case(value)) => return None,
            _ => {}
        }
    }
    let unknown = unknown.into_iter().next().map(|key| UnknownValue { key });
    (!programs.is_empty()).then(|| ParsedText { facts, programs: programs.into_values().collect(), unknown })
}

/// A line taken apart: blanks around it, comments, and quotes around the value are not part of it.
pub(super) fn key_and_value(line: &str) -> Option<(&str, &str)> {
    let blank = [' ', '\t'];
    let line = line.trim_matches(blank);
    if line.starts_with('#') {
        return None;
    }
    let (key, value) = line.split_once(blank)?;
    let value = value.trim_start_matches(blank);
    let quoted = value.strip_prefix('"').and_then(|inner| inner.strip_suffix('"'));
    Some((key, quoted.unwrap_or(value)))
}

/// A path below the root of the partition. `None` for one that leads anywhere else, or is no plain ASCII, which Linux and the boot
/// loader spell in different ways (`iocharset=`): nobody looks there, and the entry counts as shown.
fn path_of(value: &str) -> Option<String> {
    let parts: Vec<&str> = value.split(['/', '\\']).filter(|part| !part.is_empty()).collect();
    let printable = value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    let plain = printable && !parts.is_empty() && !parts.iter().any(|part| matches!(*part, "." | ".."));
    plain.then(|| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::MountedEsp;

    type Parsed = Option<(Option<String>, Option<String>, Option<String>, Vec<Program>)>;

    fn parsed(text: &str) -> Parsed {
        let shown = parse_text_entry(text, Some("x64"))?;
        assert_eq!(shown.unknown, None);
        Some((shown.facts.sort_key, shown.facts.machine_id, shown.facts.version, shown.programs))
    }

    fn file(path: &str) -> Program {
        Program::File(path.to_owned())
    }

    #[test]
    fn an_entry_is_read_as_the_boot_loader_reads_it() {
        let some = |text: &str| Some(text.to_owned());
        let whole = "# comment\ntitle Acme\r\n  sort-key\tacme-os  \nversion \"1.0\"\nmachine-id 2f\narchitecture X64\n\
                     linux \\EFI\\acme//linux\noptions roothash=1\n#version 2\n";
        assert_eq!(parsed(whole), Some((some("acme-os"), some("2f"), some("1.0"), vec![file("EFI/acme/linux")])));
        // The last one wins, of two kinds either may.
        let again = "efi /a\nversion 1\nversion 2\nefi /b\nlinux /c\n";
        assert_eq!(parsed(again), Some((None, None, some("2"), vec![file("b"), file("c")])));
        // From the network, or by a path that leads elsewhere.
        // Or by one that Linux may not find and the boot loader does.
        for elsewhere in
            ["uki-url https://example/x.efi", "linux /../x", "linux /caf\u{e9}/vmlinuz", "efi /caf\u{fffd}.efi"]
        {
            assert_eq!(parsed(elsewhere), Some((None, None, None, vec![Program::Elsewhere])), "{elsewhere}");
        }
    }

    #[test]
    fn what_names_no_program_or_is_for_another_machine_is_not_shown() {
        for text in ["", "title x\nsort-key y\n", "linux\n", "linux /a\narchitecture aa64\n"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_sorted_by_something_that_is_not_kept_is_not_judged() {
        for key in ["sort-key", "machine-id", "version"] {
            let entry = |lines: &str| parse_text_entry(&format!("linux /a\n{lines}\n"), Some("x64"));
            let unknown = |lines: &str| entry(lines).unwrap().unknown;
            assert_eq!(unknown(&format!("{key} {}", "x".repeat(512))), None, "{key}");
            for value in ["x".repeat(513), "caf\u{fffd}".to_owned()] {
                assert_eq!(unknown(&format!("{key} 1\n{key} {value}")), Some(UnknownValue { key }), "{key}");
                assert_eq!(entry(&format!("{key} {value}\narchitecture aa64")), None, "{key}");
                // The last line is what counts, and it says what is sorted by.
                assert_eq!(unknown(&format!("{key} {value}\n{key} 1")), None, "{key}");
            }
        }
    }

    /// One that is too long to be read, and more than are looked at.
    #[test]
    fn what_is_beyond_the_limits_was_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let entries = folder.path().join(TEXTS);
        std::fs::create_dir_all(&entries).unwrap();
        let esp = MountedEsp::known(folder.path().to_owned());
        let unread = || {
            let found = text_entries(&esp, BootPartition::Esp);
            found.iter().filter_map(TextEntry::unread).collect::<Vec<_>>()
        };
        let entry = "sort-key acme\nuki-url https://example/x.efi\n";
        std::fs::write(entries.join("whole.conf"), entry).unwrap();
        // One whose program is gone is not shown, whatever it would be sorted by.
        std::fs::write(entries.join("stale.conf"), format!("linux /gone\nversion {}\n", "1".repeat(513))).unwrap();
        assert_eq!(unread(), Vec::<String>::new());
        std::fs::write(entries.join("long.conf"), format!("{entry}#{}\n", "x".repeat(64 << 10))).unwrap();
        std::fs::write(entries.join("sorted.conf"), format!("{entry}version {}\n", "1".repeat(513))).unwrap();
        let found = unread();
        let named = |name: &str| found.iter().any(|why| why.starts_with(name));
        assert!(found.len() == 2 && named("long.conf on the ESP") && named("sorted.conf on the ESP"), "{found:?}");
        for number in 0..MAX_FILES {
            std::fs::write(entries.join(format!("{number}.conf")), entry).unwrap();
        }
        let found = unread();
        assert!(matches!(found.as_slice(), [only] if only.contains("more than 256 files")), "{found:?}");
    }
}
