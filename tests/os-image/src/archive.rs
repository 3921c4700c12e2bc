//! Where packages come from: the machine's own apt sources, turned to the suite that is wanted. No host name is
//! written down anywhere; a machine behind a mirror builds from that mirror.

use std::fs;
use std::path::Path;

use crate::{Archive, Distribution, Error};

/// One source of packages, as apt's deb822 format has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    uris: String,
    suites: Vec<String>,
    components: String,
    signed_by: Option<String>,
}

/// The sources of this machine, turned to `distribution`, as apt's deb822 format has them.
///
/// # Errors
/// [`Error::NoArchive`] when apt knows no Debian archive of the machine's own release.
pub fn sources_here(distribution: Distribution, archive: Archive) -> Result<String, Error> {
    sources(Path::new("/etc"), distribution, archive)
}

/// Writes a deb822 sources text for `distribution` from the apt configuration below `etc` (usually `/etc`).
///
/// # Errors
/// [`Error::NoArchive`] when apt knows no Debian archive of the machine's own release.
pub(crate) fn sources(etc: &Path, distribution: Distribution, archive: Archive) -> Result<String, Error> {
    let suites: &[&str] = match archive {
        Archive::Release => &[""],
        Archive::Updates => &["", "-updates", "-security"],
    };
    turned(etc, distribution.codename(), suites)
}

/// The machine's own sources, with `<codename>-backports` in place of its suite.
pub(crate) fn backports(etc: &Path) -> Result<String, Error> {
    turned(etc, &own_codename(etc)?, &["-backports"])
}

/// The machine's own sources as they are, without those that are not Debian's.
pub(crate) fn own_sources(etc: &Path) -> Result<String, Error> {
    turned(etc, &own_codename(etc)?, &["", "-updates", "-security"])
}

/// The machine's release by its code name.
pub(crate) fn own_codename(etc: &Path) -> Result<String, Error> {
    let path = etc.join("os-release");
    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(line.map(|name| name.trim_matches('"').to_owned()).unwrap_or_default())
}

fn turned(etc: &Path, codename: &str, suffixes: &[&str]) -> Result<String, Error> {
    let own = own_codename(etc)?;
    let mut text = String::new();
    for source in read_sources(etc)? {
        // A security archive is a place of its own; the others hold every suite but that one.
        let security = source.suites.iter().any(|suite| *suite == format!("{own}-security"));
        let ordinary = source.suites.contains(&own);
        let wanted: Vec<String> = suffixes
            .iter()
            .filter(|suffix| if **suffix == "-security" { security } else { ordinary })
            .map(|suffix| format!("{codename}{suffix}"))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        text.push_str(&format!(
            "Types: deb\nURIs: {}\nSuites: {}\nComponents: {}\n",
            source.uris,
            wanted.join(" "),
            source.components
        ));
        if let Some(key) = &source.signed_by {
            text.push_str(&format!("Signed-By: {key}\n"));
        }
        text.push('\n');
    }
    if text.is_empty() { Err(Error::NoArchive { codename: own }) } else { Ok(text) }
}

fn read_sources(etc: &Path) -> Result<Vec<Source>, Error> {
    let mut found = Vec::new();
    let list = etc.join("apt/sources.list");
    if let Ok(text) = fs::read_to_string(&list) {
        found.extend(parse_list(&text));
    }
    let folder = etc.join("apt/sources.list.d");
    let mut paths: Vec<_> = match fs::read_dir(&folder) {
        Ok(entries) => entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect(),
        Err(_) => Vec::new(),
    };
    paths.sort();
    for path in paths {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if !matches!(extension, "sources" | "list") {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
        found.extend(if extension == "sources" { parse_deb822(&text) } else { parse_list(&text) });
    }
    Ok(found)
}

fn parse_deb822(text: &str) -> Vec<Source> {
    let without_comments: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let stanzas = without_comments.split(|line| line.trim().is_empty());
    stanzas
        .filter_map(|lines| {
            let field = |name: &str| {
                lines.iter().find_map(|line| {
                    let (key, value) = line.split_once(':')?;
                    key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
                })
            };
            let types = field("Types")?;
            let enabled = field("Enabled").is_none_or(|value| value != "no");
            (enabled && types.split_whitespace().any(|kind| kind == "deb")).then_some(())?;
            Some(Source {
                uris: field("URIs")?,
                suites: field("Suites")?
                    .split_whitespace()
                    .map(|suite| suite.trim_end_matches('/').to_owned())
                    .collect(),
                components: field("Components")?,
                signed_by: field("Signed-By").filter(|key| !key.is_empty()),
            })
        })
        .collect()
}

fn parse_list(text: &str) -> Vec<Source> {
    text.lines()
        .filter_map(|line| {
            let mut rest = line.trim().strip_prefix("deb ")?.trim_start();
            let mut signed_by = None;
            if let Some(bracketed) = rest.strip_prefix('[') {
                let (options, after) = bracketed.split_once(']')?;
                signed_by =
                    options.split_whitespace().find_map(|option| option.strip_prefix("signed-by=")).map(str::to_owned);
                rest = after.trim_start();
            }
            let mut words = rest.split_whitespace();
            let uris = words.next()?.to_owned();
            let suites = vec![words.next()?.trim_end_matches('/').to_owned()];
            let components = words.take_while(|word| !word.starts_with('#')).collect::<Vec<_>>().join(" ");
            Some(Source { uris, suites, components, signed_by })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn the_machines_own_mirror_is_turned_to_the_wanted_suite() {
        let folder = etc(&[
            ("os-release", "ID=debian\nVERSION_CODENAME=bookworm\n"),
            (
                "apt/sources.list.d/debian.sources",
                "Types: deb\n# a comment\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
                 Components: main\nSigned-By: /key.gpg\n\nTypes: deb\nURIs: http://mirror.example/security\n\
                 Suites: bookworm-security\nComponents: main\nSigned-By: /key.gpg\n",
            ),
            ("apt/sources.list.d/other.list", "deb https://other.example/apt stable main\n"),
        ]);
        let release = sources(folder.path(), Distribution::Trixie, Archive::Release).unwrap();
        assert_eq!(
            release,
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: trixie\nComponents: main\nSigned-By: /key.gpg\n\n"
        );
        let updates = sources(folder.path(), Distribution::Trixie, Archive::Updates).unwrap();
        assert!(updates.contains("Suites: trixie trixie-updates\n"), "{updates}");
        assert!(updates.contains("URIs: http://mirror.example/security\nSuites: trixie-security\n"), "{updates}");
        assert!(!updates.contains("other.example"), "{updates}");
        assert!(backports(folder.path()).unwrap().contains("Suites: bookworm-backports\n"));
    }

    #[test]
    fn one_line_sources_work_too() {
        let folder = etc(&[
            ("os-release", "VERSION_CODENAME=\"trixie\"\n"),
            (
                "apt/sources.list",
                "# old style\ndeb [arch=amd64 signed-by=/k.pgp] http://m.example/debian trixie main contrib # x\n",
            ),
        ]);
        let text = sources(folder.path(), Distribution::Bookworm, Archive::Release).unwrap();
        assert_eq!(
            text,
            "Types: deb\nURIs: http://m.example/debian\nSuites: bookworm\nComponents: main contrib\nSigned-By: /k.pgp\n\n"
        );
    }

    #[test]
    fn a_machine_without_debian_sources_is_told_what_to_add() {
        let folder = etc(&[("os-release", "VERSION_CODENAME=noble\n")]);
        let error = sources(folder.path(), Distribution::Trixie, Archive::Release).unwrap_err();
        assert_eq!(error.category(), "no-archive");
    }
}
