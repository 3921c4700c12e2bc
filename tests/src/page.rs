//! docs/install.md, followed: the blocks that it shows, and a folder as it describes it. What an admin types is what tests
//! run.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::control_plane::ControlPlane;
use crate::files::copy_folder;

/// The root of the tree.
#[must_use]
pub fn tree() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The page.
#[derive(Debug, Clone)]
pub struct Page(String);

impl Page {
    /// As it stands in the tree.
    #[must_use]
    pub fn read() -> Self {
        Self(std::fs::read_to_string(tree().join("docs/install.md")).unwrap())
    }

    /// Another page with such blocks, by its path in the tree.
    #[must_use]
    pub fn of(path: &str) -> Self {
        Self(std::fs::read_to_string(tree().join(path)).unwrap())
    }

    /// The page of an admin who has set what is theirs to set: each text is replaced by another wherever it stands.
    #[must_use]
    pub fn with(&self, replaced: &[(&str, &str)]) -> Self {
        let replace = |page: String, (from, to): &(&str, &str)| {
            assert!(page.contains(from), "{from} is not on the page");
            page.replace(from, to)
        };
        Self(replaced.iter().fold(self.0.clone(), replace))
    }

    /// The block between the marks of that name.
    #[must_use]
    pub fn block(&self, name: &str) -> String {
        let marked = self.0.split(&format!("<!-- {name}: begin")).nth(1);
        let marked = marked.and_then(|rest| rest.split("```").nth(1));
        let block = marked.and_then(|block| block.split_once('\n')).map(|(_, block)| block.to_owned());
        block.unwrap_or_else(|| panic!("no {name} on the page"))
    }

    /// Whether a row of one of its tables begins with this name.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        self.0.contains(&format!("\n| `{name}` |"))
    }

    /// A folder as the page describes it, with a copy of `manifests/`, which may be that of another commit.
    pub fn lay_out(&self, folder: &Path, manifests: &Path, trust_root: &str) {
        copy_folder(manifests, &folder.join("manifests")).unwrap();
        for (name, content) in [
            ("kustomization.yaml", self.block("overlay")),
            ("on-call.yaml", self.block("on-call")),
            ("workers.yaml", self.block("first-policy")),
            ("root.json", trust_root.to_owned()),
        ] {
            std::fs::write(folder.join(name), content).unwrap();
        }
    }

    /// An authority of one's own for the repository, as the page adds it to a folder that was laid out.
    pub fn add_authority(&self, folder: &Path, pem: &str) {
        add_components(folder, &["extra-ca"]);
        insert(folder, "configMapGenerator:\n", &self.block("extra-ca"));
        std::fs::write(folder.join("ca.pem"), pem).unwrap();
    }
}

fn git(arguments: &[&str]) -> std::io::Result<std::process::Output> {
    Command::new("git").current_dir(tree()).args(arguments).output()
}

/// The last commit with other `manifests/` than those of today. `None` where there is no history (a shallow clone, an archive).
#[must_use]
pub fn previous_commit() -> Option<String> {
    let commits = git(&["log", "--max-count=20", "--format=%H", "--", "manifests"]).map(|output| output.stdout);
    let commits = String::from_utf8_lossy(&commits.unwrap_or_default()).into_owned();
    let differs =
        |commit: &&str| git(&["diff", "--quiet", commit, "--", "manifests"]).unwrap().status.code() == Some(1);
    commits.lines().find(differs).map(str::to_owned)
}

/// `manifests/` of [`previous_commit`], unpacked below `folder`.
#[must_use]
pub fn previous_manifests(folder: &Path) -> Option<PathBuf> {
    let commit = previous_commit()?;
    let archive = folder.join("manifests.tar");
    let archive = archive.to_str().unwrap();
    let packed = git(&["archive", "--output", archive, &commit, "manifests"]).unwrap();
    assert!(packed.status.success(), "packing {commit}: {}", String::from_utf8_lossy(&packed.stderr));
    let unpacked = Command::new("tar").args(["-xf", archive, "-C"]).arg(folder).status().unwrap();
    assert!(unpacked.success());
    Some(folder.join("manifests"))
}

/// More components in a folder that was laid out.
pub fn add_components(folder: &Path, names: &[&str]) {
    let line = |name: &&str| format!("  - manifests/components/{name}\n");
    let more = names.iter().map(line).collect::<String>();
    insert(folder, "components:\n", &more);
}

/// One more resource in a folder that was laid out.
pub fn add_resource(folder: &Path, path: &str) {
    let file = folder.join("kustomization.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, after) = text.split_once("resources: [").unwrap();
    std::fs::write(file, format!("{before}resources: [{path}, {after}")).unwrap();
}

fn insert(folder: &Path, after: &str, lines: &str) {
    let file = folder.join("kustomization.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(after), "{text}");
    std::fs::write(file, text.replacen(after, &format!("{after}{lines}"), 1)).unwrap();
}

/// Installs into other namespaces than the page's: one line of each copied kustomization, as the page has it.
pub fn in_namespaces(folder: &Path, operator: &str, agent: &str) {
    for (part, before, after) in [("operator", "bascule-system", operator), ("agent", "bascule-agents", agent)] {
        let file = folder.join(format!("manifests/{part}/kustomization.yaml"));
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, text.replace(&format!("namespace: {before}"), &format!("namespace: {after}"))).unwrap();
    }
}

/// A command of the page, typed into a shell in that folder by the cluster's admin, who has `kubectl` and what lies in
/// `more` in the `PATH`.
#[must_use]
pub fn shell(control_plane: &ControlPlane, script: &str, folder: &Path, more: &[PathBuf]) -> Command {
    let kubectl = PathBuf::from(control_plane.kubectl().get_program());
    let kubectl = kubectl.parent().unwrap().to_owned();
    let usual = std::env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(kubectl).chain(more.iter().cloned()).chain(std::env::split_paths(&usual));
    let path: OsString = std::env::join_paths(places).unwrap();
    let mut shell = Command::new("sh");
    shell.args([OsStr::new("-eu"), OsStr::new("-c"), OsStr::new(script)]).current_dir(folder);
    shell.env("PATH", path).env("KUBECONFIG", control_plane.admin_kubeconfig()).env("NO_COLOR", "1");
    shell
}
