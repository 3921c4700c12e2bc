//! Writing a disk: boot partitions, the first release in slot A, the state partition, and the table last, so that what was begun is
//! no disk that anything boots from.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bascule_gpt::{Geometry, Health, Medium, Partition, Table, TableError};
use bascule_image::Sha256;
use bascule_names::Architecture;
use uuid::Uuid;

use crate::boot::BootFiles;
use crate::fat::{Pieces, file_system};
use crate::medium::NewFile;
use crate::partitions::{ESP, STATE, SlotNumbers, XBOOTLDR, own, partitions};
use crate::size::{SECTOR, Sizes};
use crate::sparse;
use crate::state::{self, StateError, StateFiles, Unwritten};

/// Bytes that are copied at once.
const STEP: usize = 1 << 20;
/// Bytes at the beginning and the end of the disk and of each partition in which nothing of an earlier use stays: labels of RAID,
/// LVM, ZFS and file systems lie there.
const EDGE: u64 = 1 << 20;
/// So large a file is not copied where all of it is said to be in use: that is holes which the file system below does not tell.
const WITHOUT_HOLES: u64 = 4 << 30;

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
    /// What was written does not read back. There is no partition table yet, so nothing boots from it.
    #[error("what was written at byte {offset} does not read back as it was written: the disk lies, replace it")]
    Lies {
        /// Where on the disk.
        offset: u64,
    },
    /// The state partition can't be made.
    #[error("can't make the state partition")]
    State(#[from] StateError),
}

/// How far an installation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many bytes of the release, image and hash tree together, are written.
    Written(u64),
    /// So much of what was written was read back and is right.
    ReadBack {
        /// Bytes.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
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

/// What goes onto a disk beside the release and the state, made before anything is written.
struct Laid {
    table: Table,
    /// In the order in which they lie on the disk.
    parts: Vec<Partition>,
    /// Boot partitions: where they begin, their label, and their file system.
    boot: Vec<(u64, &'static str, Pieces)>,
}

/// Writes a new disk to the file `path`, which must not be there, and flushes it: partitions, first release, and a state
/// partition with its first files. Gives the partitions as they lie on the disk. A file that was begun is left for the caller
/// to throw away.
///
/// # Errors
/// Something can't be read or written, or has no room.
pub fn make(
    path: &Path,
    plan: Plan<'_>,
    first: &mut Installed<'_>,
    state: StateFiles<'_>,
) -> Result<Vec<Partition>, DiskError> {
    let failed = |source| DiskError::Io { doing: format!("write {}", path.display()), source };
    let laid = lay_out(Geometry { length: plan.sizes.disk(), sector: SECTOR }, plan, first)?;
    let file = File::options().read(true).write(true).create_new(true).open(path).map_err(failed)?;
    file.set_len(plan.sizes.disk()).map_err(failed)?;
    let medium = NewFile::new(&file);
    fill(&medium, &laid, first, &mut |_| {})?;
    finish(&medium, &laid)?;
    let part = find(&laid.parts, STATE)?;
    state::make(path, part.start, part.length, part.uuid, Unwritten::Zeros, state)?;
    file.sync_all().map_err(failed)?;
    Ok(laid.parts)
}

/// Installs on a disk that may have been used before. Whoever calls has looked whether it may be written ([`crate::judge`]).
///
/// First everything is made that can fail without the disk, in the folder `scratch`. Then both copies of the old partition table go,
/// the content is written, flushed and read back through `medium`, and the new table is written last: a disk on which this broke
/// off has no table, and nothing boots from it. Gives the partitions as they lie on the disk.
///
/// # Errors
/// Something can't be read or written, has no room, or does not read back.
pub fn install(
    medium: &(impl Medium + ?Sized),
    plan: Plan<'_>,
    first: &mut Installed<'_>,
    state: StateFiles<'_>,
    scratch: &Path,
    watch: &mut dyn FnMut(Step),
) -> Result<Vec<Partition>, DiskError> {
    let geometry =
        medium.geometry().map_err(|source| DiskError::Io { doing: "measure the disk".to_owned(), source })?;
    let laid = lay_out(geometry, plan, first)?;
    let part = find(&laid.parts, STATE)?;
    let (state, used) = make_state(part, state, scratch)?;

    clear(medium, geometry, &laid.parts)?;
    let recorded = Recorded { medium, written: RefCell::default() };
    let mut done = 0;
    fill(&recorded, &laid, first, &mut |bytes| {
        done += bytes;
        watch(Step::Written(done));
    })?;
    for (offset, length) in used {
        copy_range(&state, offset, length, &recorded, part)?;
    }
    medium.flush().map_err(|source| DiskError::Io { doing: "flush the disk".to_owned(), source })?;
    read_back(medium, &recorded.written.into_inner(), watch)?;
    finish(medium, &laid)?;
    Ok(laid.parts)
}

/// Puts table and file systems together.
fn lay_out(geometry: Geometry, plan: Plan<'_>, first: &Installed<'_>) -> Result<Laid, DiskError> {
    let wanted = partitions(plan.sizes, plan.identity, first.architecture, first.version, first.root_hash);
    let table = Table::create(geometry, plan.identity, plan.sizes.alignment, &wanted)?;
    let mut parts = table.partitions();
    parts.sort_by_key(|part| part.start);
    let mut boot = Vec::new();
    for (number, label, files) in [(ESP, "ESP", plan.esp), (XBOOTLDR, "XBOOTLDR", plan.xbootldr)] {
        if number == XBOOTLDR && plan.sizes.xbootldr == 0 {
            continue;
        }
        let part = find(&parts, number)?;
        // The last four bytes: what differs between the partitions of a disk, too.
        let serial = own(plan.identity, number).as_u128() as u32;
        let pieces = file_system(part.length, geometry.sector, label, serial, files);
        let pieces = pieces.map_err(|source| DiskError::Boot { which: label, source })?;
        boot.push((part.start, label, pieces));
    }
    Ok(Laid { table, parts, boot })
}

/// Makes the file system of the state partition in a file: which it is, and which of its bytes are to be copied.
fn make_state(part: &Partition, files: StateFiles<'_>, scratch: &Path) -> Result<(File, Vec<(u64, u64)>), DiskError> {
    let path = scratch.join("state");
    let failed = |source| DiskError::Io { doing: format!("write {}", path.display()), source };
    let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(failed)?;
    file.set_len(part.length).map_err(failed)?;
    state::make(&path, 0, part.length, part.uuid, Unwritten::Anything, files)?;
    let used = sparse::written(&file, part.length).map_err(failed)?;
    let bytes: u64 = used.iter().map(|(_, length)| length).sum();
    if !is_likely(bytes, part.length) {
        return Err(StateError::Holes(scratch.to_owned()).into());
    }
    Ok((file, used))
}

/// Whether so many bytes of a new state partition's file can be what is in use of it.
const fn is_likely(used: u64, length: u64) -> bool {
    // The journal is written whole. Were it a hole, an old one would stay on the disk and be replayed.
    used >= state::journal(length) && (used < length || length <= WITHOUT_HOLES)
}

/// Takes away what the disk was used for: first both copies of a partition table, then what lies at the edges of the new partitions.
fn clear(medium: &(impl Medium + ?Sized), geometry: Geometry, parts: &[Partition]) -> Result<(), DiskError> {
    let failed = |source| DiskError::Io { doing: "take away what the disk was used for".to_owned(), source };
    let edges = |start: u64, length: u64| {
        let edge = EDGE.min(length);
        [(start, edge), (start + length - edge, edge)]
    };
    let zeros = vec![0; STEP];
    let write = |(offset, length): (u64, u64)| {
        let length = usize::try_from(length).unwrap_or(STEP);
        medium.write(offset, zeros.get(..length).unwrap_or(&zeros)).map_err(failed)
    };
    edges(0, geometry.length).into_iter().try_for_each(write)?;
    medium.flush().map_err(failed)?;
    parts.iter().flat_map(|part| edges(part.start, part.length)).try_for_each(write)
}

/// Writes boot partitions and slot A; tells how many bytes of the release each time. Slot B is left as it is.
fn fill(
    medium: &(impl Medium + ?Sized),
    laid: &Laid,
    first: &mut Installed<'_>,
    moved: &mut dyn FnMut(u64),
) -> Result<(), DiskError> {
    for (start, which, pieces) in &laid.boot {
        for (offset, bytes) in pieces.written() {
            let writing = medium.write(start + offset, bytes);
            writing.map_err(|source| DiskError::Io { doing: format!("write the {which}"), source })?;
        }
    }
    copy(first.data, medium, find(&laid.parts, SlotNumbers::A.data)?, "image", moved)?;
    copy(first.verity, medium, find(&laid.parts, SlotNumbers::A.verity)?, "hash tree", moved)
}

/// Writes the table and looks whether it is there.
fn finish(medium: &(impl Medium + ?Sized), laid: &Laid) -> Result<(), DiskError> {
    medium.flush().map_err(|source| DiskError::Io { doing: "flush the disk".to_owned(), source })?;
    laid.table.install(medium)?;
    let table = Table::read(medium)?;
    let found = table.partitions();
    if let Some(lost) = laid.parts.iter().find(|part| !found.contains(part)) {
        return Err(DiskError::ReadBack(lost.number));
    }
    match table.health() {
        Health::Good => Ok(()),
        Health::BackupBroken => Err(TableError::ReadBack { which: "backup partition table" }.into()),
        Health::PrimaryBroken | Health::PrimaryUnread => {
            Err(TableError::ReadBack { which: "primary partition table" }.into())
        }
    }
}

fn find(found: &[Partition], number: u32) -> Result<&Partition, DiskError> {
    found.iter().find(|part| part.number == number).ok_or(DiskError::ReadBack(number))
}

/// Copies a stream to the start of a partition, the last sector filled up with zeros.
fn copy(
    from: &mut dyn Read,
    medium: &(impl Medium + ?Sized),
    part: &Partition,
    what: &'static str,
    moved: &mut dyn FnMut(u64),
) -> Result<(), DiskError> {
    let writing = |source| DiskError::Io { doing: format!("write the {what}"), source };
    let sector = usize::try_from(medium.geometry().map_err(writing)?.sector).unwrap_or(1).max(1);
    let mut buffer = Vec::with_capacity(STEP);
    let mut offset = 0;
    loop {
        buffer.clear();
        let step = (&mut *from).take(STEP as u64).read_to_end(&mut buffer);
        step.map_err(|source| DiskError::Io { doing: format!("read the {what}"), source })?;
        if buffer.is_empty() {
            return Ok(());
        }
        let bytes = buffer.len() as u64;
        buffer.resize(buffer.len().next_multiple_of(sector), 0);
        if offset + buffer.len() as u64 > part.length {
            return Err(DiskError::Slot { what, length: part.length });
        }
        medium.write(part.start + offset, &buffer).map_err(writing)?;
        offset += buffer.len() as u64;
        moved(bytes);
    }
}

/// Copies a piece of a file to the same place of a partition.
fn copy_range(
    from: &File,
    offset: u64,
    length: u64,
    medium: &(impl Medium + ?Sized),
    part: &Partition,
) -> Result<(), DiskError> {
    let mut buffer = vec![0; STEP];
    let end = offset + length;
    for at in (offset..end).step_by(STEP) {
        let count = usize::try_from((end - at).min(STEP as u64)).unwrap_or(STEP);
        let piece = buffer.get_mut(..count).unwrap_or_default();
        let reading = from.read_exact_at(piece, at);
        reading.map_err(|source| DiskError::Io { doing: "read the state partition's file".to_owned(), source })?;
        let writing = medium.write(part.start + at, piece);
        writing.map_err(|source| DiskError::Io { doing: "write the state partition".to_owned(), source })?;
    }
    Ok(())
}

/// What was written, and where.
struct Written {
    offset: u64,
    length: usize,
    digest: Sha256,
}

/// A disk of which is remembered what was written to it.
struct Recorded<'a, M: ?Sized> {
    medium: &'a M,
    written: RefCell<Vec<Written>>,
}

impl<M: Medium + ?Sized> Medium for Recorded<'_, M> {
    fn geometry(&self) -> io::Result<Geometry> {
        self.medium.geometry()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.medium.read(offset, buffer)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.medium.write(offset, bytes)?;
        let written = Written { offset, length: bytes.len(), digest: Sha256::of(bytes) };
        self.written.borrow_mut().push(written);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.medium.flush()
    }
}

/// Compares the disk with what was written.
fn read_back(
    medium: &(impl Medium + ?Sized),
    written: &[Written],
    watch: &mut dyn FnMut(Step),
) -> Result<(), DiskError> {
    let total: u64 = written.iter().map(|piece| piece.length as u64).sum();
    let (mut done, mut buffer) = (0, Vec::<u8>::new());
    for piece in written {
        buffer.resize(piece.length, 0);
        let reading = medium.read(piece.offset, &mut buffer);
        reading.map_err(|source| DiskError::Io { doing: "read back what was written".to_owned(), source })?;
        if Sha256::of(&buffer) != piece.digest {
            return Err(DiskError::Lies { offset: piece.offset });
        }
        done += piece.length as u64;
        watch(Step::ReadBack { done, total });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_first_files_are_told_from_holes_that_are_not_told() {
        let disk = 100 << 30;
        assert!(is_likely(6 << 30, disk), "container images among the first files");
        assert!(!is_likely(disk, disk), "no holes");
        assert!(is_likely(2 << 30, 2 << 30), "no holes, and soon copied");
        assert!(!is_likely(64 << 20, disk), "the journal is a hole");
    }
}
