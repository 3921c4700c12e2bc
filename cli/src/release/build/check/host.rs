//! What a tree must have for a node that boots it to be taken back if it is no good, and updated again if it is.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use bascule_release::read_bounded;

use super::{Finding, NO_AGENT, NO_GUARD, NO_TRUST_ROOT};

/// Where the agent looks for its root of trust, in a root tree and in one that is mounted at `/usr`.
const TRUST_ROOT: [&str; 2] = ["usr/lib/bascule/root.json", "lib/bascule/root.json"];
/// Largest root of trust in bytes that an agent reads.
const MAX_TRUST_ROOT: u64 = 64 << 10;
/// The program that both units start.
const PROGRAM: [&str; 2] = ["usr/bin/bascule-agent", "bin/bascule-agent"];
/// Where units lie; what comes first wins (systemd.unit(5)).
const UNITS: [&str; 4] =
    ["etc/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
/// Nothing starts this one where nobody but the agent commits: a unit that it alone asks for is never started.
const BOOT_COMPLETE: &str = "boot-complete.target.";

/// Root of trust, guard and agent.
pub(super) fn host(root: &Path) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    findings.extend(trust_root(root)?);
    if !PROGRAM.into_iter().any(|path| find(root, path).is_some()) {
        findings.push(NO_GUARD.found("the tree has no usr/bin/bascule-agent, the program of guard and agent"));
    } else if !is_enabled(root, "bascule-guard.service")? {
        findings.push(NO_GUARD.found("no target of the tree starts bascule-guard.service"));
    }
    if !is_enabled(root, "bascule-agent.service")? {
        let text = "no target of the tree starts bascule-agent.service (--accept 16 where the agent is a pod)";
        findings.push(NO_AGENT.found(text));
    }
    Ok(findings)
}

fn trust_root(root: &Path) -> anyhow::Result<Option<Finding>> {
    let place = TRUST_ROOT.into_iter().find_map(|path| Some((path, find(root, path)?)));
    let Some((path, found)) = place else {
        return Ok(Some(NO_TRUST_ROOT.found("the tree has no usr/lib/bascule/root.json")));
    };
    // Where a link leads in the image can't be followed here.
    if found.is_symlink() {
        return Ok(None);
    }
    let readable = found.is_file() && found.len() <= MAX_TRUST_ROOT;
    let bytes = if readable { read_bounded(&root.join(path), MAX_TRUST_ROOT)? } else { Vec::new() };
    let document = serde_json::from_slice::<serde_json::Value>(&bytes).unwrap_or_default();
    let is_root = document.pointer("/signed/_type").is_some_and(|kind| kind == "root");
    Ok((!is_root).then(|| NO_TRUST_ROOT.found(format!("{path} in the tree is no TUF root"))))
}

/// Whether the tree has a unit that is not masked, and a target that starts it.
fn is_enabled(root: &Path, unit: &str) -> anyhow::Result<bool> {
    let file = UNITS.into_iter().map(|folder| format!("{folder}/{unit}")).find(|path| find(root, path).is_some());
    let is_masked = |path: String| fs::read_link(root.join(path)).is_ok_and(|leads| leads == Path::new("/dev/null"));
    if file.is_none_or(is_masked) {
        return Ok(false);
    }
    for folder in UNITS {
        if !find(root, folder).is_some_and(|found| found.is_dir()) {
            continue;
        }
        for entry in fs::read_dir(root.join(folder)).with_context(|| format!("can't read {folder} of the tree"))? {
            let name = entry.with_context(|| format!("can't read {folder} of the tree"))?.file_name();
            let Some(name) = name.to_str() else { continue };
            let asks = [".wants", ".requires"].iter().any(|ending| name.ends_with(ending));
            let starts = asks && !name.starts_with(BOOT_COMPLETE);
            if starts && find(root, &format!("{folder}/{name}/{unit}")).is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What lies at a path of the tree. A link on the way (of a merged /usr), which may lead out of the tree, is not followed.
fn find(root: &Path, path: &str) -> Option<fs::Metadata> {
    let is_real = |part: &Path| fs::symlink_metadata(root.join(part)).is_ok_and(|found| found.is_dir());
    let path = Path::new(path);
    if path.ancestors().skip(1).all(is_real) { fs::symlink_metadata(root.join(path)).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PRESET: &str = include_str!("../../../../../node-agent/units/50-bascule.preset");
    const UNIT_FILES: [(&str, &str); 2] = [
        ("bascule-guard.service", include_str!("../../../../../node-agent/units/bascule-guard.service")),
        ("bascule-agent.service", include_str!("../../../../../node-agent/units/bascule-agent.service")),
    ];

    fn write(root: &Path, path: &str, text: &str) {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), text).unwrap();
    }

    /// The links by which `systemctl enable` has a unit started, as its own file asks.
    fn enable(root: &Path, unit: &str, text: &str) {
        for (key, ending) in [("WantedBy=", "wants"), ("RequiredBy=", "requires")] {
            for target in text.lines().filter_map(|line| line.strip_prefix(key)).flat_map(str::split_whitespace) {
                let folder = root.join(format!("etc/systemd/system/{target}.{ending}"));
                fs::create_dir_all(&folder).unwrap();
                symlink(format!("/usr/lib/systemd/system/{unit}"), folder.join(unit)).unwrap();
            }
        }
    }

    /// A tree as docs/agent.md says ("Building it into an image").
    fn tree() -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        write(root, "usr/lib/bascule/root.json", r#"{"signed": {"_type": "root"}, "signatures": []}"#);
        write(root, "usr/bin/bascule-agent", "");
        for (unit, text) in UNIT_FILES {
            assert!(PRESET.contains(&format!("enable {unit}\n")), "{unit}");
            write(root, &format!("usr/lib/systemd/system/{unit}"), text);
            enable(root, unit, text);
        }
        tree
    }

    fn numbers(root: &Path) -> Vec<u16> {
        host(root).unwrap().iter().map(|finding| finding.check.number).collect()
    }

    #[test]
    fn a_tree_with_all_of_it_is_in_order_and_each_part_is_missed() {
        assert!(numbers(tree().path()).is_empty());
        for (missing, found) in [
            ("usr/lib/bascule/root.json", 14),
            ("usr/bin/bascule-agent", 15),
            ("usr/lib/systemd/system/bascule-guard.service", 15),
            ("etc/systemd/system/sysinit.target.wants/bascule-guard.service", 15),
            ("usr/lib/systemd/system/bascule-agent.service", 16),
            ("etc/systemd/system/multi-user.target.wants/bascule-agent.service", 16),
        ] {
            let tree = tree();
            fs::remove_file(tree.path().join(missing)).unwrap();
            assert_eq!(numbers(tree.path()), [found], "{missing}");
        }
        assert_eq!(numbers(tempfile::tempdir().unwrap().path()), [14, 15, 16]);
    }

    #[test]
    fn a_masked_unit_and_a_root_of_trust_that_is_none_are_as_good_as_missing() {
        let tree = tree();
        symlink("/dev/null", tree.path().join("etc/systemd/system/bascule-guard.service")).unwrap();
        for text in ["", "{}", r#"{"signed": {"_type": "targets"}}"#, &" ".repeat(1 << 17)] {
            write(tree.path(), "usr/lib/bascule/root.json", text);
            assert_eq!(numbers(tree.path()), [14, 15], "{} bytes", text.len());
        }
    }

    #[test]
    fn what_the_build_host_has_is_not_taken_for_the_trees() {
        let (whole, tree) = (tree(), tempfile::tempdir().unwrap());
        for folder in ["usr", "etc"] {
            symlink(whole.path().join(folder), tree.path().join(folder)).unwrap();
        }
        assert_eq!(numbers(tree.path()), [14, 15, 16]);
        // A tree that is mounted at /usr, with links of its own.
        let usr = whole.path().join("usr");
        fs::rename(
            whole.path().join("etc/systemd/system/sysinit.target.wants"),
            usr.join("lib/systemd/system/sysinit.target.wants"),
        )
        .unwrap();
        assert_eq!(numbers(&usr), [16]);
    }
}
