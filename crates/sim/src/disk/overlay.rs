//! A page cache of one operation: a library (the FAT driver, the GPT writer) works on sectors held here, and what it
//! changed goes to the disk afterwards, whole sectors each once, as the kernel's buffer cache would send them.

use std::collections::BTreeMap;
use std::io;

use super::{Part, SECTOR, seek};

/// Number of Linux's errno.h; `std::io::ErrorKind` has no stable name for it.
const EIO: i32 = 5;

/// Sectors of a partition with changes on top.
#[derive(Clone, Debug)]
pub(crate) struct Overlay {
    part: Part,
    direct: bool,
    position: u64,
    /// The sector that was read last, as the partition holds it: drivers read a table in steps of two bytes.
    last: Option<(u64, [u8; SECTOR])>,
    /// Why the first access failed, by the error's number. From then on every access does.
    failed: Option<i32>,
    /// Changed sectors by number, each with the place in the order of first changes.
    changed: BTreeMap<u64, (usize, [u8; SECTOR])>,
}

impl Overlay {
    pub(crate) fn new(part: Part) -> Self {
        Self { part, direct: false, position: 0, last: None, failed: None, changed: BTreeMap::new() }
    }

    /// Reads whole sectors past the page cache, what is smaller (a driver's tables) through it.
    pub(crate) fn past_cache(part: Part) -> Self {
        Self { direct: true, ..Self::new(part) }
    }

    /// Whether an access failed. A library above may pass over that (fatfs frees the rest of a chain that it could not read, for
    /// ever); whoever called it must not.
    pub(crate) fn sound(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |number| Err(io::Error::from_raw_os_error(number)))
    }

    /// Reads from the partition. What failed once fails from then on.
    fn below(&mut self, direct: bool, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.sound()?;
        let read = if direct { self.part.read_direct(offset, buffer) } else { self.part.read(offset, buffer) };
        whole(read).inspect_err(|error| self.failed = Some(error.raw_os_error().unwrap_or(EIO)))
    }

    /// Sectors that differ from what the partition holds, in the order in which they were first changed. Also those that
    /// only the medium has otherwise: a cache does not compare what is written with what it has.
    pub(crate) fn changes(&self) -> io::Result<Vec<(u64, [u8; SECTOR])>> {
        let mut ordered = Vec::new();
        for (sector, (order, bytes)) in &self.changed {
            let (mut cached, mut medium) = ([0; SECTOR], [0; SECTOR]);
            self.part.peek(sector * SECTOR as u64, &mut cached, &mut medium)?;
            if cached != *bytes || medium != *bytes {
                ordered.push((*order, *sector, *bytes));
            }
        }
        ordered.sort_unstable_by_key(|(order, ..)| *order);
        Ok(ordered.into_iter().map(|(_, sector, bytes)| (sector, bytes)).collect())
    }

    /// One sector as it is now.
    pub(crate) fn sector(&mut self, sector: u64) -> io::Result<[u8; SECTOR]> {
        if let Some((_, bytes)) = self.changed.get(&sector) {
            return Ok(*bytes);
        }
        let mut bytes = [0; SECTOR];
        self.below(false, sector * SECTOR as u64, &mut bytes)?;
        Ok(bytes)
    }

    /// Replaces one sector.
    pub(crate) fn set_sector(&mut self, sector: u64, bytes: [u8; SECTOR]) {
        let order = self.changed.len();
        self.changed.entry(sector).and_modify(|(_, held)| *held = bytes).or_insert((order, bytes));
    }

    fn left(&self, wanted: usize) -> usize {
        self.part.length().saturating_sub(self.position).min(wanted as u64) as usize
    }
}

/// A medium that ends too early is an error to a file system above it (EIO, as Linux's buffer cache has it), and never the end of
/// something: the FAT driver would take it for the end of a directory, and files that are there for files that are not.
fn whole(read: io::Result<()>) -> io::Result<()> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(io::Error::from_raw_os_error(EIO)),
        outcome => outcome,
    }
}

/// Sends changed sectors to the partition's cache, neighbours in one write.
pub(crate) fn write_back(part: &Part, changes: &[(u64, [u8; SECTOR])]) -> io::Result<()> {
    let mut run: Option<(u64, Vec<u8>)> = None;
    for (sector, bytes) in changes {
        match &mut run {
            Some((first, data)) if *first + (data.len() / SECTOR) as u64 == *sector => data.extend_from_slice(bytes),
            _ => {
                if let Some((first, data)) = run.replace((*sector, bytes.to_vec())) {
                    part.write_all(first * SECTOR as u64, &data)?;
                }
            }
        }
    }
    match run {
        Some((first, data)) => part.write_all(first * SECTOR as u64, &data),
        None => Ok(()),
    }
}

impl io::Read for Overlay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.left(buffer.len());
        let Some(target) = buffer.get_mut(..count) else { return Ok(0) };
        let end = self.position + count as u64;
        let (sector, within) = (self.position / SECTOR as u64, (self.position % SECTOR as u64) as usize);
        if within + count <= SECTOR && count < SECTOR {
            if self.last.is_none_or(|(held, _)| held != sector) {
                let mut bytes = [0; SECTOR];
                self.below(false, sector * SECTOR as u64, &mut bytes)?;
                self.last = Some((sector, bytes));
            }
            if let Some(source) = self.last.as_ref().and_then(|(_, bytes)| bytes.get(within..within + count)) {
                target.copy_from_slice(source);
            }
        } else {
            self.below(self.direct, self.position, target)?;
        }
        let first = self.position / SECTOR as u64;
        for (sector, (_, bytes)) in self.changed.range(first..end.div_ceil(SECTOR as u64)) {
            let start = sector * SECTOR as u64;
            let from = start.max(self.position);
            let to = (start + SECTOR as u64).min(end);
            let inner = (from - start) as usize..(to - start) as usize;
            let outer = (from - self.position) as usize..(to - self.position) as usize;
            if let (Some(source), Some(place)) = (bytes.get(inner), target.get_mut(outer)) {
                place.copy_from_slice(source);
            }
        }
        self.position = end;
        Ok(count)
    }
}

impl io::Write for Overlay {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let within = (self.position % SECTOR as u64) as usize;
        let count = self.left(data.len()).min(SECTOR - within);
        let Some(source) = data.get(..count).filter(|source| !source.is_empty()) else { return Ok(0) };
        self.sound()?;
        let sector = self.position / SECTOR as u64;
        let mut bytes = if count == SECTOR { [0; SECTOR] } else { self.sector(sector)? };
        if let Some(place) = bytes.get_mut(within..within + count) {
            place.copy_from_slice(source);
        }
        self.set_sector(sector, bytes);
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl io::Seek for Overlay {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        self.position = seek(self.position, self.part.length(), to)?;
        Ok(self.position)
    }
}
