//! QEMU 10 or newer: older ones emulate an instruction wrongly that guests use for locks (host-facts.md).

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Error, Store, archive, tool};

/// The oldest major version that emulates well enough.
const OLDEST: u32 = 10;
const PROGRAM: &str = "qemu-system-x86_64";

/// Installs QEMU and the UEFI firmware where they are missing or too old, from the machine's own archive or, where that
/// one is too old, its backports. Package lists for the backports stay in the store: the machine's are not touched.
///
/// # Errors
/// [`Error`] when apt can't install it, or only an older version can be had.
pub fn ensure_qemu(store: &Store, say: &dyn Fn(&str)) -> Result<(), Error> {
    let firmware = Path::new("/usr/share/OVMF/OVMF_CODE_4M.fd").exists();
    if firmware && major().is_some_and(|major| major >= OLDEST) {
        return Ok(());
    }
    say("installing QEMU and UEFI firmware for the boot tests");
    let lists = store.folder().join("backports/lists");
    fs::create_dir_all(lists.join("partial")).map_err(Error::io(&lists))?;
    let sources = store.folder().join("backports/archive.sources");
    let etc = Path::new("/etc");
    let text = archive::backports(etc)?;
    let own = archive::own_sources(etc)?;
    fs::write(&sources, format!("{own}{text}")).map_err(Error::io(&sources))?;
    let suite = format!("{}-backports", archive::own_codename(etc)?);
    let apt = |step: &str, arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .arg(format!("-oDir::Etc::sourcelist={}", sources.display()))
            .arg("-oDir::Etc::sourceparts=-")
            .arg(format!("-oDir::State::lists={}", lists.display()))
            .args(["-q", "-oAcquire::Languages=none", "-oDPkg::Lock::Timeout=300"])
            .args(arguments);
        tool::run(step, &mut command).map(drop)
    };
    apt("reading the package lists", &["update"])?;
    let install = ["install", "-y", "--no-install-recommends", "-t", &suite, "qemu-system-x86", "qemu-utils", "ovmf"];
    apt("installing QEMU", &install)?;
    match major() {
        Some(major) if major >= OLDEST => Ok(()),
        found => Err(Error::Unexpected {
            what: format!("QEMU {OLDEST} or newer"),
            detail: format!("version {} is what this machine's archive and its backports have", found.unwrap_or(0)),
        }),
    }
}

fn major() -> Option<u32> {
    let output = Command::new(PROGRAM).arg("--version").output().ok()?;
    parse_major(&String::from_utf8_lossy(&output.stdout))
}

fn parse_major(said: &str) -> Option<u32> {
    said.split_once("version ")?.1.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_qemu_says() {
        assert_eq!(parse_major("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"), Some(10));
        assert_eq!(parse_major("nothing"), None);
    }
}
