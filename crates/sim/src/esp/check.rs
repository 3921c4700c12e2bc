//! What a file system check would find: files whose clusters are free, shared with another file, or too few. Such a file
//! may read well now and be overwritten by the next one; a power cut in the middle of a rename leaves exactly that. Beside
//! these, folders that do not begin with themselves and their parent: what corrects one may write over what lies behind it.
//!
//! Reads the structures of the Microsoft FAT specification by itself: the FAT driver under test would not see its own
//! mistakes.

use std::collections::BTreeMap;
use std::io;

use super::{Esp, folder, rename};

/// Bytes of a directory entry.
const SLOT: usize = 32;
/// Directories deeper than this are damage.
const MAX_DEPTH: usize = 8;

/// Numbers of the boot sector that say where everything lies.
#[derive(Debug)]
pub(super) struct Geometry {
    cluster: u64,
    fat: u64,
    /// Where the tables end. On FAT12 and FAT16 the root directory begins there.
    pub(super) root: u64,
    root_length: u64,
    data: u64,
    clusters: u32,
    /// First cluster of the root directory (FAT32 only).
    pub(super) root_cluster: Option<u32>,
}

/// The walk over one file system.
#[derive(Debug)]
struct Walk<'a> {
    esp: &'a Esp,
    geometry: Geometry,
    owners: BTreeMap<u32, String>,
    found: Vec<String>,
}

impl Esp {
    /// Everything that a file system check would complain about, but for clusters that belong to nobody: those only cost
    /// room. Errors: the file system can't be read at all.
    pub fn check(&self) -> io::Result<Vec<String>> {
        let geometry = Geometry::read(self)?;
        let mut walk = Walk { esp: self, owners: BTreeMap::new(), found: Vec::new(), geometry };
        let root = match walk.geometry.root_cluster {
            Some(cluster) => walk.content(cluster, "/", None)?,
            None => walk.bytes(walk.geometry.root, walk.geometry.root_length)?,
        };
        walk.directory(&root, "", 0)?;
        Ok(walk.found)
    }

    /// Whether a file has a cluster that is free, or none that there is. Linux finds it out when it frees them, takes it for damage and
    /// mounts the file system read-only (fs/fat/fatent.c, `fat_free_clusters`; mount(8), `errors=` of FAT).
    pub fn has_free_clusters(&self, path: &str) -> io::Result<bool> {
        let first = rename::first_cluster(self.part(), path)?;
        let geometry = Geometry::read(self)?;
        let walk = Walk { esp: self, owners: BTreeMap::new(), found: Vec::new(), geometry };
        let mut at = (first != 0).then_some(first);
        for _ in 0..walk.geometry.clusters {
            let Some(cluster) = at else { return Ok(false) };
            match walk.next(cluster)? {
                Ok(next) => at = next,
                Err(_) => return Ok(true),
            }
        }
        Ok(at.is_some())
    }
}

pub(super) fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes.get(at..at + length).unwrap_or(&[]).iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

impl Geometry {
    pub(super) fn read(esp: &Esp) -> io::Result<Self> {
        let mut boot = [0; 512];
        esp.part().read(0, &mut boot)?;
        let field = |at, length| number(&boot, at, length);
        let (sector, reserved, fats) = (field(11, 2), field(14, 2), field(16, 1));
        let cluster = sector * field(13, 1);
        let or = |small: u64, large: u64| if small == 0 { large } else { small };
        let (fat_sectors, sectors) = (or(field(22, 2), field(36, 4)), or(field(19, 2), field(32, 4)));
        if sector == 0 || cluster == 0 || sectors == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the boot sector is no FAT's"));
        }
        let root = (reserved + fats * fat_sectors) * sector;
        let root_length = field(17, 2) * SLOT as u64;
        let data = root + root_length.next_multiple_of(sector);
        let clusters = (sectors * sector).saturating_sub(data) / cluster;
        let root_cluster = (field(22, 2) == 0).then(|| field(44, 4) as u32);
        let (fat, clusters) = (reserved * sector, clusters as u32);
        Ok(Self { cluster, fat, root, root_length, data, clusters, root_cluster })
    }
}

impl Walk<'_> {
    fn bytes(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        self.esp.part().read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// What the table says follows a cluster: `Ok(None)` at the end of a chain, an error text for what is no chain.
    fn next(&self, cluster: u32) -> io::Result<Result<Option<u32>, &'static str>> {
        // The number of clusters decides how wide an entry is (section 3.5).
        let (width, value) = match self.geometry.clusters {
            0..4085 => {
                let at = self.geometry.fat + u64::from(cluster) + u64::from(cluster / 2);
                let pair = number(&self.bytes(at, 2)?, 0, 2) as u32;
                (12, if cluster % 2 == 1 { pair >> 4 } else { pair & 0xfff })
            }
            4085..65525 => (16, number(&self.bytes(self.geometry.fat + u64::from(cluster) * 2, 2)?, 0, 2) as u32),
            _ => {
                let at = self.geometry.fat + u64::from(cluster) * 4;
                (28, number(&self.bytes(at, 4)?, 0, 4) as u32 & 0x0fff_ffff)
            }
        };
        let end = (1u32 << width) - 8;
        Ok(match value {
            0 => Err("a cluster that is free"),
            _ if value >= end => Ok(None),
            2.. if value < self.geometry.clusters + 2 => Ok(Some(value)),
            _ => Err("a cluster that does not exist"),
        })
    }

    /// Follows a chain and claims its clusters for `owner`. Without a `size` it is a directory, whose bytes are given; with
    /// one it is a file, which must have as many clusters as that takes.
    fn content(&mut self, first: u32, owner: &str, size: Option<u64>) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut length = 0u64;
        let mut at = Some(first);
        while let Some(cluster) = at {
            if let Some(other) = self.owners.insert(cluster, owner.to_owned()) {
                self.found.push(format!("{owner} shares a cluster with {other}"));
                return Ok(bytes);
            }
            length += self.geometry.cluster;
            if size.is_none() {
                let offset = self.geometry.data + u64::from(cluster.saturating_sub(2)) * self.geometry.cluster;
                bytes.extend(self.bytes(offset, self.geometry.cluster)?);
            }
            at = match self.next(cluster)? {
                Ok(next) => next,
                Err(what) => {
                    self.found.push(format!("{owner} has {what}"));
                    None
                }
            };
        }
        if let Some(size) = size.filter(|size| size.next_multiple_of(self.geometry.cluster) != length) {
            self.found.push(format!("{owner} has {size} bytes by its entry, {length} in its clusters"));
        }
        Ok(bytes)
    }

    fn directory(&mut self, bytes: &[u8], path: &str, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            self.found.push(format!("{path} is too deep"));
            return Ok(());
        }
        for slot in bytes.chunks_exact(SLOT) {
            let attributes = number(slot, 11, 1);
            let first_byte = number(slot, 0, 1);
            if first_byte == 0 {
                break;
            }
            // Free, a part of a long name, a volume label, or the directory itself and its parent.
            if first_byte == 0xe5 || attributes & 0x08 != 0 || first_byte == u64::from(b'.') {
                continue;
            }
            let short = String::from_utf8_lossy(slot.get(..11).unwrap_or_default()).trim().to_owned();
            let name = format!("{path}/{short}");
            let first = (number(slot, 20, 2) << 16 | number(slot, 26, 2)) as u32;
            let size = number(slot, 28, 4);
            if attributes & 0x10 != 0 {
                let content = self.content(first, &name, None)?;
                if !folder::begins_well(&content) {
                    self.found.push(format!("{name} does not begin with itself and its parent"));
                }
                self.directory(&content, &name, depth + 1)?;
            } else if size > 0 || first != 0 {
                self.content(first, &name, Some(size))?;
            }
        }
        Ok(())
    }
}
