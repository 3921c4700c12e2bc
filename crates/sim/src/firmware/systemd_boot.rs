//! systemd-boot: list, sort, pick, count down, remember (src/boot/boot.c).

use std::io;

use bascule_image::digest::Sha256;

use super::entries::{Entry, load_all};
use super::{BootImage, Variables};
use crate::disk::Disk;
use crate::esp::Esp;
use crate::layout::{ESP_TYPE, Table, XBOOTLDR_TYPE};

/// LoaderFeatures of a systemd-boot that counts boots (bit 4), keeps LoaderEntryOneShot (bit 3) and
/// LoaderEntryDefault (bit 2), and knows sort-key (bit 8) and LoaderEntryPreferred (bit 19).
const FEATURES: u64 = 1 << 4 | 1 << 3 | 1 << 2 | 1 << 8 | 1 << 19;

/// What the loader hands the machine to.
#[derive(Clone, Debug)]
pub struct Picked {
    /// File name after it was counted down.
    pub file: String,
    /// Whether the name still has counters.
    pub counted: bool,
    /// Whether the firmware loads it. The loader counts first and loads then.
    pub starts: bool,
    /// The image's own words.
    pub image: BootImage,
    /// Digest of the whole image: a kernel that is torn in the middle would not run.
    pub digest: Sha256,
}

/// How this loader is broken, where it is. Real ones were: systemd #40192, #40405.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defects {
    /// It boots entries with counters but never renames them.
    pub does_not_count: bool,
    /// It sets no variable that says what it booted.
    pub tells_nothing: bool,
}

/// Starts once. `None` if there is nothing that could be booted. Errors: the disk or its tables can't be read.
pub fn pick(disk: &Disk, variables: &mut Variables, defects: Defects) -> io::Result<Option<Picked>> {
    variables.restart();
    let table = Table::read(disk)?;
    let esp = table.esp()?;
    let mut partitions = vec![esp.clone()];
    if let Some(number) = table.of_type(XBOOTLDR_TYPE) {
        partitions.push(Esp::new(table.part(number)?));
    }
    let entries = load_all(&partitions)?;
    let settings = esp.read("loader/loader.conf", 64 << 10).unwrap_or_default();
    let Some(entry) = select(&entries, variables, &String::from_utf8_lossy(&settings)) else {
        return Ok(None);
    };
    variables.unset("LoaderEntryOneShot");

    let mut file = entry.file.clone();
    if let Some(next) = entry.next_file().filter(|_| !defects.does_not_count) {
        disk.note(format!("firmware: count {file} down to {next}"));
        let esp = partitions.iter().find(|esp| esp.part().cache().0 == entry.partition).unwrap_or(&esp);
        // A failure to count is logged by the real one and does not stop the boot.
        let renamed = if next == file {
            Ok(())
        } else {
            esp.rename(&format!("{}/{file}", entry.directory), &format!("{}/{next}", entry.directory))
        };
        if renamed.and_then(|()| esp.sync()).is_ok() {
            file = next;
            if !defects.tells_nothing {
                variables
                    .set_string("LoaderBootCountPath", &format!("\\{}\\{file}", entry.directory.replace('/', "\\")));
            }
        }
    }
    disk.note(format!("firmware: boot {file}"));
    if !defects.tells_nothing {
        variables.set_string("LoaderInfo", "systemd-boot 260 (simulated)");
        variables.set_bytes("LoaderFeatures", FEATURES.to_le_bytes().to_vec());
        variables.set_string("LoaderEntrySelected", &entry.id());
        let esp_uuid = table.of_type(ESP_TYPE).map(|number| table.unique(number)).unwrap_or_default();
        variables.set_string("LoaderDevicePartUUID", &esp_uuid.to_string());
        let ids = entries.iter().flat_map(|entry| entry.id().encode_utf16().chain([0]).collect::<Vec<_>>());
        variables.set_bytes("LoaderEntries", ids.flat_map(u16::to_le_bytes).collect());
    }
    let (counted, starts) = (entry.tries.is_some(), entry.starts);
    Ok(Some(Picked { counted, starts, file, image: entry.image.clone(), digest: entry.digest }))
}

/// One shot; then what is preferred, set in the firmware or in loader.conf, unless its tries are used up; then the default, likewise,
/// whatever its tries; then the first in order — which may be a bad one, if there is no other.
fn select<'a>(entries: &'a [Entry], variables: &Variables, settings: &str) -> Option<&'a Entry> {
    let configured = |wanted: &str| {
        settings.lines().find_map(|line| {
            let (key, value) = line.trim().split_once([' ', '\t'])?;
            (key == wanted).then(|| value.trim().to_owned())
        })
    };
    let wishes = [
        (variables.string("LoaderEntryOneShot"), false),
        (variables.string("LoaderEntryPreferred"), true),
        (configured("preferred"), true),
        (variables.string("LoaderEntryDefault"), false),
        (configured("default"), false),
    ];
    wishes
        .into_iter()
        .filter_map(|(wish, minds_tries)| Some((wish?.to_ascii_lowercase(), minds_tries)))
        .find_map(|(wish, minds_tries)| {
            let mut fit = entries.iter().filter(|entry| glob(wish.as_bytes(), entry.id().as_bytes()));
            fit.find(|entry| !minds_tries || entry.tries.is_none_or(|tries| tries.left > 0))
        })
        .or_else(|| entries.first())
}

/// `*` and `?`, as the loader's own fnmatch has them.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => glob(rest, text) || text.split_first().is_some_and(|(_, tail)| glob(pattern, tail)),
        (Some((b'?', rest)), Some((_, tail))) => glob(rest, tail),
        (Some((wanted, rest)), Some((found, tail))) => wanted == found && glob(rest, tail),
        _ => false,
    }
}
