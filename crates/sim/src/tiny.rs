//! Releases small enough to be written, cut and booted tens of thousands of times: a few dozen kilobytes of seeded
//! bytes as image, a real verity tree over them, and a real (if hollow) unified kernel image.

use std::{io, num::NonZeroUsize};

use bascule_image::boot_loader::MAX_SIZE;
use bascule_image::build::{BuildError, Effort, Image, Options, build_delta, build_full};
use bascule_image::digest::Sha256;
use bascule_image::io::ReadAt;
use bascule_image::pack::MIN_FRAME_SIZE;
use bascule_image::release::ParseError;
use bascule_image::release::manifest::{self, Manifest};
use bascule_image::release::names::{PathError, TargetPath};
use bascule_image::uki::STATE_VERSION;
use bascule_image::verity::{self, Parameters, Tree};
use bascule_image::work::Watch;
use bascule_names::{Architecture, NameError, Product, Version};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use uuid::Uuid;

use crate::{
    disk::Disk,
    firmware::{self, boot_image::Fault},
    layout::{Installed, Sizes, provision},
};

/// A release in memory.
#[derive(Clone, Debug)]
pub struct TinyRelease {
    /// Product, as IMAGE_ID.
    pub product: String,
    /// Version, as IMAGE_VERSION.
    pub version: String,
    /// The image.
    pub data: Vec<u8>,
    /// Superblock and tree.
    pub verity: Vec<u8>,
    /// The salt and UUID that went into the tree.
    pub parameters: Parameters,
    /// dm-verity root hash.
    pub root_hash: Sha256,
    /// The boot image.
    pub uki: Vec<u8>,
    /// A full pack of the image.
    pub pack: Vec<u8>,
    /// A delta pack, and the root hash of its base.
    pub delta: Option<(Sha256, Vec<u8>)>,
    /// What is signed.
    pub manifest: Manifest,
    /// The manifest as it is published.
    pub manifest_bytes: Vec<u8>,
}

/// Why a release could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TinyError {
    /// The tree.
    #[error(transparent)]
    Tree(#[from] verity::IncompleteTree),
    /// The pack.
    #[error(transparent)]
    Pack(#[from] BuildError),
    /// A name or version is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A path is none.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ParseError),
}

impl TinyRelease {
    /// A release of `size` bytes whose content follows from the version. Errors: the tree could not be built.
    pub fn new(product: &str, version: &str, size: usize, faults: &[Fault]) -> Result<Self, TinyError> {
        let identity = Sha256::of(format!("{product} {version}").as_bytes());
        let mut random = ChaCha8Rng::from_seed(*identity.as_bytes());
        let mut data = vec![0; size];
        random.fill_bytes(&mut data);
        Self::of(product, version, data, faults, None)
    }

    /// The same, declaring a state version. Errors: the tree could not be built.
    pub fn declaring(product: &str, version: &str, size: usize, state_version: u32) -> Result<Self, TinyError> {
        let data = Self::new(product, version, size, &[])?.data;
        Self::of(product, version, data, &[], Some(state_version))
    }

    /// The same, bringing a boot loader in its image, of which the manifest says this version. Errors: the tree could not be built.
    pub fn bringing(
        product: &str,
        version: &str,
        size: usize,
        loader: &[u8],
        loader_version: &str,
    ) -> Result<Self, TinyError> {
        let mut data = Self::new(product, version, size, &[])?.data;
        let length = u32::try_from(loader.len()).unwrap_or(u32::MAX).to_le_bytes();
        let lies = LOADER_MARK.iter().chain(&length).chain(loader);
        data.iter_mut().zip(lies).for_each(|(to, from)| *to = *from);
        let mut release = Self::of(product, version, data, &[], None)?;
        release.manifest.boot_loader = Some(manifest::BootLoader {
            version: loader_version.to_owned(),
            size: loader.len() as u64,
            digest: Sha256::of(loader).into(),
            downgrade: false,
        });
        release.manifest_bytes = release.manifest.to_bytes()?;
        Ok(release)
    }

    /// The release after `base`: one block of the image differs, and there is a delta pack from `base` beside the full one.
    /// Errors: a tree or pack could not be built.
    pub fn following(base: &Self, version: &str) -> Result<Self, TinyError> {
        let mut data = base.data.clone();
        data.iter_mut().take(verity::BLOCK_SIZE).for_each(|byte| *byte ^= 0x55);
        let mut release = Self::of(&base.product, version, data, &[], None)?;
        let image = Image { root_hash: release.root_hash, bytes: &release.data };
        let before = Image { root_hash: base.root_hash, bytes: &base.data };
        let mut delta = Vec::new();
        let built = build_delta(image, before, &mut delta, &options(), &Watch::none())?;
        let path = format!("releases/{version}/x86-64/from-{}.pack", base.root_hash).parse::<TargetPath>()?;
        release.manifest.packs.push(built.to_manifest_entry(path));
        release.manifest_bytes = release.manifest.to_bytes()?;
        release.delta = Some((base.root_hash, delta));
        Ok(release)
    }

    /// Lays a disk out as a vendor's installer does, with this release in slot A; see [`provision`].
    ///
    /// # Errors
    /// When the disk can't be written, or is too small.
    pub fn provision(&self, disk: &Disk, sizes: Sizes, boot: firmware::BootLoader, identity: Uuid) -> io::Result<()> {
        let mut installed = Installed {
            version: &self.version,
            root_hash: self.root_hash,
            data: &mut self.data.as_slice(),
            verity: &mut self.verity.as_slice(),
            uki: &self.uki,
            entry: &self.entry(),
        };
        provision(disk, sizes, boot, identity, &mut installed)
    }

    fn of(
        product: &str,
        version: &str,
        data: Vec<u8>,
        faults: &[Fault],
        state_version: Option<u32>,
    ) -> Result<Self, TinyError> {
        let identity = Sha256::of(format!("{product} {version}").as_bytes());
        let mut random = ChaCha8Rng::from_seed(Sha256::of(identity.as_bytes()).as_bytes().to_owned());
        let parameters = Parameters { salt: identity.first_half().to_vec(), uuid: identity.second_half() };
        let tree = hash(&data, &parameters)?;
        let root_hash = tree.root_hash();
        let mut cmdline = format!("roothash={root_hash} ro quiet");
        for fault in faults {
            cmdline.push(' ');
            cmdline.push_str(&fault.argument());
        }
        let mut os_release =
            format!("ID={product}\nIMAGE_ID={product}\nIMAGE_VERSION={version}\nPRETTY_NAME=\"{product} {version}\"\n");
        if let Some(number) = state_version {
            os_release.push_str(&format!("{STATE_VERSION}={number}\n"));
        }
        // The kernel differs between releases too, so that a mix of two is seen.
        let mut kernel = vec![0; 1500];
        random.fill_bytes(&mut kernel);
        let uki =
            boot_image(&[(".osrel", os_release.as_bytes()), (".cmdline", cmdline.as_bytes()), (".linux", &kernel)]);
        let tree_bytes = tree.to_bytes();
        let mut pack = Vec::new();
        let built = build_full(Image { root_hash, bytes: &data }, &mut pack, &options(), &Watch::none())?;
        let path = |file: &str| format!("releases/{version}/x86-64/{file}").parse::<TargetPath>();
        let manifest = Manifest {
            format: manifest::format_for(state_version),
            product: Product::parse(product)?,
            version: Version::parse(version)?,
            architecture: Architecture::X86_64,
            image: manifest::Image { size: data.len() as u64 },
            verity: manifest::Verity {
                algorithm: "sha256".to_owned(),
                block_size: verity::BLOCK_SIZE as u32,
                salt: parameters.salt.clone(),
                uuid: Uuid::from_bytes(parameters.uuid),
                root_hash: root_hash.into(),
                hash_tree_size: tree_bytes.len() as u64,
            },
            uki: manifest::File { path: path("boot.efi")?, size: uki.len() as u64, digest: Sha256::of(&uki).into() },
            packs: vec![built.to_manifest_entry(path("full.pack")?)],
            packages: None,
            kubernetes: None,
            state_version,
            measured: None,
            boot_loader: None,
        };
        let manifest_bytes = manifest.to_bytes()?;
        Ok(Self {
            pack,
            delta: None,
            manifest,
            manifest_bytes,
            product: product.to_owned(),
            version: version.to_owned(),
            data,
            verity: tree_bytes,
            parameters,
            root_hash,
            uki,
        })
    }

    /// The file name of its boot entry, without counters.
    pub fn entry(&self) -> String {
        format!("{}-{}.efi", self.product, self.version)
    }
}

/// Frames are as small as they may be, so that an image of some hundred kilobytes has several, and several workers something to do.
fn options() -> Options {
    Options { effort: Effort::Fast, workers: NonZeroUsize::MIN, frame_size: MIN_FRAME_SIZE }
}

fn hash(data: &[u8], parameters: &Parameters) -> Result<Tree, verity::IncompleteTree> {
    let builder = verity::TreeBuilder::new(parameters, data.len() as u64);
    builder.put(0, &verity::BlockHasher::new(parameters).blocks(data));
    builder.finish()
}

/// An image that brings a boot loader begins with this, its length in four bytes (little endian), and itself: there is no file system.
const LOADER_MARK: &[u8; 16] = b"tiny boot loader";

/// The boot loader in an image.
///
/// # Errors
/// It can't be read.
pub fn loader_of_image(image: &dyn ReadAt) -> io::Result<Option<Vec<u8>>> {
    let mut start = [0; LOADER_MARK.len() + 4];
    image.read_at(&mut start, 0)?;
    let Some((mark, length)) = start.split_first_chunk::<16>().filter(|(mark, _)| *mark == LOADER_MARK) else {
        return Ok(None);
    };
    let length = length.iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
    let mut loader = vec![0; length.min(MAX_SIZE as usize)];
    image.read_at(&mut loader, (mark.len() + 4) as u64)?;
    Ok(Some(loader))
}

/// systemd-boot of a version, as far as it says what it is: no code, and `size` bytes that differ between versions.
pub fn systemd_boot(version: &str, size: usize) -> Vec<u8> {
    let mut random = ChaCha8Rng::from_seed(*Sha256::of(version.as_bytes()).as_bytes());
    let mut text = vec![0; size];
    random.fill_bytes(&mut text);
    let magic = format!("#### LoaderInfo: systemd-boot {version} ####\0");
    boot_image(&[(".text", &text), (".sdmagic", magic.as_bytes())])
}

/// Alignment of sections in the file and in memory.
const ALIGNMENT: usize = 512;

/// A PE32+ file for x86-64 with these sections and no code (Microsoft PE/COFF specification).
pub fn boot_image(sections: &[(&str, &[u8])]) -> Vec<u8> {
    const OPTIONAL_HEADER: usize = 112 + 16 * 8;
    let headers = (64 + 4 + 20 + OPTIONAL_HEADER + 40 * sections.len()).next_multiple_of(ALIGNMENT);
    let mut table = Vec::new();
    let mut body = Vec::new();
    for (name, content) in sections {
        let mut short = [0u8; 8];
        short.iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
        let at = (headers + body.len()) as u32;
        let stored = content.len().next_multiple_of(ALIGNMENT) as u32;
        table.extend(short);
        for field in [content.len() as u32, at, stored, at, 0, 0, 0, 0x4000_0040] {
            table.extend(field.to_le_bytes());
        }
        body.extend_from_slice(content);
        body.resize(body.len().next_multiple_of(ALIGNMENT), 0);
    }

    let mut file = b"MZ".to_vec();
    file.resize(0x3c, 0);
    file.extend(64u32.to_le_bytes());
    file.extend(b"PE\0\0");
    file.extend(0x8664u16.to_le_bytes());
    file.extend((sections.len() as u16).to_le_bytes());
    file.extend([0; 12]);
    file.extend((OPTIONAL_HEADER as u16).to_le_bytes());
    file.extend(0x22u16.to_le_bytes());
    let optional = file.len();
    file.extend(0x20bu16.to_le_bytes());
    file.resize(optional + 32, 0);
    file.extend((ALIGNMENT as u32).to_le_bytes());
    file.extend((ALIGNMENT as u32).to_le_bytes());
    file.resize(optional + 56, 0);
    file.extend(((headers + body.len()) as u32).to_le_bytes());
    file.extend((headers as u32).to_le_bytes());
    file.resize(optional + 68, 0);
    // An EFI application.
    file.extend(10u16.to_le_bytes());
    file.resize(optional + 108, 0);
    file.extend(16u32.to_le_bytes());
    file.resize(optional + OPTIONAL_HEADER, 0);
    file.extend(table);
    file.resize(headers, 0);
    file.extend(body);
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::BootImage;

    #[test]
    fn the_firmware_reads_what_the_release_says() {
        let release = TinyRelease::new("acme-os", "1.2", 5 * 4096, &[Fault::KubeletFails, Fault::Hang]).unwrap();
        let image = BootImage::read(&release.uki).unwrap();
        assert_eq!(image.sort_key.as_deref(), Some("acme-os"));
        assert_eq!(image.version.as_deref(), Some("1.2"));
        assert_eq!(image.root_hash(), Some(release.root_hash.to_string()));
        assert_eq!(image.faults(), [Fault::KubeletFails, Fault::Hang]);
        assert_eq!(BootImage::read(&release.uki[..400].to_vec()), None);
    }
}
