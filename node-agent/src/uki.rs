//! What a unified kernel image says about itself, as far as the agent decides by it.

use std::io;

use bascule_api::RootHash;
use bascule_image::io::ReadAt;
use bascule_image::uki::{ReadUkiError, Uki};

/// What a boot loader and the agent read from an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UkiFacts {
    /// What the boot loader sorts by first.
    pub sort_key: Option<String>,
    /// What it sorts by next.
    pub version: Option<String>,
    /// The root hash on its command line; none where that names none of ours, or is none that could be read as text.
    pub root_hash: Option<RootHash>,
}

/// Reads them. `None` if the bytes were read and are no image that a boot loader shows: none at all, or one whose os-release has no
/// name, which systemd-boot passes over.
///
/// # Errors
/// Reading failed, or ended at a limit that only this reader has: what the file boots is not known.
pub fn read(file: &dyn ReadAt) -> io::Result<Option<UkiFacts>> {
    match facts(file) {
        // What stands for bytes that are no text may be any others.
        Ok(Some(facts))
            if [&facts.sort_key, &facts.version].into_iter().flatten().any(|text| text.contains('\u{fffd}')) =>
        {
            Err(io::Error::other("what a boot loader sorts it by is no UTF-8"))
        }
        Ok(facts) => Ok(facts),
        Err(ReadUkiError::NotUki(error)) if error.is_own_limit() => Err(io::Error::other(error)),
        Err(ReadUkiError::NotUki(_)) => Ok(None),
        Err(ReadUkiError::Unreadable { source, .. }) => Err(source),
    }
}

fn facts(file: &dyn ReadAt) -> Result<Option<UkiFacts>, ReadUkiError> {
    let uki = Uki::open(file)?;
    let release = uki.shown_os_release()?;
    if release.title().is_none() {
        return Ok(None);
    }
    // The boot loader shows it whatever its command line says (systemd, src/boot/boot.c: `.osrel` decides).
    let root_hash = match uki.root_hash() {
        Ok(root_hash) => root_hash,
        Err(ReadUkiError::NotUki(error)) if !error.is_own_limit() => None,
        Err(error) => return Err(error),
    };
    Ok(Some(UkiFacts {
        sort_key: release.sort_key().map(str::to_owned),
        version: release.version().map(str::to_owned),
        root_hash,
    }))
}

#[cfg(test)]
mod tests {
    use bascule_sim::tiny::boot_image;

    use super::*;

    #[test]
    fn what_is_no_image_is_none() {
        assert_eq!(read(&b"MZ".to_vec()).unwrap(), None);
        assert_eq!(read(&Vec::new()).unwrap(), None);
    }

    /// What a boot loader shows, whatever bytes beside those that it sorts by.
    #[test]
    fn an_os_release_is_read_as_the_boot_loader_reads_it() {
        let found = |os_release: &[u8]| read(&boot_image(&[(".osrel", os_release), (".linux", b"no kernel")]));
        let facts = |version: &str| {
            let (sort_key, version) = (Some("acme".to_owned()), Some(version.to_owned()));
            Some(UkiFacts { sort_key, version, root_hash: None })
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
                Ok(found) => assert!(reads && found.is_some(), "{at}: {found:?}"),
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
