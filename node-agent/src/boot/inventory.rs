//! Reads what lies on the boot partitions and what the boot loader says, and concludes nothing from it.
//!
//! What fails for one file or one partition is said of that, and the rest is seen all the same: a trial whose own entry is seen is
//! committed whatever is wrong elsewhere. Where no partition could be looked at, nothing was seen, and that is an error.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use bascule_api::{Architecture, BootControlBackend, Digest, RootHash};
use uuid::Uuid;

use super::error::esp;
use super::files::{self, read_with_start};
use super::smbios::machine_entries;
use super::text_entries::{key_and_value, text_entries};
use super::{BootError, BootFolder, Missing};
use crate::core::boot::name::EntryName;
use crate::core::boot::{
    BootFile, BootInventory, BootPartition, FileContent, LoaderFacts, PartitionFacts, Pin, TextEntry, is_unfinished,
    parse_waiting,
};
use crate::engine::in_one_line;
use crate::host::{Firmware, Host};

/// More files than this are not looked at, and then nothing is concluded.
const MAX_FILES: usize = 256;
/// The boot loader's settings (loader.conf(5)).
const LOADER_CONF: &str = "loader/loader.conf";
/// Longest settings of a boot loader in bytes.
const MAX_CONF: u64 = 64 << 10;
/// Longest text of a variable or a setting that is kept, in UTF-16 units and characters. A longer one was not read.
const MAX_TEXT: usize = 512;

/// Variables that pick an entry whatever the order says, and whether one whose tries are used up is passed over then (systemd, "The
/// Boot Loader Interface"). The first is of the next boot only: the one that a drain would be for.
const PINS: [(&str, bool); 3] =
    [("LoaderEntryOneShot", false), ("LoaderEntryDefault", false), ("LoaderEntryPreferred", true)];

/// The variable with the PARTUUID of the partition that the boot loader came from.
const DEVICE: &str = "LoaderDevicePartUUID";

type Listing = Vec<(BootPartition, String, u64)>;

/// Digests of boot images, for as long as nothing on the boot partitions changes its name or length: a look does not read
/// hundreds of MB again and again. What hangs on a digest is read once more when it is done.
#[derive(Debug, Default)]
pub struct DigestCache(Mutex<Digests>);

/// Digests of files, and the listing that they are of.
type Digests = (Listing, BTreeMap<(BootPartition, String), Digest>);

impl DigestCache {
    /// Forgets everything: something was changed.
    pub fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Default::default();
    }

    fn of(&self, listing: &Listing, folder: &BootFolder, file: &str, size: u64) -> Result<Digest, BootError> {
        let mut cached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.0 != *listing {
            *cached = (listing.clone(), BTreeMap::new());
        }
        let key = (folder.partition, file.to_owned());
        if let Some(digest) = cached.1.get(&key) {
            return Ok(digest.clone());
        }
        let (digest, length) = files::digest(&*folder.esp, &folder.path(file))?;
        if length != size {
            let reason = format!("it is {length} bytes long, not {size}");
            return Err(BootError::Unexpected { path: folder.path(file), reason });
        }
        cached.1.insert(key, digest.clone());
        Ok(digest)
    }
}

/// Whether a file is one that the agent reads: an entry, or something it laid down itself.
fn concerns_us(name: &str) -> bool {
    EntryName::parse(name).is_some() || parse_waiting(name).is_some() || is_unfinished(name)
}

/// Reads everything. `releases` are the root hashes of the slots.
///
/// # Errors
/// No boot partition could be looked at: nothing was seen.
pub fn read(
    host: &Host,
    backend: BootControlBackend,
    architecture: Architecture,
    releases: &[&RootHash],
    digests: &DigestCache,
) -> Result<BootInventory, BootError> {
    let (folders, missing) = BootFolder::look(host, backend);
    let mut inventory = BootInventory { loader: loader(host, backend), ..BootInventory::default() };
    match missing {
        Some(Missing::NotMounted(words)) => inventory.unmounted = Some(words),
        Some(Missing::Unseen(words)) => inventory.unseen.push(words),
        None => {}
    }
    let mut failed = None;
    for folder in &folders {
        match read_partition(folder, &mut inventory.loader.unread) {
            Ok(Seen { facts, files, texts }) => {
                inventory.partitions.push(facts);
                inventory.files.extend(files);
                inventory.texts.extend(texts);
            }
            Err(error) => {
                inventory.unseen.push(format!("the {}: {}", folder.partition, in_one_line(&error)));
                failed.get_or_insert(error);
            }
        }
    }
    if let Some(error) = failed.filter(|_| inventory.partitions.is_empty()) {
        return Err(error);
    }
    if backend == BootControlBackend::SystemdBoot {
        match host.firmware.smbios() {
            Ok(structures) => inventory.texts.extend(machine_entries(&structures, &*host.esp)),
            Err(error) => inventory.loader.unread.push(format!("the machine's SMBIOS structures: {error}")),
        }
        super::loader::look(&*host.esp, &*host.firmware, architecture, &mut inventory.loader);
    }
    tell_apart(&mut inventory, &folders, releases, digests);
    Ok(inventory)
}

/// What was read of one partition.
struct Seen {
    facts: PartitionFacts,
    files: Vec<BootFile>,
    texts: Vec<TextEntry>,
}

fn read_partition(folder: &BootFolder, unread: &mut Vec<String>) -> Result<Seen, BootError> {
    let partition = folder.partition;
    let space = folder.esp.space().map_err(esp("measuring", folder.directory))?;
    let read_only = folder.esp.is_read_only().map_err(esp("measuring", folder.directory))?;
    let mut listed = folder.esp.list(folder.directory).map_err(esp("listing", folder.directory))?;
    listed.retain(|file| concerns_us(&file.name));
    if listed.len() > MAX_FILES {
        return Err(BootError::TooMany { path: folder.directory.to_owned(), limit: MAX_FILES });
    }
    listed.sort();
    let uuid = folder.esp.partition_uuid().unwrap_or_else(|error| {
        unread.push(format!("the PARTUUID of the {partition}: {error}"));
        None
    });
    let file = |name: String, size| {
        let unread = |error: BootError| (FileContent::Unread(in_one_line(&error)), None);
        let (content, start) = read_with_start(folder, &name).unwrap_or_else(unread);
        BootFile { partition, name, size, content, digest: None, start }
    };
    let files = listed.into_iter().map(|found| file(found.name, found.size)).collect();
    let texts = if folder.holds_entries() { text_entries(&*folder.esp, partition) } else { Vec::new() };
    Ok(Seen { facts: PartitionFacts { partition, uuid, space, read_only }, files, texts })
}

/// Reads whole what may be one file under two names: images of one release, and what was laid down, of one length.
fn tell_apart(inventory: &mut BootInventory, folders: &[BootFolder], releases: &[&RootHash], digests: &DigestCache) {
    let listing: Listing = inventory.files.iter().map(|file| (file.partition, file.name.clone(), file.size)).collect();
    let is_image = |file: &BootFile| file.content.root_hash().is_some_and(|root_hash| releases.contains(&root_hash));
    let is_entry = |file: &BootFile| EntryName::parse(&file.name).is_some();
    let read = |file: &BootFile| !matches!(file.content, FileContent::Unread(_));
    let alike = |a: &BootFile, b: &BootFile| {
        let same_file = (a.partition, &a.name) == (b.partition, &b.name);
        let same_release = a.content.root_hash() == b.content.root_hash();
        // Of two entries only those of one release are of interest; what was laid down may be anything.
        !same_file
            && a.partition == b.partition
            && a.size == b.size
            && read(a)
            && read(b)
            && (is_entry(a) && is_image(a) || is_entry(b) && is_image(b))
            && (same_release || !is_entry(a) || !is_entry(b))
    };
    let wanted: Vec<usize> = (0..inventory.files.len())
        .filter(|at| {
            let file = inventory.files.get(*at);
            file.is_some_and(|file| inventory.files.iter().any(|other| alike(file, other)))
        })
        .collect();
    for at in wanted {
        let Some(file) = inventory.files.get_mut(at) else { continue };
        let Some(folder) = folders.iter().find(|folder| folder.partition == file.partition) else { continue };
        match digests.of(&listing, folder, &file.name, file.size) {
            Ok(digest) => file.digest = Some(digest),
            // It was read, and is shorter than its name says: power loss cut it off. It equals nothing that is whole.
            Err(BootError::Unexpected { .. }) => {}
            Err(error) => file.content = FileContent::Unread(in_one_line(&error)),
        }
    }
}

/// What the boot loader says, and what decides beside the order of entries.
fn loader(host: &Host, backend: BootControlBackend) -> LoaderFacts {
    let mut facts = LoaderFacts::default();
    if backend == BootControlBackend::GptPrio {
        return facts;
    }
    let unread = &mut facts.unread;
    let mut bytes = |name: &str| variable(&*host.firmware, name, unread);
    facts.features = bytes("LoaderFeatures")
        .map(|bytes| bytes.iter().take(8).rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)));
    let mut long = Vec::new();
    let mut text = |name: &str| {
        let text = utf16(&bytes(name)?);
        if text.is_none() {
            long.push(format!("the EFI variable {name} is longer than {MAX_TEXT} characters"));
        }
        text.filter(|text| !text.is_empty())
    };
    facts.info = text("LoaderInfo");
    facts.counted = text("LoaderBootCountPath").is_some();
    facts.selected = text("LoaderEntrySelected");
    let device = text(DEVICE);
    for (place, minds_tries) in PINS {
        facts.pins.extend(text(place).map(|pattern| Pin { place, pattern, minds_tries }));
    }
    facts.unread.extend(long);
    match device.as_deref().map(str::parse::<Uuid>).transpose() {
        Ok(device) => facts.device = device,
        Err(error) => facts.unread.push(format!("the EFI variable {DEVICE} is no PARTUUID: {error}")),
    }
    match host.esp.read(LOADER_CONF, MAX_CONF) {
        Ok(bytes) => {
            for pin in configured(&String::from_utf8_lossy(&bytes)) {
                match pin {
                    Ok(pin) => facts.pins.push(pin),
                    Err(why) => facts.unread.push(why),
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => facts.unread.push(format!("{LOADER_CONF}: {error}")),
    }
    facts
}

/// The PARTUUID of the partition that the boot loader came from; `None` where it does not say, or that can't be read.
pub fn loader_device(firmware: &dyn Firmware) -> Option<Uuid> {
    utf16(&firmware.variable(DEVICE).ok()??)?.parse().ok()
}

fn variable(firmware: &dyn Firmware, name: &str, unread: &mut Vec<String>) -> Option<Vec<u8>> {
    firmware.variable(name).unwrap_or_else(|error| {
        unread.push(format!("the EFI variable {name}: {error}"));
        None
    })
}

/// The same whatever its length, with what is no text replaced: what is compared with names that are known.
pub(super) fn lossy_utf16(bytes: &[u8]) -> String {
    let units = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair.first().copied().unwrap_or(0), pair.last().copied().unwrap_or(0)]));
    String::from_utf16_lossy(&units.take_while(|unit| *unit != 0).take(MAX_TEXT).collect::<Vec<_>>())
}

/// A text variable of the boot loader: UTF-16, little endian, with a NUL. `None` if it is longer than what is kept.
fn utf16(bytes: &[u8]) -> Option<String> {
    let units: Vec<u16> = bytes
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair.first().copied().unwrap_or(0), pair.last().copied().unwrap_or(0)]))
        .take_while(|unit| *unit != 0)
        .take(MAX_TEXT + 1)
        .collect();
    (units.len() <= MAX_TEXT).then(|| String::from_utf16_lossy(&units))
}

/// The lines of loader.conf that pick an entry, and why one was not read.
fn configured(text: &str) -> Vec<Result<Pin, String>> {
    let pin = |line: &str| {
        let (key, value) = key_and_value(line)?;
        let (place, minds_tries) = match key {
            "default" => ("default in loader.conf", false),
            "preferred" => ("preferred in loader.conf", true),
            _ => return None,
        };
        if value.chars().nth(MAX_TEXT).is_some() {
            return Some(Err(format!("{place} is longer than {MAX_TEXT} characters")));
        }
        Some(Ok(Pin { place, pattern: value.to_owned(), minds_tries }))
    };
    text.split(['\n', '\r']).filter_map(pin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_read_from_loader_conf() {
        let conf =
            "timeout 0\n# default x\ndefault\tacme_1.0*  \npreferred @saved\r\ndefaults no\ndefault \"acme_*\"\n";
        let pins: Vec<_> = configured(conf).into_iter().map(Result::unwrap).collect();
        let shown: Vec<_> = pins.iter().map(|pin| (pin.place, pin.pattern.as_str(), pin.minds_tries)).collect();
        assert_eq!(
            shown,
            [
                ("default in loader.conf", "acme_1.0*", false),
                ("preferred in loader.conf", "@saved", true),
                ("default in loader.conf", "acme_*", false),
            ]
        );
    }

    #[test]
    fn a_partition_of_the_boot_loader_that_can_not_be_told_is_none() {
        struct Says(&'static str);
        impl Firmware for Says {
            fn variable_of(&self, _: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
                assert_eq!(name, DEVICE);
                match self.0 {
                    "unset" => Ok(None),
                    "unread" => Err(io::Error::from_raw_os_error(5)),
                    text => Ok(Some(text.encode_utf16().flat_map(u16::to_le_bytes).collect())),
                }
            }
        }
        let uuid = "11111111-2222-4333-8444-555555555555";
        assert_eq!(loader_device(&Says("11111111-2222-4333-8444-555555555555\0")), Some(uuid.parse().unwrap()));
        for none in ["unset", "unread", "", "no uuid"] {
            assert_eq!(loader_device(&Says(none)), None, "{none}");
        }
    }

    /// Cut off after the stars, it would fit everything and stand in nobody's way.
    #[test]
    fn a_pin_that_is_too_long_to_be_kept_was_not_read() {
        let stars = "*".repeat(512);
        assert!(configured(&format!("default {stars}\n")).iter().all(Result::is_ok));
        let found = configured(&format!("default {stars}x\n"));
        assert!(matches!(found.as_slice(), [Err(why)] if why.contains("default in loader.conf")), "{found:?}");
        let units = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        assert_eq!(utf16(&units(&format!("{stars}\0"))), Some(stars.clone()));
        assert_eq!(utf16(&units(&format!("{stars}x"))), None);
    }
}
