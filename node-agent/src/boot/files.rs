//! Boot images as files on the boot partition: read, laid down, compared, put in place.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bascule_api::{Digest, RootHash};
use bascule_image::digest::{Sha256, Sha256Stream};
use bascule_image::io::ReadAt;

use super::error::esp;
use super::{BootError, BootFolder};
use crate::core::ReleaseTarget;
use crate::core::boot::name::EntryName;
use crate::core::boot::{FileContent, parse_waiting, unfinished_name, waiting_name};
use crate::host::{Esp, FetchError, Inhibition};
use crate::uki;

/// How much is read at once.
const CHUNK: usize = 256 << 10;
/// How much of a boot image is written while shutdown is held back, before it is let go of again.
const PIECE: usize = 1 << 20;

/// Length of what is held back while a boot image gets its name: one sector, which a medium writes whole or not at all.
const START: usize = 512;
/// What stands there meanwhile. No boot loader takes it for a program.
const PLACEHOLDER: &[u8] = b"bascule: this boot image is not in its place yet\n";

fn placeholder() -> [u8; START] {
    let mut start = [0; START];
    start.iter_mut().zip(PLACEHOLDER).for_each(|(to, from)| *to = *from);
    start
}

fn read_start(esp_fs: &dyn Esp, path: &str) -> io::Result<[u8; START]> {
    let file = esp_fs.open(path)?;
    let mut start = [0; START];
    if file.size()? >= START as u64 {
        file.read_at(&mut start, 0)?;
    }
    Ok(start)
}

/// What a file of the agent's concern says of itself. What is not finished is nothing yet, and is not read.
pub(super) fn read_content(folder: &BootFolder, file: &str) -> Result<FileContent, BootError> {
    read_with_start(folder, file).map(|(content, _)| content)
}

/// The same, with the digest of its first sector where it has a whole one.
pub(super) fn read_with_start(folder: &BootFolder, file: &str) -> Result<(FileContent, Option<Digest>), BootError> {
    if EntryName::parse(file).is_none() && parse_waiting(file).is_none() {
        return Ok((FileContent::NotAnImage, None));
    }
    let path = folder.path(file);
    let start = read_start(&*folder.esp, &path).map_err(esp("reading", &path))?;
    if start == placeholder() {
        return Ok((FileContent::Placeholder, None));
    }
    let opened = folder.esp.open(&path).map_err(esp("opening", &path))?;
    let has_start = opened.size().map_err(esp("measuring", &path))? >= START as u64;
    let content = uki::read(&*opened).map_err(esp("reading", &path))?;
    Ok((content, has_start.then(|| Sha256::of(&start).into())))
}

/// Renames a boot image that never ran here to a name with a counter, durably.
///
/// A long name on FAT is several directory entries. Where those lie in two sectors, power loss can leave the short name
/// alone, which has no counter: the boot loader would take the image for a committed one and start it for ever. So the image
/// is no program until its name is whole (docs/decisions/0005-a-trial-is-what-nobody-began-to-commit.md).
pub(super) fn put_in_place(esp_fs: &dyn Esp, from: &str, to: &str) -> Result<(), BootError> {
    let start = read_start(esp_fs, from).map_err(esp("reading", from))?;
    esp_fs.write_start(from, &placeholder()).map_err(esp("writing", from))?;
    esp_fs.sync().map_err(esp("syncing", from))?;
    if let Err(error) = esp_fs.rename(from, to) {
        // Nothing has changed but the start. If that can't be brought back either, the image is fetched again.
        let _ = esp_fs.write_start(from, &start).and_then(|()| esp_fs.sync());
        return Err(esp("renaming", from)(error));
    }
    esp_fs.sync().map_err(esp("syncing", to))?;
    esp_fs.write_start(to, &start).map_err(esp("writing", to))?;
    esp_fs.sync().map_err(esp("syncing", to))?;
    if read_start(esp_fs, to).map_err(esp("reading", to))? == start {
        return Ok(());
    }
    // It must start nothing. If this does not reach the medium either, what lies there is still no whole image, and the
    // count of tries ends it.
    let _ = esp_fs.write_start(to, &placeholder()).and_then(|()| esp_fs.sync());
    let reason = "its first sector read back as something else than was written".to_owned();
    Err(BootError::Uki { path: to.to_owned(), reason })
}

/// The digest and length of a file.
pub(super) fn digest(esp_fs: &dyn Esp, path: &str) -> Result<(Digest, u64), BootError> {
    let file = esp_fs.open(path).map_err(esp("opening", path))?;
    let length = file.size().map_err(esp("measuring", path))?;
    let mut stream = Sha256Stream::new();
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let step = usize::try_from((length - at).min(CHUNK as u64)).unwrap_or(CHUNK);
        let part = buffer.get_mut(..step).unwrap_or_default();
        file.read_at(part, at).map_err(esp("reading", path))?;
        stream.update(part);
        at += step as u64;
    }
    Ok((stream.finish().into(), length))
}

/// Compares a file with what the target says of its boot image.
///
/// # Errors
/// It can't be read, or is another.
pub fn verify(esp_fs: &dyn Esp, path: &str, target: &ReleaseTarget) -> Result<(), BootError> {
    let wrong = |reason: String| BootError::Uki { path: path.to_owned(), reason };
    match &target.uki {
        Some((expected, size)) => {
            let (found, length) = digest(esp_fs, path)?;
            if length != *size || found != *expected {
                return Err(wrong(format!("signed are {size} bytes with {expected}, found {length} with {found}")));
            }
        }
        None => {
            let file = esp_fs.open(path).map_err(esp("opening", path))?;
            let names_it = names_root_hash(&*file, &target.root_hash).map_err(esp("reading", path))?;
            if !names_it {
                return Err(wrong(format!("its command line does not name {}", target.root_hash)));
            }
        }
    }
    Ok(())
}

/// Whether the command line of a boot image names a root hash.
pub(super) fn names_root_hash(file: &dyn ReadAt, root_hash: &RootHash) -> io::Result<bool> {
    Ok(uki::read(file)?.root_hash() == Some(root_hash))
}

/// Opens a boot image that the firmware itself would start; `None` where a boot loader of another kind does that.
///
/// # Errors
/// It can't be opened.
pub fn open(folder: &BootFolder, file: &str) -> Result<Option<Box<dyn ReadAt>>, BootError> {
    if !folder.holds_entries() {
        return Ok(None);
    }
    let path = folder.path(file);
    folder.esp.open(&path).map(Some).map_err(esp("opening", &path))
}

type Fetch<'a> = &'a mut dyn FnMut(&mut dyn Write) -> Result<(), FetchError>;

/// Holds shutdown back for a moment.
pub type HoldShutdown<'a> = &'a (dyn Fn() -> Option<Box<dyn Inhibition>> + Sync);

/// Brings a boot image into a folder under its waiting name: written under another one first, made durable, read back,
/// renamed, made durable. Shutdown is held back only while something is being written, not while it is fetched.
///
/// # Errors
/// Fetching or the file system failed, or what came is not what was signed: nothing waits then.
pub fn lay_down(
    folder: &BootFolder,
    target: &ReleaseTarget,
    hold: HoldShutdown<'_>,
    fetch: Fetch<'_>,
) -> Result<(), BootError> {
    let Some((expected, _)) = &target.uki else { return Err(BootError::Unknown) };
    let esp_fs = &*folder.esp;
    let waiting = waiting_name(expected);
    let (final_path, part) = (folder.path(&waiting), folder.path(&unfinished_name(expected)));
    let files = esp_fs.list(folder.directory).map_err(esp("listing", folder.directory))?;
    let stands = files.iter().any(|file| file.name == waiting);
    if stands {
        match verify(esp_fs, &final_path, target) {
            Ok(()) => return Ok(()),
            // What could not be read is not taken away for that.
            Err(error @ BootError::Esp { .. }) => return Err(error),
            Err(_) => {}
        }
    }
    copy(esp_fs, &part, hold, fetch)?;
    let _held = hold();
    esp_fs.sync().map_err(esp("syncing", &part))?;
    verify(esp_fs, &part, target)?;
    if stands {
        // Its name says which image it is to be, and it is another.
        esp_fs.remove(&final_path).map_err(esp("removing", &final_path))?;
    }
    esp_fs.rename(&part, &final_path).map_err(esp("renaming", &part))?;
    esp_fs.sync().map_err(esp("syncing", &final_path))
}

/// Writes a copy of a file and reads it back.
pub(super) fn copy_of(esp_fs: &dyn Esp, from: &str, to: &str) -> Result<(), BootError> {
    let file = esp_fs.open(from).map_err(esp("opening", from))?;
    let size = file.size().map_err(esp("measuring", from))?;
    esp_fs.write(to, &mut Reader { file: &*file, at: 0, size }).map_err(esp("writing", to))?;
    esp_fs.sync().map_err(esp("syncing", to))?;
    if digest(esp_fs, to)? != digest(esp_fs, from)? {
        let reason = "a copy of it read back as something else".to_owned();
        return Err(BootError::Uki { path: from.to_owned(), reason });
    }
    Ok(())
}

/// Reads a file from front to end.
struct Reader<'a> {
    file: &'a dyn ReadAt,
    at: u64,
    size: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
        let count = buffer.len().min(left).min(CHUNK);
        let Some(part) = buffer.get_mut(..count).filter(|part| !part.is_empty()) else { return Ok(0) };
        self.file.read_at(part, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Connects a fetch that writes with a file system that reads, through a bounded channel.
fn copy(esp_fs: &dyn Esp, path: &str, hold: HoldShutdown<'_>, fetch: Fetch<'_>) -> Result<(), BootError> {
    // One piece waits while another is written.
    let (sender, receiver) = sync_channel(1);
    std::thread::scope(|scope| {
        let writing = std::thread::Builder::new()
            .name("uki-writer".to_owned())
            .spawn_scoped(scope, || {
                let mut incoming = Incoming { receiver, piece: Vec::new(), at: 0, hold, held: None };
                esp_fs.write(path, &mut incoming)
            })
            .map_err(esp("writing", path))?;
        let mut outgoing = Outgoing { sender: Some(sender), piece: Vec::new() };
        let fetched = fetch(&mut outgoing);
        // Without the end mark the reader sees a broken stream, never a short file.
        let ended = fetched.is_ok() && outgoing.end();
        drop(outgoing);
        let written = writing.join().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        match (fetched, written) {
            // A broken pipe on the writing side is only the echo of a failing file system.
            (_, Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(esp("writing", path)(error)),
            (Err(error), _) => Err(error.into()),
            (Ok(()), Err(error)) => Err(esp("writing", path)(error)),
            (Ok(()), Ok(())) if ended => Ok(()),
            (Ok(()), Ok(())) => Err(esp("writing", path)(io::ErrorKind::BrokenPipe.into())),
        }
    })
}

/// The fetching side: gathers what comes into pieces.
struct Outgoing {
    sender: Option<SyncSender<Vec<u8>>>,
    piece: Vec<u8>,
}

impl Outgoing {
    fn send(&mut self) -> bool {
        let piece = std::mem::take(&mut self.piece);
        self.sender.as_ref().is_some_and(|sender| sender.send(piece).is_ok())
    }

    /// Sends what is left, and the end mark: an empty piece.
    fn end(&mut self) -> bool {
        (self.piece.is_empty() || self.send()) && self.send()
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE.saturating_sub(self.piece.len());
        let taken = bytes.get(..bytes.len().min(room)).unwrap_or_default();
        self.piece.extend_from_slice(taken);
        if self.piece.len() >= PIECE && !self.send() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writing side. Shutdown is held back from when a piece is there until the next one is waited for.
struct Incoming<'a> {
    receiver: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    hold: HoldShutdown<'a>,
    held: Option<Box<dyn Inhibition>>,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            drop(self.held.take());
            let next = self.receiver.recv();
            self.held = (self.hold)();
            // An empty piece is the end; a sender that is gone without one broke off.
            self.piece = next.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.at = 0;
        }
        let left = self.piece.get(self.at..).unwrap_or_default();
        let count = left.len().min(buffer.len());
        buffer.iter_mut().zip(left).for_each(|(to, from)| *to = *from);
        self.at += count;
        Ok(count)
    }
}
