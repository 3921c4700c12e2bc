//! Boot images as files on the boot partition: laid down, compared, put in place.

use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bascule_api::{Digest, RootHash};
use bascule_image::digest::Sha256Stream;
use bascule_image::io::ReadAt;

use super::BootError;
use super::error::esp;
use crate::core::ReleaseTarget;
use crate::host::{Esp, FetchError};
use crate::uki;

/// How much is read at once.
const CHUNK: usize = 256 << 10;

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

/// Whether a file lacks its start: power was lost, or the agent ended, while it was put in its place. It boots nothing, and
/// only its publisher has the start.
pub(super) fn lacks_its_start(esp_fs: &dyn Esp, path: &str) -> bool {
    // What can't be read is found out by whoever needs it.
    read_start(esp_fs, path).is_ok_and(|start| start == placeholder())
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

/// Name under which a boot image waits. No boot loader looks at files that don't end in `.efi`.
pub(super) fn waiting_name(digest: &Digest) -> String {
    format!("bascule-{}.tmp", start_of(digest))
}

/// The first 16 hex digits of a digest.
pub(super) fn start_of(digest: &Digest) -> String {
    digest.as_str().trim_start_matches("sha256:").chars().take(16).collect()
}

/// Takes the name of a waiting boot image apart: the start of its digest.
pub(super) fn parse_waiting(file: &str) -> Option<&str> {
    let start = file.strip_prefix("bascule-")?.strip_suffix(".tmp")?;
    (start.len() == 16 && start.bytes().all(|b| b.is_ascii_hexdigit())).then_some(start)
}

/// Files of ours that hold what an image in `images` (path and size) holds, too: power was lost within the rename that
/// armed it, and both are on one chain of clusters.
pub(super) fn twins(esp_fs: &dyn Esp, directory: &str, images: &[(String, u64)]) -> Result<Vec<String>, BootError> {
    let mut found = Vec::new();
    for file in esp_fs.list(directory).map_err(esp("listing", directory))? {
        let ours = parse_waiting(&file.name).is_some() || is_unfinished(&file.name);
        // Only a file of the same length is worth hashing.
        let same_length: Vec<_> = images.iter().filter(|(_, size)| ours && *size == file.size).collect();
        if same_length.is_empty() {
            continue;
        }
        // A leftover that can't be read is no reason not to look at the machine.
        let Ok(leftover) = digest(esp_fs, &format!("{directory}/{}", file.name)) else { continue };
        for (path, _) in same_length {
            if digest(esp_fs, path)? == leftover {
                found.push(file.name.clone());
                break;
            }
        }
    }
    Ok(found)
}

/// Whether a file is one that was never finished, or what power loss left of a waiting one: where a directory entry spans
/// two sectors, its long name can go and the short one stay.
pub(super) fn is_unfinished(file: &str) -> bool {
    let short =
        |ending| file.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("bascul~")) && file.ends_with(ending);
    (file.starts_with("bascule-") && file.ends_with(".part")) || short(".TMP") || short(".PAR")
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
pub(super) fn verify(esp_fs: &dyn Esp, path: &str, target: &ReleaseTarget) -> Result<(), BootError> {
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
    Ok(uki::read(file)?.is_some_and(|facts| facts.root_hash.as_ref() == Some(root_hash)))
}

type Fetch<'a> = &'a mut dyn FnMut(&mut dyn Write) -> Result<(), FetchError>;

/// Brings a boot image into `directory` under its waiting name: written under another one first, made durable, read
/// back, renamed, made durable.
pub(super) fn lay_down(
    esp_fs: &dyn Esp,
    directory: &str,
    target: &ReleaseTarget,
    fetch: Fetch<'_>,
) -> Result<(), BootError> {
    let Some((expected, _)) = &target.uki else { return Err(BootError::NoRelease(target.slot)) };
    let waiting = waiting_name(expected);
    let final_path = format!("{directory}/{waiting}");
    let part = format!("{directory}/bascule-{}.part", start_of(expected));
    let files = esp_fs.list(directory).map_err(esp("listing", directory))?;
    let whole = !files.iter().any(|file| is_unfinished(&file.name));
    for file in files {
        if file.name == waiting && whole && verify(esp_fs, &final_path, target).is_ok() {
            return Ok(());
        }
        // Beside an unfinished file also one that reads well goes: power may have been lost within the rename from one to
        // the other, and then both are on one chain of clusters, which the removal of either frees.
        if is_unfinished(&file.name) || parse_waiting(&file.name).is_some() {
            let path = format!("{directory}/{}", file.name);
            esp_fs.remove(&path).map_err(esp("removing", &path))?;
        }
    }
    copy(esp_fs, &part, fetch)?;
    esp_fs.sync().map_err(esp("syncing", &part))?;
    verify(esp_fs, &part, target)?;
    esp_fs.rename(&part, &final_path).map_err(esp("renaming", &part))?;
    esp_fs.sync().map_err(esp("syncing", &final_path))
}

/// Connects a fetch that writes with a file system that reads, through a bounded channel.
fn copy(esp_fs: &dyn Esp, path: &str, fetch: Fetch<'_>) -> Result<(), BootError> {
    // One chunk waits while another is written.
    let (sender, receiver) = sync_channel(1);
    std::thread::scope(|scope| {
        let writing = std::thread::Builder::new()
            .name("uki-writer".to_owned())
            .spawn_scoped(scope, || esp_fs.write(path, &mut Incoming { receiver, piece: Vec::new(), at: 0 }))
            .map_err(esp("writing", path))?;
        let mut outgoing = Outgoing { sender: Some(sender) };
        let fetched = fetch(&mut outgoing);
        // Without the end mark the reader sees a broken stream, never a short file.
        let ended = fetched.is_ok() && outgoing.send(Vec::new());
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

struct Outgoing {
    sender: Option<SyncSender<Vec<u8>>>,
}

impl Outgoing {
    fn send(&mut self, piece: Vec<u8>) -> bool {
        self.sender.as_ref().is_some_and(|sender| sender.send(piece).is_ok())
    }
}

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece: Vec<u8> = bytes.iter().copied().take(CHUNK).collect();
        let count = piece.len();
        if count > 0 && !self.send(piece) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Incoming {
    receiver: Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            // An empty piece is the end; a sender that is gone without one broke off.
            self.piece = self.receiver.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.at = 0;
        }
        let left = self.piece.get(self.at..).unwrap_or_default();
        let count = left.len().min(buffer.len());
        buffer.iter_mut().zip(left).for_each(|(to, from)| *to = *from);
        self.at += count;
        Ok(count)
    }
}
