//! What a boot image says about itself, as far as the agent decides by it: what it boots, and what the boot loader makes of it.

use std::io;

use bascule_image::io::ReadAt;
use bascule_image::uki::{self, ReadUkiError, ShownEntry, Uki};

use crate::core::boot::{FileContent, ImageFacts, ShownFacts};

/// Reads a file among the boot images. The boot loader passes over what is no image, and over one whose os-release has no name; it shows
/// one that is cut short behind its os-release, and each profile of one with several.
///
/// # Errors
/// Reading failed, or ended at a limit that only this reader has: what the file boots is not known.
pub fn read(file: &dyn ReadAt) -> io::Result<FileContent> {
    let content = content(file).map_err(|error| match error {
        ReadUkiError::NotUki(error) => io::Error::other(error),
        ReadUkiError::Unreadable { source, .. } => source,
    })?;
    let mut sorted_by = match &content {
        FileContent::Image(image) => vec![&image.sort_key, &image.version],
        _ => Vec::new(),
    };
    let profiles = match &content {
        FileContent::Image(image) => image.profiles.as_slice(),
        FileContent::ShownOnly(shown) => shown.as_slice(),
        _ => &[],
    };
    sorted_by.extend(profiles.iter().flat_map(|shown| [&shown.sort_key, &shown.version]));
    // What stands for bytes that are no text may be any others.
    if sorted_by.into_iter().flatten().any(|text| text.contains('\u{fffd}')) {
        return Err(io::Error::other("what a boot loader sorts it by is no UTF-8"));
    }
    Ok(content)
}

fn content(file: &dyn ReadAt) -> Result<FileContent, ReadUkiError> {
    match facts(file) {
        Ok(Some(facts)) => return Ok(FileContent::Image(facts)),
        Ok(None) => {}
        Err(ReadUkiError::NotUki(error)) if !error.is_own_limit() => {}
        Err(error) => return Err(error),
    }
    let shown: Vec<_> = uki::shown(file)?.into_iter().map(shown_facts).collect();
    Ok(if shown.is_empty() { FileContent::NotAnImage } else { FileContent::ShownOnly(shown) })
}

fn shown_facts(entry: ShownEntry) -> ShownFacts {
    let ShownEntry { profile, profile_id, os_release } = entry;
    let own = |text: Option<&str>| text.map(str::to_owned);
    let (sort_key, version) = (own(os_release.sort_key()), own(os_release.version()));
    ShownFacts { profile, profile_id, sort_key, version }
}

/// What a whole image says.
fn facts(file: &dyn ReadAt) -> Result<Option<ImageFacts>, ReadUkiError> {
    let image = Uki::open(file)?;
    let release = image.shown_os_release()?;
    if release.title().is_none() {
        return Ok(None);
    }
    // The boot loader shows it whatever its command line says (systemd, src/boot/boot.c: `.osrel` decides).
    let root_hash = match image.root_hash() {
        Ok(root_hash) => root_hash,
        Err(ReadUkiError::NotUki(error)) if !error.is_own_limit() => None,
        Err(error) => return Err(error),
    };
    let profiles = match image.profiles() {
        1 => Vec::new(),
        _ => uki::shown(file)?.into_iter().filter(|entry| entry.profile > 0).map(shown_facts).collect(),
    };
    Ok(Some(ImageFacts {
        sort_key: release.sort_key().map(str::to_owned),
        version: release.version().map(str::to_owned),
        root_hash,
        profiles,
    }))
}

#[cfg(test)]
mod tests {
    use bascule_sim::tiny::boot_image;

    use super::*;

    #[test]
    fn what_is_no_image_is_none() {
        assert_eq!(read(&b"MZ".to_vec()).unwrap(), FileContent::NotAnImage);
        assert_eq!(read(&Vec::new()).unwrap(), FileContent::NotAnImage);
    }

    /// What a boot loader shows, whatever bytes beside those that it sorts by.
    #[test]
    fn an_os_release_is_read_as_the_boot_loader_reads_it() {
        let found = |os_release: &[u8]| read(&boot_image(&[(".osrel", os_release), (".linux", b"no kernel")]));
        let facts = |version: &str| {
            let (sort_key, version) = (Some("acme".to_owned()), Some(version.to_owned()));
            FileContent::Image(ImageFacts { sort_key, version, ..ImageFacts::default() })
        };
        for shown in [
            &b"ID=acme\r\nVERSION_ID=1\r\n"[..],
            b"ID=acme\rVERSION_ID=1\r",
            b"\tID=acme\n VERSION_ID=1 \n",
            b"ANSI_COLOR=\x1b[1m\nID=acme\nVERSION_ID=1\n",
            b"ID=acme\nNAME=caf\xe9\nVERSION_ID=1\n",
            b"ID=acme\nVERSION_ID=1\n\0\nVERSION_ID=2\n",
        ] {
            assert_eq!(found(shown).unwrap(), facts("1"), "{}", String::from_utf8_lossy(shown));
        }
        for unknown in [&b"ID=caf\xe9\nVERSION_ID=1\n"[..], b"ID=acme\nVERSION_ID=\xff\n"] {
            let error = found(unknown).unwrap_err();
            assert!(error.to_string().contains("no UTF-8"), "{error}");
        }
    }

    /// The boot loader looks no further than the os-release.
    #[test]
    fn what_is_cut_short_is_shown_and_is_no_image() {
        let root_hash = format!("roothash={}", "ab".repeat(32));
        let os_release = b"IMAGE_ID=acme\nIMAGE_VERSION=1.2\n";
        let whole = boot_image(&[(".osrel", os_release), (".cmdline", root_hash.as_bytes()), (".linux", &[7; 900])]);
        let content = |length: usize| read(&whole[..length].to_vec()).unwrap();
        assert!(content(whole.len()).root_hash().is_some());
        let (sort_key, version) = (Some("acme".to_owned()), Some("1.2".to_owned()));
        let shown = FileContent::ShownOnly(vec![ShownFacts { sort_key, version, ..ShownFacts::default() }]);
        for length in [whole.len() - 1, whole.len() - 1000, 1024, 512 + os_release.len()] {
            assert_eq!(content(length), shown, "{length}");
        }
        for length in [512, 400, 64, 0] {
            assert_eq!(content(length), FileContent::NotAnImage, "{length}");
        }
        // And it is sorted by what there is.
        let error =
            read(&boot_image(&[(".osrel", b"ID=caf\xe9\n"), (".linux", &[7; 900])])[..600].to_vec()).unwrap_err();
        assert!(error.to_string().contains("no UTF-8"), "{error}");
    }

    #[test]
    fn each_profile_is_shown_and_the_first_is_what_boots() {
        let root_hash = |pair: &str| format!("roothash={}", pair.repeat(32));
        let (main, debug) = (root_hash("ab"), root_hash("cd"));
        let os_release = (".osrel", &b"IMAGE_ID=acme\nIMAGE_VERSION=1.2\n"[..]);
        let sections: [(&str, &[u8]); 6] = [
            os_release,
            (".linux", b"no kernel"),
            (".profile", b"TITLE=Main\n"),
            (".cmdline", main.as_bytes()),
            (".profile", b"ID=debug\n"),
            (".cmdline", debug.as_bytes()),
        ];
        let found = read(&boot_image(&sections)).unwrap();
        assert_eq!(found.root_hash().unwrap().as_str(), "ab".repeat(32));
        let (sort_key, version) = (Some("acme".to_owned()), Some("1.2".to_owned()));
        let further = ShownFacts { profile: 1, profile_id: Some("debug".to_owned()), sort_key, version };
        assert_eq!(found.image().unwrap().profiles, std::slice::from_ref(&further));
        // The first has no name, and the other an os-release of its own.
        let (first, second) = (sections.get(1..5).unwrap(), sections.get(5).unwrap());
        let found = read(&boot_image(&[first, &[*second, os_release][..]].concat())).unwrap();
        assert_eq!(found, FileContent::ShownOnly(vec![further]));
    }

    /// Each of these a boot loader may start, and it may be what runs.
    #[test]
    fn what_is_beyond_the_limits_of_this_reader_may_boot_anything() {
        let (osrel, linux) = ((".osrel", &b"ID=acme\n"[..]), (".linux", &b"no kernel"[..]));
        let long_release = format!("ID=acme\n#{}\n", "x".repeat(64 << 10));
        let long_line = format!("quiet {}", "x".repeat(2048));
        let (quiet, many) = ((".cmdline", &b"quiet"[..]), vec![(".other", &b""[..]); 95]);
        for (sections, words) in [
            (vec![(".osrel", long_release.as_bytes()), linux], "os-release has"),
            (vec![osrel, (".cmdline", long_line.as_bytes()), linux], "command line has"),
            (vec![osrel, osrel, linux], "2 sections .osrel"),
            (vec![osrel, quiet, quiet, linux], "2 sections .cmdline"),
            ([vec![osrel, linux], many].concat(), "97 sections"),
        ] {
            let error = read(&boot_image(&sections)).unwrap_err();
            assert!(error.to_string().contains(words), "{words}: {error}");
        }
        // Headers that begin where hardly any do, and end where none do.
        let mut far = boot_image(&[osrel, linux]);
        let place = usize::from(u16::from_le_bytes([far[0x3c], far[0x3d]]));
        let headers = far[place..].to_vec();
        for (at, reads) in [(8 << 10, true), (64 << 10, false)] {
            far.resize(at, 0);
            far[0x3c..0x40].copy_from_slice(&u32::try_from(at).unwrap().to_le_bytes());
            far.extend(&headers);
            far.resize(at + (256 << 10), 0);
            match read(&far) {
                Ok(found) => assert!(reads && found.image().is_some(), "{at}: {found:?}"),
                Err(error) => assert!(!reads && error.to_string().contains("PE header"), "{at}: {error}"),
            }
        }
        // A file that is as long as no boot image may be is not even opened.
        struct Endless;
        impl ReadAt for Endless {
            fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
                panic!("nothing is read of it");
            }

            fn size(&self) -> io::Result<u64> {
                Ok(u64::from(u32::MAX))
            }
        }
        assert!(read(&Endless).is_err());
    }
}
