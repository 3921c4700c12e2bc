//! What a release consists of: the manifests of a build folder, and the files that a manifest names.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use bascule_image::release;
use bascule_image::release::manifest::{File as Described, Manifest};
use bascule_image::release::names::TargetPath;
use bascule_names::Digest;

use super::error::PublishError;

/// A file that a manifest names. A pack's whole digest is not in the manifest: a node judges it frame by frame.
pub(super) struct Named {
    pub(super) path: TargetPath,
    pub(super) size: u64,
    pub(super) digest: Option<Digest>,
}

pub(super) fn files_of(manifest: &Manifest) -> Vec<Named> {
    let described =
        |file: &Described| Named { path: file.path.clone(), size: file.size, digest: Some(file.digest.clone()) };
    let packs = manifest.packs.iter().map(|pack| Named { path: pack.path.clone(), size: pack.size, digest: None });
    let list = manifest.packages.iter().map(|list| described(&list.file));
    packs.chain([described(&manifest.uki)]).chain(list).collect()
}

/// The manifests of a build folder, in the order of their paths.
pub(super) fn read_manifests(build: &Path) -> Result<Vec<(TargetPath, Manifest)>, PublishError> {
    let list = |path: &Path| -> Result<Vec<String>, PublishError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(PublishError::file("read", path))? {
            let entry = entry.map_err(PublishError::file("read", path))?;
            names.extend(entry.file_name().to_str().map(str::to_owned));
        }
        names.sort();
        Ok(names)
    };
    let releases = build.join("releases");
    let mut found = Vec::new();
    for version in list(&releases)? {
        for architecture in list(&releases.join(&version))? {
            let text = format!("releases/{version}/{architecture}/release.json");
            let file = build.join(&text);
            if !file.is_file() {
                continue;
            }
            let path: TargetPath = text
                .parse()
                .map_err(|error| PublishError::Content { path: text.clone(), reason: format!("{error}") })?;
            let mut bytes = Vec::new();
            let limit = release::manifest::MAX_LENGTH as u64 + 1;
            File::open(&file)
                .and_then(|opened| opened.take(limit).read_to_end(&mut bytes))
                .map_err(PublishError::file("read", &file))?;
            let manifest =
                Manifest::parse(&bytes).map_err(|source| PublishError::Format { what: "manifest", source })?;
            if manifest.version.as_str() != version || manifest.architecture.as_str() != architecture {
                let reason = format!("it is for {} on {}", manifest.version, manifest.architecture);
                return Err(PublishError::Content { path: text, reason });
            }
            found.push((path, manifest));
        }
    }
    Ok(found)
}
