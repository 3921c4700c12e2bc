//! What lies on the boot partitions and what the boot loader says, as the driver read it. Nothing here is a conclusion:
//! whose file is whose, and what the boot loader will do, is judged from this ([`super::view`], [`super::loader`]).
//!
//! Seen, not seen and not there are three things. A file whose content could not be read is [`FileContent::Unread`], and
//! nothing is removed, blamed or concluded because of it.

use bascule_api::{Digest, RootHash};
use uuid::Uuid;

use super::LoaderCopy;
use crate::Space;

/// A partition that a boot loader takes entries from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub enum BootPartition {
    /// The EFI system partition.
    Esp,
    /// The extended boot loader partition (Discoverable Partitions Specification).
    Xbootldr,
}

impl std::fmt::Display for BootPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Esp => "ESP",
            Self::Xbootldr => "XBOOTLDR",
        })
    }
}

/// What a unified kernel image says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageFacts {
    /// IMAGE_ID, else ID, of its os-release: what the boot loader sorts by first.
    pub sort_key: Option<String>,
    /// IMAGE_VERSION, else VERSION, VERSION_ID, BUILD_ID: what it sorts by next.
    pub version: Option<String>,
    /// The root hash that its command line names: what it boots.
    pub root_hash: Option<RootHash>,
    /// Its further profiles, each of which the boot loader shows an entry for. All that is said above is of the first.
    pub profiles: Vec<ShownFacts>,
}

/// What a boot loader sorts an entry by that it shows for a file (UAPI.5, "Multi-Profile UKIs"; systemd-boot from 257 on).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShownFacts {
    /// Which profile it starts; the first is 0.
    pub profile: usize,
    /// What the profile calls itself.
    pub profile_id: Option<String>,
    /// IMAGE_ID, else ID.
    pub sort_key: Option<String>,
    /// IMAGE_VERSION, else VERSION, VERSION_ID, BUILD_ID.
    pub version: Option<String>,
}

/// What was found when a file was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileContent {
    /// A unified kernel image.
    Image(ImageFacts),
    /// It was read, and is no whole image: cut short, or its first profile is none. The boot loader, which looks at section table and
    /// os-release alone, shows these entries all the same, and takes one that comes first. It boots nothing that is known here.
    ShownOnly(Vec<ShownFacts>),
    /// It was read, and a boot loader finds nothing in it that it would show.
    NotAnImage,
    /// It was read, and stands under the agent's placeholder: it was being put in its place when that broke off.
    Placeholder,
    /// It could not be read. Why.
    Unread(String),
}

impl FileContent {
    /// What it says of itself, if it is an image.
    pub const fn image(&self) -> Option<&ImageFacts> {
        match self {
            Self::Image(facts) => Some(facts),
            _ => None,
        }
    }

    /// The root hash that it boots.
    pub fn root_hash(&self) -> Option<&RootHash> {
        self.image()?.root_hash.as_ref()
    }
}

/// A file in the folder of boot images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootFile {
    /// On which partition.
    pub partition: BootPartition,
    /// Its name, counters included.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// What was read of it.
    pub content: FileContent,
    /// Digest of all of it. Only known where two files have to be told apart.
    pub digest: Option<Digest>,
    /// Digest of its first 512 bytes, where they were read and it has as many.
    pub start: Option<Digest>,
}

/// An entry of type #1: a text file in `loader/entries` that names a program and how it is sorted (UAPI Boot Loader
/// Specification, "Type #1"). The agent places none and touches none; the boot loader may take one before what is armed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextEntry {
    /// On which partition; `None`: on none, it comes with the machine (SMBIOS type 11).
    pub partition: Option<BootPartition>,
    /// Its name, counters included.
    pub name: String,
    /// What was read of it.
    pub content: TextContent,
}

/// What was found when an entry of type #1 was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextContent {
    /// The boot loader shows it.
    Shown(TextFacts),
    /// It was read, and the boot loader passes over it: it names nothing that is there, or is for another processor.
    NotShown,
    /// It, or what it names, could not be read. Why.
    Unread(String),
}

/// What a boot loader sorts an entry of type #1 by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextFacts {
    /// `sort-key`.
    pub sort_key: Option<String>,
    /// `machine-id`.
    pub machine_id: Option<String>,
    /// `version`.
    pub version: Option<String>,
}

impl TextEntry {
    /// Why it could not be read, if so, in words.
    pub fn unread(&self) -> Option<String> {
        match &self.content {
            TextContent::Unread(why) => Some(format!("{}: {why}", self.place(&self.name))),
            _ => None,
        }
    }

    /// A name of it, and where to look for it.
    pub(crate) fn place(&self, name: &str) -> String {
        match self.partition {
            Some(partition) => format!("{name} on the {partition}"),
            None => format!("{name} (it comes with the machine: SMBIOS type 11)"),
        }
    }
}

/// One boot partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionFacts {
    /// Which.
    pub partition: BootPartition,
    /// Its PARTUUID, where that can be told.
    pub uuid: Option<Uuid>,
    /// Room on it.
    pub space: Space,
    /// Nothing can be written to it as it is mounted now.
    pub read_only: bool,
}

/// Who decides what is booted before the order of entries does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Where it is set: a variable's name, or a key of `loader.conf`.
    pub place: &'static str,
    /// What it names: an entry, with `*` and `?`.
    pub pattern: String,
    /// It passes over an entry whose tries are used up (`LoaderEntryPreferred`, `preferred`; systemd 260).
    pub minds_tries: bool,
}

/// What the boot loader says of itself and of this boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoaderFacts {
    /// `LoaderInfo`: its name and version.
    pub info: Option<String>,
    /// `LoaderFeatures`.
    pub features: Option<u64>,
    /// Whether this boot was of an entry that counts (`LoaderBootCountPath`).
    pub counted: bool,
    /// The entry that was picked, as it was called then (`LoaderEntrySelected`), with the profile behind an `@` from the second on.
    pub selected: Option<String>,
    /// What is picked whatever the order of entries says.
    pub pins: Vec<Pin>,
    /// PARTUUID of the partition that the boot loader came from (`LoaderDevicePartUUID`).
    pub device: Option<Uuid>,
    /// Whether Secure Boot is on (`SecureBoot`), where that can be told.
    pub secure_boot: Option<bool>,
    /// The file that it was started from, as the firmware writes it (`LoaderImageIdentifier`).
    pub image: Option<String>,
    /// Why that could not be read. No entry hangs on it.
    pub image_unread: Option<String>,
    /// What lies on the ESP where a boot loader is started from.
    pub copies: Vec<LoaderCopy>,
    /// What the agent laid down beside these and did not put in place.
    pub beside: Vec<LoaderCopy>,
    /// What of all this could not be read, with the reason, as far as entries hang on it.
    pub unread: Vec<String>,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootInventory {
    /// The partitions that were looked at.
    pub partitions: Vec<PartitionFacts>,
    /// A partition that the boot loader takes entries from and that is not mounted, in words.
    pub unmounted: Option<String>,
    /// Partitions that the boot loader takes, or may take, entries from and that could not be looked at, with the reason.
    pub unseen: Vec<String>,
    /// Files in the folders of boot images, in the order of partitions and names.
    pub files: Vec<BootFile>,
    /// Entries of type #1, in the same order.
    pub texts: Vec<TextEntry>,
    /// The boot loader.
    pub loader: LoaderFacts,
}

impl BootInventory {
    /// Whether there is, or may be, a partition with entries that was not looked at.
    pub(crate) fn is_partial(&self) -> bool {
        self.unmounted.is_some() || !self.unseen.is_empty()
    }

    /// Room on a partition.
    pub fn space(&self, partition: BootPartition) -> Space {
        let found = self.partitions.iter().find(|facts| facts.partition == partition);
        found.map_or(Space { free: 0, total: 0 }, |facts| facts.space)
    }

    /// What says of a boot loader that it is the same as before, set up in the same way.
    pub fn loader_setup(&self) -> String {
        let loader = &self.loader;
        let pins: Vec<_> = loader.pins.iter().map(|pin| format!("{}={}", pin.place, pin.pattern)).collect();
        let device = loader.device.map(|device| device.to_string()).unwrap_or_default();
        let info = loader.info.as_deref().unwrap_or_default();
        let text = format!("{info} {:x} {device} {}", loader.features.unwrap_or_default(), pins.join(" "));
        text.chars().take(MAX_SETUP).collect()
    }
}

/// Longest description of a boot loader's setup that is remembered.
const MAX_SETUP: usize = 512;
