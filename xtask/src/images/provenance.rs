//! From what an image was built: an in-toto statement with SLSA provenance (slsa.dev/spec/v1.0/provenance). It is not
//! signed here; whoever publishes the images signs it with keys of their own.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use bascule_image::Sha256;
use serde_json::json;

use super::dependencies::Dependencies;

/// The tree that is built.
#[derive(Debug)]
pub(crate) struct Source {
    /// The commit, with `-dirty` where the tree has changes that are in no commit. `None`: no git repository.
    pub(crate) revision: Option<String>,
    /// When the commit was made (RFC 3339, UTC).
    pub(crate) date: Option<String>,
    /// The digest of Cargo.lock.
    lock: Sha256,
    compiler: String,
}

impl Source {
    /// Looks at a checkout.
    ///
    /// # Errors
    /// When Cargo.lock can't be read, or there is no compiler.
    pub(crate) fn of(workspace: &Path) -> anyhow::Result<Self> {
        let git = |arguments: &[&str]| -> Option<String> {
            let output = Command::new("git").arg("-C").arg(workspace).args(arguments).env("TZ", "UTC").output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let changed =
            git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
        let revision =
            git(&["rev-parse", "HEAD"]).map(|commit| if changed { format!("{commit}-dirty") } else { commit });
        let date = git(&["log", "-1", "--format=%cd", "--date=format-local:%Y-%m-%dT%H:%M:%SZ"]);
        let lock = std::fs::read(workspace.join("Cargo.lock")).context("reading Cargo.lock")?;
        let compiler =
            Command::new("rustc").arg("--version").current_dir(workspace).output().context("starting rustc")?;
        let compiler = String::from_utf8_lossy(&compiler.stdout).trim().to_owned();
        Ok(Self { revision, date, lock: Sha256::of(&lock), compiler })
    }
}

/// The statement about one image.
///
/// # Errors
/// Never in practice; JSON is written.
pub(crate) fn statement(
    (image, target): (&str, &str),
    digest: &str,
    source: &Source,
    dependencies: &Dependencies,
) -> anyhow::Result<Vec<u8>> {
    let crates = dependencies.linked().map(|(name, version)| json!({ "uri": format!("pkg:cargo/{name}@{version}") }));
    let lock = json!({ "uri": "Cargo.lock", "digest": { "sha256": source.lock.to_string() } });
    let tree = source.revision.as_ref().map(|revision| json!({ "uri": "git", "digest": { "gitCommit": revision } }));
    let materials: Vec<_> = tree.into_iter().chain([lock]).chain(crates).collect();
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{ "name": image, "digest": { "sha256": digest.trim_start_matches("sha256:") } }],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "https://bascule.dev/build/xtask-images/v1",
                "externalParameters": { "image": image, "target": target },
                "internalParameters": { "compiler": source.compiler },
                "resolvedDependencies": materials,
            },
            "runDetails": { "builder": { "id": "https://bascule.dev/build/xtask" } },
        },
    });
    let mut text = serde_json::to_vec_pretty(&statement)?;
    text.push(b'\n');
    Ok(text)
}
