//! Writing a disk: the table, the boot partitions, the first release in slot A; and for a new file the state partition too.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use bascule_gpt::{Medium, Partition, Table, TableError};
use bascule_image::Sha256;
use bascule_names::Architecture;
use uuid::Uuid;

use crate::boot::BootFiles;
use crate::fat::write_boot_partition;
use crate::medium::NewFile;
use crate::partitions::{ESP, STATE, SlotNumbers, XBOOTLDR, own, partitions};
use crate::size::Sizes;
use crate::state::{self, StateError};

/// Bytes that are copied at once.
const STEP: usize = 1 << 20;

/// Why a disk could not be made. A disk that was begun is no disk: throw it away.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The table can't be put together or written.
    #[error("can't write the partition table")]
    Table(#[from] TableError),
    /// A partition that was just made is not there.
    #[error("the partition table does not read back as it was written: partition {0} is missing")]
    ReadBack(u32),
    /// A boot partition can't be filled.
    #[error("can't make the file system of the {which}; if it is full, make the partition larger")]
    Boot {
        /// Its label.
        which: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The content of a slot is longer than its partition.
    #[error("the {what} has more than the {length} bytes of its partition: make the slots larger")]
    Slot {
        /// Image or hash tree.
        what: &'static str,
        /// Bytes of the partition.
        length: u64,
    },
    /// Reading what goes onto the disk, or writing the disk, failed.
    #[error("can't {doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The state partition can't be made.
    #[error("can't make the state partition")]
    State(#[from] StateError),
}

/// The release that a host is installed with. Whoever gives it has verified it: nothing here compares the image with its root
/// hash.
pub struct Installed<'a> {
    /// Version: label of the partitions, 36 characters at most.
    pub version: &'a str,
    /// Which processors it is for: decides the partitions' types.
    pub architecture: Architecture,
    /// dm-verity root hash.
    pub root_hash: Sha256,
    /// The image.
    pub data: &'a mut dyn Read,
    /// Superblock and hash tree.
    pub verity: &'a mut dyn Read,
}

impl std::fmt::Debug for Installed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Installed")
            .field("version", &self.version)
            .field("architecture", &self.architecture)
            .field("root_hash", &self.root_hash)
            .finish_non_exhaustive()
    }
}

/// Everything on a disk beside the first release.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// How large the parts are.
    pub sizes: Sizes,
    /// The disk's UUID, from which the others follow.
    pub identity: Uuid,
    /// What lies on the ESP.
    pub esp: &'a BootFiles,
    /// What lies on the extended boot loader partition, where there is one.
    pub xbootldr: &'a BootFiles,
}

/// Writes a new disk to the file `path`, which must not be there, and flushes it: partitions, first release, and a state
/// partition with the files of `state`. Gives the partitions as they lie on the disk. A file that was begun is left for the caller
/// to throw away.
///
/// # Errors
/// Something can't be read or written, or has no room.
pub fn make(
    path: &Path,
    plan: Plan<'_>,
    first: &mut Installed<'_>,
    state: Option<&Path>,
) -> Result<Vec<Partition>, DiskError> {
    let failed = |source| DiskError::Io { doing: format!("write {}", path.display()), source };
    let file = File::options().read(true).write(true).create_new(true).open(path).map_err(failed)?;
    file.set_len(plan.sizes.disk()).map_err(failed)?;
    let medium = NewFile::new(&file, plan.sizes.sector);
    let found = provision(&medium, plan, first)?;
    let part = find(&found, STATE)?;
    state::make(path, part.start, part.length, part.uuid, state)?;
    file.sync_all().map_err(failed)?;
    Ok(found)
}

/// Writes table, boot partitions and slot A to a medium that is long enough, over whatever is there. Slot B and the state
/// partition are left as they are. Gives the partitions in the order in which they lie on the disk.
///
/// # Errors
/// Something can't be read or written, or has no room.
pub fn provision(
    medium: &(impl Medium + ?Sized),
    plan: Plan<'_>,
    first: &mut Installed<'_>,
) -> Result<Vec<Partition>, DiskError> {
    let geometry =
        medium.geometry().map_err(|source| DiskError::Io { doing: "measure the disk".to_owned(), source })?;
    let wanted = partitions(plan.sizes, plan.identity, first.architecture, first.version, first.root_hash);
    Table::create(geometry, plan.identity, plan.sizes.alignment, &wanted)?.install(medium)?;
    let mut found = Table::read(medium)?.partitions();
    found.sort_by_key(|part| part.start);
    for (number, label, files) in [(ESP, "ESP", plan.esp), (XBOOTLDR, "XBOOTLDR", plan.xbootldr)] {
        if number == XBOOTLDR && plan.sizes.xbootldr == 0 {
            continue;
        }
        let part = find(&found, number)?;
        let boot = |source| DiskError::Boot { which: label, source };
        // The last four bytes: what differs between the partitions of a disk, too.
        let serial = own(plan.identity, number).as_u128() as u32;
        let write = |offset: u64, bytes: &[u8]| medium.write(part.start + offset, bytes);
        write_boot_partition(part.length, plan.sizes.sector, label, serial, files, write).map_err(boot)?;
    }
    copy(first.data, medium, find(&found, SlotNumbers::A.data)?, "image")?;
    copy(first.verity, medium, find(&found, SlotNumbers::A.verity)?, "hash tree")?;
    medium.flush().map_err(|source| DiskError::Io { doing: "flush the disk".to_owned(), source })?;
    Ok(found)
}

fn find(found: &[Partition], number: u32) -> Result<&Partition, DiskError> {
    found.iter().find(|part| part.number == number).ok_or(DiskError::ReadBack(number))
}

/// Copies a stream to the start of a partition.
fn copy(
    from: &mut dyn Read,
    medium: &(impl Medium + ?Sized),
    part: &Partition,
    what: &'static str,
) -> Result<(), DiskError> {
    let mut buffer = Vec::with_capacity(STEP);
    let mut offset = 0;
    loop {
        buffer.clear();
        let step = (&mut *from).take(STEP as u64).read_to_end(&mut buffer);
        step.map_err(|source| DiskError::Io { doing: format!("read the {what}"), source })?;
        if buffer.is_empty() {
            return Ok(());
        }
        let end = offset + buffer.len() as u64;
        if end > part.length {
            return Err(DiskError::Slot { what, length: part.length });
        }
        let writing = medium.write(part.start + offset, &buffer);
        writing.map_err(|source| DiskError::Io { doing: format!("write the {what}"), source })?;
        offset = end;
    }
}
