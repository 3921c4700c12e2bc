//! An image as a registry or an OCI layout holds it, unpacked for one container.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::ContainerError;

/// What an image says, and where its layers lie unpacked.
#[derive(Debug, Clone)]
pub struct Image {
    /// The unpacked layers.
    pub root: PathBuf,
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub arguments: Vec<String>,
    /// `Env`.
    pub environment: Vec<(String, String)>,
    /// `User`, `<uid>:<gid>`.
    pub user: String,
    /// `Labels`.
    pub labels: BTreeMap<String, String>,
}

impl Image {
    /// Unpacks the only image of an OCI layout (OCI Image Format Specification 1.1, "Image Layout") into a new folder.
    ///
    /// # Errors
    /// When the layout is not as the specification has it, or `tar` refuses a layer.
    pub fn unpack(layout: &Path, root: &Path) -> Result<Self, ContainerError> {
        let wrong = |problem: &str| ContainerError::Image { path: layout.to_owned(), problem: problem.to_owned() };
        let index = read(&layout.join("index.json"))?;
        let [manifest] = index["manifests"].as_array().map(Vec::as_slice).unwrap_or_default() else {
            return Err(wrong("its index does not name one manifest"));
        };
        let manifest = read(&blob(layout, manifest)?)?;
        let config = read(&blob(layout, &manifest["config"])?)?["config"].clone();
        std::fs::create_dir_all(root).map_err(|source| ContainerError::File { path: root.to_owned(), source })?;
        for layer in manifest["layers"].as_array().into_iter().flatten() {
            let layer = blob(layout, layer)?;
            let unpacked = Command::new("tar").arg("-xpf").arg(&layer).arg("-C").arg(root).status();
            let unpacked = unpacked.map_err(|source| ContainerError::File { path: layer.clone(), source })?;
            if !unpacked.success() {
                return Err(wrong("tar refuses a layer"));
            }
        }
        let texts = |key: &str| -> Vec<String> {
            config[key].as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
        };
        let pair = |text: String| text.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        Ok(Self {
            root: root.to_owned(),
            entrypoint: texts("Entrypoint"),
            arguments: texts("Cmd"),
            environment: texts("Env").into_iter().filter_map(pair).collect(),
            user: config["User"].as_str().unwrap_or_default().to_owned(),
            labels: serde_json::from_value(config["Labels"].clone()).unwrap_or_default(),
        })
    }
}

fn read(path: &Path) -> Result<Value, ContainerError> {
    let failed = |source| ContainerError::File { path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| failed(std::io::Error::other(error)))
}

fn blob(layout: &Path, descriptor: &Value) -> Result<PathBuf, ContainerError> {
    let digest = descriptor["digest"].as_str().and_then(|digest| digest.strip_prefix("sha256:"));
    let digest = digest.ok_or_else(|| ContainerError::Image {
        path: layout.to_owned(),
        problem: "a descriptor has no sha256 digest".to_owned(),
    })?;
    Ok(layout.join("blobs/sha256").join(digest))
}
