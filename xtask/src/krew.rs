//! `cargo xtask krew`: the archive and the manifest by which `kubectl krew` installs `bascule` as a plugin
//! (krew, "Writing Custom Plugins" and `krew.googlecontainertools.github.com/v1alpha2`).
//!
//! The manifest is made from what is shipped, with the hash of the very archive beside it: nothing in it is written by hand. It is for
//! the kind of processor it was packed on; packed on another one into the same folder, it is for both.

use crate::{shipped, workspace_root};
use anyhow::{Context as _, ensure};
use bascule_image::Sha256;
use clap::Args;
use serde_json::{Value, json};
use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};
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
    let manifest = manifest(&options.url, &name, &archive, others(&options.folder)?)?;
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

/// The platforms of this version that were packed into a folder before, on machines of another kind. An archive that is not what
/// its manifest says is refused: krew would fetch it, and refuse it on somebody's machine.
fn others(folder: &Path) -> anyhow::Result<Vec<Value>> {
    let path = folder.join("bascule.yaml");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    let before: Value = serde_saphyr::from_str(&text).with_context(|| format!("{} is no manifest", path.display()))?;
    if before.pointer("/spec/version") != Some(&Value::from(format!("v{}", env!("CARGO_PKG_VERSION")))) {
        return Ok(Vec::new());
    }
    let mut others = Vec::new();
    for platform in before.pointer("/spec/platforms").and_then(Value::as_array).into_iter().flatten() {
        if platform.pointer("/selector/matchLabels/arch").is_some_and(|arch| *arch == machine()) {
            continue;
        }
        let name =
            platform.get("uri").and_then(Value::as_str).and_then(|uri| uri.rsplit('/').next()).unwrap_or_default();
        let archive = folder.join(name);
        let bytes =
            fs::read(&archive).with_context(|| format!("reading {}, which the manifest names", archive.display()))?;
        ensure!(
            platform.get("sha256").is_some_and(|told| *told == Sha256::of(&bytes).to_string()),
            "{} is not the archive that {} names: pack it again on its machine",
            archive.display(),
            path.display()
        );
        others.push(platform.clone());
    }
    Ok(others)
}

fn manifest(folder: &Url, name: &str, archive: &[u8], mut platforms: Vec<Value>) -> anyhow::Result<String> {
    let folder = format!("{}/", folder.as_str().trim_end_matches('/'));
    let uri = Url::parse(&folder).and_then(|folder| folder.join(name)).context("--url")?;
    platforms.push(json!({
        "selector": {"matchLabels": {"os": "linux", "arch": machine()}},
        "uri": uri,
        "sha256": Sha256::of(archive).to_string(),
        "files": [{"from": PROGRAM, "to": "."}, {"from": "LICENSE", "to": "."}],
        "bin": PROGRAM,
    }));
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
            "platforms": platforms,
        },
    });
    serde_saphyr::to_string(&manifest).context("writing YAML")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn what_was_packed_on_a_machine_of_another_kind_stays_in_the_manifest() {
        let (name, packed) = archive(b"program", b"license").unwrap();
        let url = Url::parse("https://downloads.example.com/bascule").unwrap();
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(others(folder.path()).unwrap(), Vec::<Value>::new(), "the first");
        fs::write(folder.path().join(&name), &packed).unwrap();
        let ours = manifest(&url, &name, &packed, Vec::new()).unwrap();
        fs::write(folder.path().join("bascule.yaml"), &ours).unwrap();
        assert_eq!(others(folder.path()).unwrap(), Vec::<Value>::new(), "packed anew");

        // As if the folder came from the other kind.
        let other = if machine() == "arm64" { "amd64" } else { "arm64" };
        fs::write(folder.path().join("bascule.yaml"), ours.replace(machine(), other)).unwrap();
        fs::write(folder.path().join(name.replace(machine(), other)), &packed).unwrap();
        let both = manifest(&url, &name, &packed, others(folder.path()).unwrap()).unwrap();
        let both: Value = serde_saphyr::from_str(&both).unwrap();
        let arch = |index: usize| both["spec"]["platforms"][index]["selector"]["matchLabels"]["arch"].clone();
        assert_eq!((arch(0), arch(1)), (Value::from(other), Value::from(machine())));

        fs::write(folder.path().join(name.replace(machine(), other)), b"cut").unwrap();
        assert!(others(folder.path()).unwrap_err().to_string().contains("pack it again"));
        let older = ours.replace(machine(), other).replace(env!("CARGO_PKG_VERSION"), "0.0.1");
        fs::write(folder.path().join("bascule.yaml"), older).unwrap();
        assert_eq!(others(folder.path()).unwrap(), Vec::<Value>::new(), "of another version");
    }

    #[test]
    fn the_manifest_names_what_lies_beside_it() {
        let (name, packed) = archive(b"program", b"license").unwrap();
        assert_eq!(archive(b"program", b"license").unwrap().1, packed, "the same bytes each time");
        let folder = Url::parse("https://downloads.example.com/bascule").unwrap();
        let text = manifest(&folder, &name, &packed, Vec::new()).unwrap();
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
