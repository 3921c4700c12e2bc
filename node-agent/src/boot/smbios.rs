//! Entries that come with the machine: systemd-boot makes them, from 258 on, of strings that whoever starts a virtual machine gives
//! it (systemd, src/boot/boot.c: `config_load_smbios_entries`; src/boot/smbios.c). They are entries of type #1 that lie on no partition.
//!
//! What only some boot loaders show counts as shown: those before 258, and those of confidential virtual machines, show none.

use super::text_entries::judged;
use crate::core::boot::name::EntryName;
use crate::core::boot::{TextContent, TextEntry};
use crate::host::Esp;

/// How such a string begins: in systemd's code, and in its manual (systemd-boot(7)).
const BEGINNINGS: [&[u8]; 2] = [b"io.systemd.boot.entries-extra:", b"io.systemd.boot-entries.extra:"];
/// Length of a structure's header (DMTF DSP0134, "Structure header format").
const HEADER: usize = 4;
/// The type "OEM Strings".
const OEM_STRINGS: u8 = 11;
/// The type of the last structure.
const END: u8 = 127;

/// The entries among the strings of a machine's SMBIOS structures. What they name on a partition is looked for on the ESP.
pub(super) fn machine_entries(structures: &[u8], esp_fs: &dyn Esp) -> Vec<TextEntry> {
    let entry = |string: &[u8]| {
        let rest = BEGINNINGS.into_iter().find_map(|beginning| string.strip_prefix(beginning))?;
        let equals = rest.iter().position(|byte| *byte == b'=')?;
        let (name, text) = rest.split_at(equals);
        let name = String::from_utf8_lossy(name).into_owned();
        let content = match EntryName::parse_text(&name)?.counters {
            None => judged(esp_fs, text.get(1..).unwrap_or_default()),
            // There is no file that the boot loader could rename.
            Some(_) => {
                TextContent::Unread("its name has a counter, and nobody knows what the boot loader makes of it".into())
            }
        };
        Some(TextEntry { partition: None, name, content })
    };
    oem_strings(structures).into_iter().filter_map(entry).collect()
}

/// The strings of type 11, up to the end or to what is cut off.
fn oem_strings(structures: &[u8]) -> Vec<&[u8]> {
    let (mut rest, mut found) = (structures, Vec::new());
    while let [kind, length, ..] = *rest
        && kind != END
        && let Some(mut strings) = rest.get(usize::from(length).max(HEADER)..)
    {
        let mut first = true;
        // Each ends with a NUL, all of them with an empty one; none at all are two NULs.
        loop {
            let Some(end) = strings.iter().position(|byte| *byte == 0) else { return found };
            let (string, after) = strings.split_at(end);
            strings = after.get(1..).unwrap_or_default();
            if string.is_empty() {
                strings = if first { strings.get(1..).unwrap_or_default() } else { strings };
                break;
            }
            if kind == OEM_STRINGS {
                found.push(string);
            }
            first = false;
        }
        rest = strings;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::MountedEsp;

    /// Structures of a machine: one without strings, one of another type, two of type 11, the end, and what is behind it.
    fn structures(own: &[u8]) -> Vec<u8> {
        let before =
            [&[0, 6, 0, 0, 9, 9, 0, 0][..], &[1, 4, 1, 0], b"io.systemd.boot.entries-extra:no.conf=uki /x\0\0"];
        let strings = [&[11, 5, 2, 0, 2][..], b"vendor\0", own, b"\0\0", &[11, 5, 3, 0, 1], b"last\0\0"];
        let end = [&[127, 4, 4, 0, 0, 0][..], &[11, 5, 5, 0, 1], b"behind\0\0"];
        [before.concat(), strings.concat(), end.concat()].concat()
    }

    #[test]
    fn strings_of_type_11_are_found_among_others_whatever_is_cut_off() {
        let whole = structures(b"own");
        assert_eq!(oem_strings(&whole), [&b"vendor"[..], b"own", b"last"]);
        for length in 0..whole.len() {
            let found = oem_strings(&whole[..length]);
            assert!([&b"vendor"[..], b"own", b"last"].starts_with(&found), "{length}: {found:?}");
        }
        for damaged in [&[11, 0, 0, 0][..], &[11, 255], &[11; 300], &[0; 300]] {
            oem_strings(damaged);
        }
    }

    #[test]
    fn a_string_is_an_entry_by_its_name_and_by_what_it_starts() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("EFI")).unwrap();
        let esp = MountedEsp::new(folder.path().to_owned());
        let entries = |own: &str| machine_entries(&structures(own.as_bytes()), &esp);
        for name in ["io.systemd.boot.entries-extra", "io.systemd.boot-entries.extra"] {
            let found =
                entries(&format!("{name}:rescue.conf=title Rescue\nsort-key zz\nuki-url https://example/x.efi"));
            let [TextEntry { partition: None, name, content: TextContent::Shown(facts) }] = found.as_slice() else {
                panic!("{found:?}")
            };
            assert_eq!((name.as_str(), facts.sort_key.as_deref()), ("rescue.conf", Some("zz")));
        }
        let begins = "io.systemd.boot.entries-extra:";
        for none in ["rescue.conf", "rescue=uki /x", "=uki /x"] {
            assert_eq!(entries(&format!("{begins}{none}")), [], "{none}");
        }
        let gone = entries(&format!("{begins}rescue.conf=uki /gone.efi"));
        assert!(matches!(gone.as_slice(), [TextEntry { content: TextContent::NotShown, .. }]), "{gone:?}");
        let counted = entries(&format!("{begins}rescue+0-1.conf=uki-url https://example/x.efi"));
        let why: Vec<_> = counted.iter().filter_map(TextEntry::unread).collect();
        assert!(
            matches!(why.as_slice(), [why] if why.starts_with("rescue+0-1.conf (it comes with the machine")),
            "{why:?}"
        );
    }
}
