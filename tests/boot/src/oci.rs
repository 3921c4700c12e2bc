//! Container images from scratch: one static program and nothing else, as an archive that `ctr images import` reads. No
//! registry and no builder is needed for that: an image is a few JSON documents around a tar file (OCI Image Format
//! Specification 1.1, "Image Layout").

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use bascule_image::Sha256;
use serde::Serialize;
use serde_json::{Value, json};

/// Where the program is, in each image.
const PROGRAM: &str = "container";

/// One image of an archive.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    /// Full name with a tag.
    pub name: &'a str,
    /// What the program is called with, unless a pod says otherwise.
    pub arguments: &'a [&'a str],
}

/// What one document says about another (OCI Image Format Specification 1.1, "Content Descriptors").
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: String,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Value>,
}

/// An archive with all `images`, each made of `program` alone. The same input gives the same bytes.
///
/// # Errors
/// When a file can't be written or `tar` fails.
pub fn archive(program: &[u8], images: &[Image<'_>]) -> anyhow::Result<Vec<u8>> {
    let folder = tempfile::tempdir().context("making a folder for container images")?;
    let root = folder.path().join("root");
    let layout = folder.path().join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&root)?;
    fs::create_dir_all(&blobs)?;
    let path = root.join(PROGRAM);
    fs::write(&path, program)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;

    let keep = |media_type: &'static str, content: &[u8]| -> anyhow::Result<Descriptor> {
        let hash = Sha256::of(content).to_string();
        fs::write(blobs.join(&hash), content)?;
        let digest = format!("sha256:{hash}");
        Ok(Descriptor { media_type, digest, size: content.len(), annotations: None })
    };
    let layer = keep("application/vnd.oci.image.layer.v1.tar", &packed(&root)?)?;
    let mut manifests = Vec::new();
    for image in images {
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Entrypoint": [format!("/{PROGRAM}")], "Cmd": image.arguments },
            "rootfs": { "type": "layers", "diff_ids": [&layer.digest] },
        });
        let config = keep("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes())?;
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [&layer] });
        let manifest = keep(media_type, manifest.to_string().as_bytes())?;
        // The name as containerd keeps it: the specification's own annotation has room for a tag only.
        let annotations = Some(json!({ "io.containerd.image.name": image.name }));
        manifests.push(Descriptor { annotations, ..manifest });
    }
    let index =
        json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests });
    fs::write(layout.join("index.json"), index.to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    packed(&layout)
}

/// A tar file of what is in `folder`, which depends on nothing but the files' content and permissions.
fn packed(folder: &Path) -> anyhow::Result<Vec<u8>> {
    let output = Command::new("tar")
        .args(["--create", "--format=ustar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"])
        .arg("--directory")
        .arg(folder)
        .arg(".")
        .output()
        .context("starting tar")?;
    ensure!(output.status.success(), "tar failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_program_gives_the_same_archive_with_every_image_in_it() {
        let images = [
            Image { name: "example.invalid/a:1", arguments: &[] },
            Image { name: "example.invalid/b:1", arguments: &["x"] },
        ];
        let made = archive(b"program", &images).unwrap();
        assert_eq!(made, archive(b"program", &images).unwrap());
        assert_ne!(made, archive(b"another", &images).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let tar = folder.path().join("archive");
        fs::write(&tar, made).unwrap();
        let unpacked = Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(folder.path()).status().unwrap();
        assert!(unpacked.success());
        let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let index = read(&folder.path().join("index.json"));
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let path = folder.path().join("blobs/sha256").join(digest);
            let content = fs::read(&path).unwrap();
            assert_eq!(Sha256::of(&content).to_string(), digest);
            assert_eq!(content.len() as u64, descriptor["size"].as_u64().unwrap());
            path
        };
        for (image, manifest) in images.iter().zip(index["manifests"].as_array().unwrap()) {
            assert_eq!(manifest["annotations"]["io.containerd.image.name"], image.name);
            let manifest = read(&blob(manifest));
            let layer = &manifest["layers"][0];
            let config = read(&blob(&manifest["config"]));
            assert_eq!(config["rootfs"]["diff_ids"][0], layer["digest"]);
            assert_eq!(config["config"]["Cmd"], json!(image.arguments));
            let listed = Command::new("tar").arg("-tvf").arg(blob(layer)).output().unwrap();
            let listed = String::from_utf8(listed.stdout).unwrap();
            assert!(listed.contains("-rwxr-xr-x 0/0") && listed.contains("./container"), "{listed}");
        }
    }
}
