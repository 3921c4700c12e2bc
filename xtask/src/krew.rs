//! `cargo xtask krew`: the archive and the manifest by which `kubectl krew` installs `bascule` as a plugin
//! (krew, "Writing Custom Plugins" and `krew.googlecontainertools.github.com/v1alpha2`).
//!
//! The manifest is made from what is shipped, with the hash of the very archive beside it: nothing in it is written by hand.

use crate::{shipped, workspace_root};
use anyhow::{Context as _, ensure};
use bascule_image::Sha256;
use clap::Args;
use serde_json::{Value, json};
use std::{fs, io::Write as _, path::PathBuf};
use url::Url;

/// What to pack, and where it will lie.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The folder on the web that will hold the archive, as krew is to fetch it.
    #[arg(long, value_name = "URL")]
    url: Url,
    /// Where the archive and the manifest are written.
    #[arg(long, value_name = "FOLDER", default_value = "target/krew")]
    folder: PathBuf,
}

/// The name in the archive; krew links it as `kubectl-bascule`.
const PROGRAM: &str = "bascule";

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.url.scheme() == "https", "krew fetches by https: give such a --url");
    let program = shipped::command_line()?;
    let program = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
    let license = fs::read(workspace_root().join("LICENSE")).context("reading LICENSE")?;
    let (name, archive) = archive(&program, &license)?;
    let manifest = manifest(&options.url, &name, &archive)?;
    fs::create_dir_all(&options.folder).with_context(|| format!("creating {}", options.folder.display()))?;
    for (name, content) in [(name.as_str(), &archive), ("bascule.yaml", &manifest.into_bytes())] {
        let path = options.folder.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

/// The same bytes for the same program: everything is root's, and nothing has a time.
fn archive(program: &[u8], license: &[u8]) -> anyhow::Result<(String, Vec<u8>)> {
    let gzip = flate2::GzBuilder::new().mtime(0).write(Vec::new(), flate2::Compression::best());
    let mut tar = tar::Builder::new(gzip);
    for (path, mode, content) in [(PROGRAM, 0o755, program), ("LICENSE", 0o644, license)] {
        let mut header = tar::Header::new_ustar();
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content).with_context(|| format!("packing {path}"))?;
    }
    let mut gzip = tar.into_inner().context("packing")?;
    gzip.flush().context("packing")?;
    let name = format!("bascule-{}-linux-{}.tar.gz", env!("CARGO_PKG_VERSION"), machine());
    Ok((name, gzip.finish().context("packing")?))
}

/// Go's name for the machine that is built for, as krew selects by it.
fn machine() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

fn manifest(folder: &Url, name: &str, archive: &[u8]) -> anyhow::Result<String> {
    let folder = format!("{}/", folder.as_str().trim_end_matches('/'));
    let uri = Url::parse(&folder).and_then(|folder| folder.join(name)).context("--url")?;
    let manifest: Value = json!({
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "bascule"},
        "spec": {
            "version": format!("v{}", env!("CARGO_PKG_VERSION")),
            "shortDescription": "See, explain, stop and reverse OS updates of nodes",
            "description": "What Bascule does with the operating systems of a cluster's nodes: what happens, why a node\n\
                waits, how to stop it and how to go back. Needs the ClusterRole bascule-on-call and the Role\n\
                bascule-live-report.\n",
            "platforms": [{
                "selector": {"matchLabels": {"os": "linux", "arch": machine()}},
                "uri": uri,
                "sha256": Sha256::of(archive).to_string(),
                "files": [{"from": PROGRAM, "to": "."}, {"from": "LICENSE", "to": "."}],
                "bin": PROGRAM,
            }],
        },
    });
    serde_saphyr::to_string(&manifest).context("writing YAML")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn the_manifest_names_what_lies_beside_it() {
        let (name, packed) = archive(b"program", b"license").unwrap();
        assert_eq!(archive(b"program", b"license").unwrap().1, packed, "the same bytes each time");
        let folder = Url::parse("https://downloads.example.com/bascule").unwrap();
        let text = manifest(&folder, &name, &packed).unwrap();
        let plugin: Value = serde_saphyr::from_str(&text).unwrap();
        let spec = &plugin["spec"];
        assert_eq!(spec["version"], format!("v{}", env!("CARGO_PKG_VERSION")));
        let platform = &spec["platforms"][0];
        assert_eq!(platform["uri"], format!("https://downloads.example.com/bascule/{name}"));
        assert_eq!(platform["sha256"], Sha256::of(&packed).to_string());
        // krew refuses longer ones.
        assert!(spec["shortDescription"].as_str().unwrap().len() <= 50);

        // Each file it names is in the archive, and what is to be run can be run.
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice()));
        let mut there = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let (path, mode) = (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            there.push((path, mode, content));
        }
        for file in platform["files"].as_array().unwrap() {
            assert!(there.iter().any(|one| file["from"] == one.0.as_str()), "{file}");
        }
        assert_eq!(there[0], (platform["bin"].as_str().unwrap().to_owned(), 0o755, b"program".to_vec()));
    }

    /// krew calls the program `kubectl-bascule`, and kubectl calls that `bascule`.
    #[test]
    fn the_roles_it_names_are_there() {
        let people = fs::read_to_string(workspace_root().join("manifests/roles/people.yaml")).unwrap();
        let operator = fs::read_to_string(workspace_root().join("manifests/operator/rbac.yaml")).unwrap();
        assert!(people.contains("name: bascule-on-call") && operator.contains("name: bascule-live-report"));
    }
}
