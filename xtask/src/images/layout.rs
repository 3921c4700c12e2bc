//! Writes an OCI layout whose bytes follow from what is in it and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use bascule_image::Sha256;
use bascule_os_image::shipped::Architecture;
use oci_spec::image::{
    ANNOTATION_REF_NAME, Arch, ConfigBuilder, Descriptor, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder, SCHEMA_VERSION,
    Sha256Digest,
};
use serde::Serialize;
use serde_json::Value;

/// One file of an image.
#[derive(Debug)]
pub(crate) struct File {
    /// Its path, without the first slash.
    pub(crate) path: String,
    /// Its permissions.
    pub(crate) mode: u32,
    /// What is in it.
    pub(crate) content: Vec<u8>,
}

/// An image of one layer.
#[derive(Debug)]
pub(crate) struct Image {
    /// Its files, in their order.
    pub(crate) files: Vec<File>,
    /// What its program runs on.
    pub(crate) architecture: Architecture,
    /// The program.
    pub(crate) entrypoint: String,
    /// `<uid>:<gid>`.
    pub(crate) user: &'static str,
    /// What it says of itself.
    pub(crate) labels: BTreeMap<String, String>,
    /// When its source was made (RFC 3339).
    pub(crate) created: Option<String>,
}

/// The digests of what was written.
#[derive(Debug)]
pub(crate) struct Written {
    /// What the tag names: the manifest of the only image, or the index of several.
    pub(crate) tagged: String,
    /// The manifest of each image.
    pub(crate) manifests: Vec<String>,
}

/// Writes a layout into a folder that is emptied first: one image, or the same for several architectures under one tag, of
/// which each node takes its own.
///
/// # Errors
/// When a file can't be written.
pub(crate) fn write(images: &[Image], folder: &Path, tag: &str) -> anyhow::Result<Written> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("emptying {}", folder.display()))?;
    }
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("making {}", blobs.display()))?;
    let keep = |media_type: MediaType, content: &[u8]| -> anyhow::Result<Descriptor> {
        let hash = Sha256::of(content).to_string();
        fs::write(blobs.join(&hash), content).with_context(|| format!("writing into {}", blobs.display()))?;
        let digest: Sha256Digest = hash.parse().context("a digest")?;
        Ok(Descriptor::new(media_type, content.len() as u64, digest))
    };
    let each = images.iter().map(|image| image.keep(&keep)).collect::<anyhow::Result<Vec<Descriptor>>>()?;
    let manifests: Vec<String> = each.iter().map(|manifest| manifest.digest().to_string()).collect();
    let mut tagged = match <[Descriptor; 1]>::try_from(each) {
        Ok([only]) => only,
        Err(several) => keep(MediaType::ImageIndex, &index_of(several)?)?,
    };
    let digest = tagged.digest().to_string();
    tagged.set_annotations(Some(HashMap::from([(ANNOTATION_REF_NAME.to_owned(), tag.to_owned())])));
    fs::write(folder.join("index.json"), index_of(vec![tagged])?)?;
    let layout = OciLayoutBuilder::default().image_layout_version("1.0.0").build()?;
    fs::write(folder.join("oci-layout"), canonical(&layout)?)?;
    Ok(Written { tagged: digest, manifests })
}

fn index_of(manifests: Vec<Descriptor>) -> anyhow::Result<Vec<u8>> {
    let index = ImageIndexBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageIndex)
        .manifests(manifests)
        .build()?;
    canonical(&index)
}

impl Image {
    /// Keeps its layer, configuration and manifest, and describes the manifest.
    fn keep(&self, keep: &dyn Fn(MediaType, &[u8]) -> anyhow::Result<Descriptor>) -> anyhow::Result<Descriptor> {
        let architecture = match self.architecture {
            Architecture::X86_64 => Arch::Amd64,
            Architecture::Arm64 => Arch::ARM64,
        };

        let layer = keep(MediaType::ImageLayer, &self.layer()?)?;
        let config = ConfigBuilder::default()
            .user(self.user)
            .entrypoint(vec![self.entrypoint.clone()])
            .working_dir("/")
            .labels(self.labels.clone().into_iter().collect::<HashMap<_, _>>())
            .build()?;
        let rootfs = RootFsBuilder::default().typ("layers").diff_ids(vec![layer.digest().to_string()]).build()?;
        let mut configuration = ImageConfigurationBuilder::default()
            .architecture(architecture.clone())
            .os(Os::Linux)
            .config(config)
            .rootfs(rootfs)
            .build()?;
        configuration.set_created(self.created.clone());
        let configuration = keep(MediaType::ImageConfig, &canonical(&configuration)?)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(SCHEMA_VERSION)
            .media_type(MediaType::ImageManifest)
            .config(configuration)
            .layers(vec![layer])
            .build()?;
        let mut manifest = keep(MediaType::ImageManifest, &canonical(&manifest)?)?;
        manifest.set_platform(Some(PlatformBuilder::default().architecture(architecture).os(Os::Linux).build()?));
        Ok(manifest)
    }

    /// The layer as a tar file: folders before what is in them, everything root's, no times.
    fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut folders: Vec<&str> = Vec::new();
        for file in &self.files {
            let ends = file.path.match_indices('/').map(|(at, _)| at);
            for folder in ends.filter_map(|at| file.path.get(..at)) {
                if !folders.contains(&folder) {
                    folders.push(folder);
                    append(&mut archive, folder, tar::EntryType::Directory, 0o755, &[])?;
                }
            }
            append(&mut archive, &file.path, tar::EntryType::Regular, file.mode, &file.content)?;
        }
        archive.into_inner().context("packing a layer")
    }
}

fn append(
    archive: &mut tar::Builder<Vec<u8>>,
    path: &str,
    kind: tar::EntryType,
    mode: u32,
    content: &[u8],
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, path, content).with_context(|| format!("packing {path}"))
}

/// JSON whose keys are in their order: what the specification's types keep in hash maps comes out the same each time.
pub(crate) fn canonical(document: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    fn sorted(value: Value) -> Value {
        match value {
            Value::Object(fields) => {
                let fields: BTreeMap<String, Value> =
                    fields.into_iter().map(|(key, value)| (key, sorted(value))).collect();
                Value::Object(fields.into_iter().collect())
            }
            Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
            other => other,
        }
    }
    Ok(serde_json::to_vec(&sorted(serde_json::to_value(document)?))?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn image(content: &[u8]) -> Image {
        let labels = (0..20).map(|number| (format!("label-{number}"), "x".to_owned()));
        Image {
            files: vec![
                File { path: "program".to_owned(), mode: 0o755, content: content.to_vec() },
                File { path: "etc/ssl/bundle".to_owned(), mode: 0o644, content: b"x".to_vec() },
            ],
            architecture: Architecture::X86_64,
            entrypoint: "/program".to_owned(),
            user: "65532:65532",
            labels: labels.collect(),
            created: Some("2026-11-28T00:00:00Z".to_owned()),
        }
    }

    #[test]
    fn the_same_files_give_the_same_digest() {
        let folder = tempfile::tempdir().unwrap();
        let digests: Vec<String> = [&b"a"[..], b"a", b"b"]
            .into_iter()
            .zip(["one", "two", "three"])
            .map(|(content, name)| write(&[image(content)], &folder.path().join(name), "1").unwrap().tagged)
            .collect();
        assert_eq!(digests[0], digests[1]);
        assert_ne!(digests[0], digests[2]);
        // Writing again leaves nothing of what was there.
        write(&[image(b"b")], &folder.path().join("one"), "1").unwrap();
        assert_eq!(fs::read_dir(folder.path().join("one/blobs/sha256")).unwrap().count(), 3);
    }

    #[test]
    fn several_architectures_are_one_tag_with_an_index() {
        let folder = tempfile::tempdir().unwrap();
        let images = [image(b"a"), Image { architecture: Architecture::Arm64, ..image(b"b") }];
        let written = write(&images, folder.path(), "1").unwrap();
        let read =
            |path: &str| -> Value { serde_json::from_slice(&fs::read(folder.path().join(path)).unwrap()).unwrap() };
        let named = read("index.json")["manifests"][0].clone();
        assert_eq!(named["mediaType"].as_str(), Some(MediaType::ImageIndex.to_string().as_str()));
        assert_eq!(named["digest"].as_str(), Some(written.tagged.as_str()));
        let index = read(&format!("blobs/{}", written.tagged.replace(':', "/")));
        let each = index["manifests"].as_array().unwrap().iter();
        let each: Vec<_> = each
            .map(|one| (one["platform"]["architecture"].as_str().unwrap(), one["digest"].as_str().unwrap()))
            .collect();
        assert_eq!(each, [("amd64", written.manifests[0].as_str()), ("arm64", written.manifests[1].as_str())]);
    }

    #[test]
    fn folders_stand_before_their_files_and_everything_is_roots() {
        let layer = image(b"a").layer().unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let entries: Vec<(String, u32, u64)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                (path, entry.header().mode().unwrap(), entry.header().uid().unwrap())
            })
            .collect();
        let expected = [("program", 0o755), ("etc", 0o755), ("etc/ssl", 0o755), ("etc/ssl/bundle", 0o644)];
        let expected: Vec<_> = expected.into_iter().map(|(path, mode)| (path.to_owned(), mode, 0)).collect();
        assert_eq!(entries, expected);
    }
}
