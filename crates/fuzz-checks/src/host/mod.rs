//! What a node reads: its partition table, the agent's own files, and what the firmware judges boot images by.

pub(crate) mod seeds;

use std::io;
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use bascule_agent::boot::{Program, parse_text_entry};
use bascule_agent::gpt::{Change, Table};
use bascule_agent::host::{Disk, DiskGeometry, Extent};
use bascule_agent::settings::{Settings, Sources};
use bascule_agent_core::Journal;
use bascule_image::io::{ReadAt, Sink};
use bascule_repository::tuf::Refresh;
use bascule_repository::{DatastoreLocation, remembered};
use bascule_secure_boot::{Databases, SignatureList, SignedImage, judge, parse_lists};
use ring::digest::SHA256;

const SECTOR: usize = 512;
/// Sectors of the disk in [`gpt`]: two tables and a little between them.
const SECTORS: usize = 128;

/// A disk in memory that can be read and written as a whole, nothing else.
struct Memory(Mutex<Vec<u8>>);

impl Disk for Memory {
    fn geometry(&self) -> io::Result<DiskGeometry> {
        let length = self.0.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        Ok(DiskGeometry { length, sector: SECTOR as u64 })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read_at(buffer, offset)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let to = disk.get_mut(start..start.saturating_add(bytes.len())).ok_or(io::ErrorKind::InvalidInput)?;
        to.copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn partition(&self, _: u32, _: Extent) -> io::Result<Box<dyn Sink>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn partition_direct(&self, _: u32, _: Extent) -> io::Result<Box<dyn ReadAt>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn partition_read(&self, _: u32, _: Extent) -> io::Result<Box<dyn ReadAt>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// CRC-32 as partition tables have it (UEFI 2.10, 5.3.2). Without right sums all changes would end at the first check.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 })
    })
}

/// Puts right sums into a header and over the entries that it names, as far as it names any.
fn sign(disk: &mut [u8], header: usize) {
    let number = |disk: &[u8], at: usize, width: usize| -> usize {
        let bytes = disk.get(at..at + width).unwrap_or_default();
        bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)).try_into().unwrap_or(usize::MAX)
    };
    let start = number(disk, header + 72, 8).saturating_mul(SECTOR);
    let length = number(disk, header + 80, 4).saturating_mul(number(disk, header + 84, 4));
    if let Some(entries) = disk.get(start..start.saturating_add(length)) {
        let sum = crc(entries).to_le_bytes();
        disk.iter_mut().skip(header + 88).zip(sum).for_each(|(to, from)| *to = from);
    }
    disk.iter_mut().skip(header + 16).take(4).for_each(|byte| *byte = 0);
    let length = number(disk, header + 12, 4);
    if let Some(bytes) = disk.get(header..header.saturating_add(length)) {
        let sum = crc(bytes).to_le_bytes();
        disk.iter_mut().skip(header + 16).zip(sum).for_each(|(to, from)| *to = from);
    }
}

/// Whatever is read as a partition table can be written, and then says the same from both copies.
pub fn gpt(bytes: &[u8]) -> bool {
    let mut disk: Vec<u8> = bytes.iter().copied().take(SECTORS * SECTOR).collect();
    disk.resize(SECTORS * SECTOR, 0);
    sign(&mut disk, SECTOR);
    sign(&mut disk, (SECTORS - 1) * SECTOR);
    let disk = Memory(Mutex::new(disk));
    let Ok(mut table) = Table::read(&disk) else { return false };
    let before = table.partitions();
    for (_, partition) in &before {
        let change = Change { label: Some("1.0".to_owned()), ..Change::default() };
        table.change(partition.number, &change).expect("it is in use");
    }
    // A table that lies where none can be is not written; what is written reads back.
    if table.write(&disk).is_ok() {
        let after = Table::read(&disk).expect("what was written can be read").partitions();
        assert_eq!(after, table.partitions());
        assert_eq!(after.len(), before.len());
    }
    true
}

/// Whatever parses as a journal prints as something that parses as the same.
pub fn journal(bytes: &[u8]) -> bool {
    let Ok(journal) = Journal::parse(bytes) else { return false };
    let printed = journal.to_bytes().expect("what was read can be written");
    let again = Journal::parse(&printed).expect("what was written can be read");
    assert_eq!(again.to_bytes().expect("what was read can be written"), printed);
    true
}

/// No bytes in a settings file make the agent panic: each is a setting, or is refused with the file and line.
pub fn settings(bytes: &[u8]) -> bool {
    static FOLDER: LazyLock<tempfile::TempDir> =
        LazyLock::new(|| tempfile::tempdir().expect("there is a place for temporary files"));
    thread_local! {
        static FILE: PathBuf = FOLDER.path().join(format!("{:?}.toml", std::thread::current().id()));
    }
    FILE.with(|path| {
        std::fs::write(path, bytes).expect("a temporary file can be written");
        let sources = Sources { required: vec![path.clone()], ..Sources::default() };
        match Settings::load(&sources) {
            Ok(_) => true,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                let (_, complaint) = Settings::load_what_can_be_used(&sources).expect("the defaults can be used");
                assert!(complaint.is_some(), "what can't be used is said");
                let reported = Settings::load_to_report(&sources).expect("the defaults can be used");
                assert!(reported.impediment.is_some(), "nothing is done with what can't be used");
                false
            }
        }
    })
}

/// Whatever lies in the file in which a node remembers metadata, its reader ends with a memory or a reason, and an update that
/// begins with that memory ends too. What can't be parsed is set aside, which is no error (see `Datastore::open`).
pub fn memory(bytes: &[u8]) -> bool {
    thread_local! {
        static STORE: tempfile::TempDir = tempfile::tempdir().expect("there is a place for temporary files");
    }
    STORE.with(|store| {
        std::fs::write(store.path().join("trusted.json"), bytes).expect("a temporary file can be written");
        let location = DatastoreLocation::Persistent(store.path().to_owned());
        let Ok(memory) = remembered(&location) else { return false };
        let known = memory.timestamp.is_some() || memory.targets.is_some() || !memory.roots.is_empty();
        let root = crate::seeds::metadata().swap_remove(0);
        let now = crate::seeds::metadata_time();
        if let Ok(mut refresh) = Refresh::begin(&root, memory, now, crate::METADATA_LIMITS) {
            for answer in crate::seeds::metadata_answers() {
                if !matches!(refresh.step(Duration::ZERO), Ok(Some(_))) || refresh.came(answer.as_deref()).is_err() {
                    break;
                }
            }
        }
        known
    })
}

/// No bytes as `db` or `dbx` make the judge panic.
pub fn signature_list(bytes: &[u8]) -> bool {
    let Ok(list) = parse_lists(bytes) else { return false };
    let image = seeds::signed();
    for databases in [
        Databases { allowed: list.clone(), ..Databases::default() },
        Databases { forbidden: list, ..Databases::default() },
    ] {
        let _ = judge(&image, &databases);
    }
    true
}

/// The digests that somebody signed.
static SIGNED: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| seeds::image_signature().iter().filter_map(|file| digest(file)).collect());

fn digest(file: &[u8]) -> Option<Vec<u8>> {
    SignedImage::open(&file.to_vec()).ok()?.digest(&SHA256).ok()
}

/// No boot image makes the judge panic, and none is accepted that nobody signed: whatever is accepted has the digest of one
/// that was.
pub fn image_signature(bytes: &[u8]) -> bool {
    let databases = Databases {
        allowed: SignatureList { certificates: vec![seeds::CERTIFICATE.to_vec()], ..SignatureList::default() },
        ..Databases::default()
    };
    let file = bytes.to_vec();
    assert!(judge(&file, &Databases::default()).is_err(), "accepted by nobody");
    let accepted = judge(&file, &databases).is_ok();
    assert!(!accepted || digest(&file).is_some_and(|digest| SIGNED.contains(&digest)), "accepted with another content");
    accepted
}

/// An entry of type #1 is not shown, or is sorted by values of bounded length and names programs below the root of its partition.
/// What is not shown as an entry for this machine is not shown as one for another because of what it says of the processor.
pub fn text_entry(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some(entry) = parse_text_entry(&text, Some("x64")) else { return false };
    let facts = &entry.facts;
    for value in [&facts.sort_key, &facts.machine_id, &facts.version].into_iter().flatten() {
        assert!(value.chars().count() <= 512 && !value.contains(['\n', '\r']), "{value:?}");
    }
    assert!(!entry.programs.is_empty(), "an entry that starts nothing");
    for program in &entry.programs {
        let Program::File(path) = program else { continue };
        let plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        assert!(plain && !path.contains(['\\', '\n', '\r']), "{path:?}");
    }
    let anywhere = parse_text_entry(&text, None).expect("it is shown on this machine");
    assert_eq!(anywhere, entry);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_agent::gpt::TableError;

    /// Found by fuzzing: a right checksum over a backup's place that no disk has.
    #[test]
    fn a_place_where_no_copy_can_lie_is_not_written_to() {
        // So far that its bytes overflow, past the end, in a partition, over the primary copy, over the protective MBR.
        for backup in [0xB400_0000_0000_007F_u64, 200, 65, 20, 0] {
            let mut disk = seeds::gpt().remove(0);
            disk.splice(SECTOR + 32..SECTOR + 40, backup.to_le_bytes());
            sign(&mut disk, SECTOR);
            let before = disk.clone();
            let disk = Memory(Mutex::new(disk));
            let mut table = Table::read(&disk).unwrap();
            assert!(matches!(table.write(&disk), Err(TableError::Place { .. })), "{backup}");
            assert_eq!(*disk.0.lock().unwrap(), before, "{backup}");
        }
    }
}
