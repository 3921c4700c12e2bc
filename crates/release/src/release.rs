//! The parts of a release in its build folder: boot image, packs, and at last the manifest that binds them together.

use std::io::{BufWriter, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;

use bascule_image::Sha256;
use bascule_image::build::{self, BuildError, BuiltPack, Image, Options};
use bascule_image::io::ReadAt;
use bascule_image::release::manifest::{self, File as Described, Kubernetes, Manifest, Pack, PackageList, Verity};
use bascule_image::release::measured::Measured;
use bascule_image::verity::{self, Geometry, Parameters, Tree};
use bascule_image::work::Watch;
use bascule_names::Version;

use crate::{BuildFolder, Error, Identity};

/// What of dm-verity belongs to an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashed {
    /// The image's size in bytes.
    pub size: u64,
    /// Salt and UUID of its tree.
    pub parameters: Parameters,
    /// The root of its tree.
    pub root_hash: Sha256,
}

impl Hashed {
    /// Hashes an image whose size is a multiple of [`verity::BLOCK_SIZE`]; its tree beside it, which no part of a release holds.
    ///
    /// # Errors
    /// The image can't be read.
    pub fn of(
        image: &dyn ReadAt,
        parameters: Parameters,
        workers: NonZeroUsize,
        watch: &Watch<'_>,
    ) -> Result<(Self, Tree), Error> {
        let size = image.size().map_err(Error::Measure)?;
        let tree = verity::build(image, size, &parameters, workers, watch)?;
        Ok((Self { size, parameters, root_hash: tree.root_hash() }, tree))
    }

    fn verity(&self) -> Verity {
        Verity {
            algorithm: "sha256".to_owned(),
            block_size: verity::BLOCK_SIZE as u32,
            salt: self.parameters.salt.clone(),
            uuid: uuid::Uuid::from_bytes(self.parameters.uuid),
            root_hash: self.root_hash.into(),
            hash_tree_size: Geometry::of_image(self.size).hash_size(),
        }
    }
}

impl From<&Manifest> for Hashed {
    fn from(manifest: &Manifest) -> Self {
        let verity = &manifest.verity;
        Self { size: manifest.image.size, parameters: verity.parameters(), root_hash: Sha256::from(&verity.root_hash) }
    }
}

/// An earlier release that a delta leads from.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "it holds the caller's reader, which need not have it")]
pub struct Base<'a> {
    /// Its version, for messages.
    pub version: &'a Version,
    /// The root hash of its image.
    pub root_hash: Sha256,
    /// Its image. That it is the one of this root hash is not looked at here.
    pub image: &'a dyn ReadAt,
}

/// What a manifest may say beside what is built.
#[derive(Debug, Clone, Default)]
pub struct Extras {
    /// The package list, which lies in the build folder.
    pub packages: Option<PackageList>,
    /// What of Kubernetes is in the image.
    pub kubernetes: Option<Kubernetes>,
    /// What the release makes of the machine's state once it is committed.
    pub state_version: Option<u32>,
    /// What a TPM will hold once the boot image runs.
    pub measured: Option<Measured>,
    /// The boot loader in the image that hosts take.
    pub boot_loader: Option<manifest::BootLoader>,
}

/// A release in the making.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "it holds the caller's reader, which need not have it")]
pub struct Release<'a> {
    /// Where its files are written.
    pub folder: &'a BuildFolder,
    /// Which release it is.
    pub identity: Identity<'a>,
    /// Its image, and what [`Hashed::of`] said of it.
    pub image: &'a dyn ReadAt,
    /// See `image`.
    pub hashed: &'a Hashed,
}

impl Release<'_> {
    /// Builds all of it: boot image, full pack, a delta from each base, manifest.
    ///
    /// # Errors
    /// As for each part.
    pub fn build(&self, uki: &[u8], bases: &[Base<'_>], options: &Options) -> Result<Manifest, Error> {
        let uki = self.boot_image(uki)?;
        let mut packs = vec![self.full(options, &Watch::none())?];
        for base in bases {
            packs.push(self.delta(*base, options, &Watch::none())?);
        }
        Ok(self.finish(uki, packs, Extras::default())?.0)
    }

    /// Lays the boot image into the folder.
    ///
    /// # Errors
    /// It can't be written.
    pub fn boot_image(&self, uki: &[u8]) -> Result<Described, Error> {
        self.folder.write(&self.identity.path("uki.efi"), uki)
    }

    /// Builds the full pack.
    ///
    /// # Errors
    /// The image can't be read or the pack not be written.
    pub fn full(&self, options: &Options, watch: &Watch<'_>) -> Result<Pack, Error> {
        self.pack("full.pack", |out| build::build_full(self.packed(), out, options, watch).map_err(Error::Full))
    }

    /// Builds a delta from an earlier release.
    ///
    /// # Errors
    /// An image can't be read or the pack not be written.
    pub fn delta(&self, base: Base<'_>, options: &Options, watch: &Watch<'_>) -> Result<Pack, Error> {
        let from = Image { root_hash: base.root_hash, bytes: base.image };
        let failed = |source: BuildError| Error::Delta { from: base.version.clone(), source };
        self.pack(&format!("from-{}.pack", base.root_hash), |out| {
            build::build_delta(self.packed(), from, out, options, watch).map_err(failed)
        })
    }

    /// Writes the manifest, with which the build is finished; it and where it lies.
    ///
    /// # Errors
    /// A node would refuse the manifest, or it can't be written.
    pub fn finish(&self, uki: Described, packs: Vec<Pack>, extras: Extras) -> Result<(Manifest, PathBuf), Error> {
        let manifest = Manifest {
            format: manifest::format_for(extras.state_version),
            product: self.identity.product.clone(),
            version: self.identity.version.clone(),
            architecture: self.identity.architecture,
            image: manifest::Image { size: self.hashed.size },
            verity: self.hashed.verity(),
            uki,
            packs,
            packages: extras.packages,
            kubernetes: extras.kubernetes,
            state_version: extras.state_version,
            measured: extras.measured,
            boot_loader: extras.boot_loader,
        };
        let written = self.folder.finish(&manifest)?;
        Ok((manifest, written))
    }

    fn packed(&self) -> Image<'_> {
        Image { root_hash: self.hashed.root_hash, bytes: self.image }
    }

    fn pack(&self, name: &str, build: impl FnOnce(&mut dyn Write) -> Result<BuiltPack, Error>) -> Result<Pack, Error> {
        let path = self.identity.path(name);
        let mut out = BufWriter::new(self.folder.create_file(&path)?);
        let built = build(&mut out)?;
        Ok(built.to_manifest_entry(crate::folder::repository_path(&path)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_image::release::manifest::PackKind;
    use bascule_names::{Architecture, Product};

    /// Blocks that differ from each other, and from those of another seed here and there.
    fn image(seed: u8) -> Vec<u8> {
        let block =
            |number: u8| [number, if number.is_multiple_of(5) { seed } else { 0 }].repeat(verity::BLOCK_SIZE / 2);
        (0..64).flat_map(block).collect()
    }

    #[test]
    fn what_is_built_is_found_again_and_the_same_input_gives_the_same_bytes() {
        let home = tempfile::tempdir().unwrap();
        let (product, one, two): (Product, Version, Version) =
            ("acme-os".parse().unwrap(), "1.0".parse().unwrap(), "1.1".parse().unwrap());
        let identity = |version| Identity { product: &product, version, architecture: Architecture::X86_64 };
        let options = Options { effort: build::Effort::Fast, ..Options::default() };
        let (before, after) = (image(1), image(2));
        let hash = |bytes: &Vec<u8>, version| {
            Hashed::of(bytes, identity(version).parameters(), NonZeroUsize::MIN, &Watch::none()).unwrap().0
        };
        let (base, hashed) = (hash(&before, &one), hash(&after, &two));
        let base = Base { version: &one, root_hash: base.root_hash, image: &before };
        let build = |name: &str| {
            let root = home.path().join(name);
            let folder = BuildFolder::create(&root).unwrap();
            let release = Release { folder: &folder, identity: identity(&two), image: &after, hashed: &hashed };
            let manifest = release.build(b"boots it", &[base], &options).unwrap();
            let (_, found) = BuildFolder::open(&root, Architecture::X86_64).unwrap();
            assert_eq!(found, manifest);
            manifest
        };
        let manifest = build("first");
        assert_eq!(manifest, build("second"));
        assert_eq!(Hashed::from(&manifest), hashed);
        let kinds: Vec<&PackKind> = manifest.packs.iter().map(|pack| &pack.kind).collect();
        assert_eq!(kinds, [&PackKind::Full, &PackKind::Delta { base: base.root_hash.into() }]);
        for pack in &manifest.packs {
            let bytes = |name: &str| std::fs::read(home.path().join(name).join(pack.path.as_str())).unwrap();
            assert_eq!(bytes("first").len() as u64, pack.size);
            assert_eq!(bytes("first"), bytes("second"));
        }
    }
}
