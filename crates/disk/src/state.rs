//! The state partition: an ext4 file system that can grow with the disk, and what a machine is to know about itself before its
//! first boot.
//!
//! e2fsprogs makes it: there is no well-kept library that does. Times, identifiers and owners are fixed, so that the same files
//! give the same bytes, whoever makes them.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use uuid::Uuid;

/// systemd-repart's definition (repart.d(5)) that makes the state partition as large as the disk allows, in each boot. It goes into
/// the OS image as `/usr/lib/repart.d/60-state.conf`; `x-systemd.growfs` in fstab does the same for the file system.
pub const GROWING: &str = "\
# The state partition is the last one, and takes what the disk has. Partitions without a definition stay as they are.
[Partition]
Type=var
Label=state
";
/// Where the agent looks for settings of its machine (`/etc/bascule` of the OS image is a link to it), below the state partition's
/// root, which is mounted at `/var`.
pub const SETTINGS: &str = "etc/bascule/agent.toml";
/// Folders within folders that are followed.
const MAX_DEPTH: usize = 32;
/// All inodes have this time, in seconds since 1970. Not 0, which stands for "not set".
const TIME: &str = "1";

/// Why the state partition can't be made.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A tool is missing.
    #[error("{0} is not there: install e2fsprogs (apt install e2fsprogs)")]
    Missing(&'static str),
    /// A tool failed.
    #[error("{tool} failed: {said}")]
    Failed {
        /// Which.
        tool: &'static str,
        /// Its own words.
        said: String,
    },
    /// A tool could not be run, or a file not be read.
    #[error("can't {doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Something that is no file, folder or link, or has a name that can't be written.
    #[error(
        "{0} can't go onto the state partition: only files, folders and links, whose names have no quotes or control characters"
    )]
    Kind(PathBuf),
    /// Folders within folders without end.
    #[error("{0} lies more than {MAX_DEPTH} folders deep")]
    Deep(PathBuf),
    /// The folder of first files has something where the settings go.
    #[error(
        "{0} is in the way of the settings, which become var/{SETTINGS}: leave it out, or give the settings in that folder alone"
    )]
    Settings(PathBuf),
    /// Which parts of a file hold something can't be told.
    #[error(
        "the file system of {0} does not tell which parts of a file are in use, so the state partition can't be copied from there: \
         name a folder on tmpfs, ext4 or XFS with TMPDIR"
    )]
    Holes(PathBuf),
}

/// What the state partition begins with.
#[derive(Debug, Clone, Copy, Default)]
pub struct StateFiles<'a> {
    /// A folder with its first files.
    pub tree: Option<&'a Path>,
    /// Settings of the machine's agent, which were checked: a file that becomes [`SETTINGS`], for root alone.
    pub settings: Option<&'a Path>,
}

/// What the blocks hold that are not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwritten {
    /// Zeros: it is a new file.
    Zeros,
    /// Whatever the disk was used for before, an earlier state partition's journal perhaps, which must not be replayed. So the
    /// journal is written as well.
    Anything,
}

/// Bytes of the journal where it is written, for a file system of `length` bytes: what mke2fs takes up to 16 GiB, and not more than
/// fits the memory of a system that runs from a stick.
pub(crate) const fn journal(length: u64) -> u64 {
    const MIB: u64 = 1 << 20;
    match length / MIB {
        0..128 => 4 * MIB,
        128..1024 => 16 * MIB,
        1024..2048 => 32 * MIB,
        2048..16_384 => 64 * MIB,
        _ => 128 * MIB,
    }
}

/// Makes the file system in a file, `length` bytes from `offset`, with its first files. Everything belongs to root; permission bits
/// are kept.
pub(crate) fn make(
    disk: &Path,
    offset: u64,
    length: u64,
    identity: Uuid,
    unwritten: Unwritten,
    files: StateFiles<'_>,
) -> Result<(), StateError> {
    // Blocks and inodes as on a large disk, which it is to grow to. The kernel zeroes inodes before it uses them.
    let mut command = Command::new("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-L", "state", "-m", "0", "-b", "4096", "-I", "256", "-i", "16384", "-U"]);
    command.arg(identity.to_string());
    let lazy = u8::from(unwritten == Unwritten::Zeros);
    if unwritten == Unwritten::Anything {
        command.args(["-J", &format!("size={}", journal(length) >> 20)]);
        // Zeros of the journal are to be written, not to be punched out: they go to the disk from here.
        command.env("UNIX_IO_NOZEROOUT", "1");
    }
    command.arg("-E").arg(format!(
        "offset={offset},lazy_itable_init=1,lazy_journal_init={lazy},nodiscard,root_owner=0:0,hash_seed={identity}"
    ));
    command.arg(disk).arg(format!("{}k", length / 1024));
    let output = run("mke2fs", command, &[])?;
    if !output.status.success() {
        return Err(StateError::Failed { tool: "mke2fs", said: said(&output) });
    }
    let mut words = String::new();
    if let Some(tree) = files.tree {
        describe(tree, "", 0, &mut words)?;
    }
    if let Some(settings) = files.settings {
        describe_settings(settings, files.tree, &mut words)?;
    }
    if words.is_empty() {
        return Ok(());
    }
    let mut place = disk.as_os_str().to_owned();
    place.push(format!("?offset={offset}"));
    let mut command = Command::new("debugfs");
    command.args(["-w", "-f", "-"]).arg(place);
    let output = run("debugfs", command, words.as_bytes())?;
    // It ends well whatever it was told; what went wrong stands behind the line with its version.
    let said = said(&output);
    let trouble: Vec<&str> = said.lines().filter(|line| !line.starts_with("debugfs ")).collect();
    if !output.status.success() || !trouble.is_empty() {
        return Err(StateError::Failed { tool: "debugfs", said: trouble.join("; ") });
    }
    Ok(())
}

fn run(tool: &'static str, mut command: Command, words: &[u8]) -> Result<Output, StateError> {
    // Debian keeps them where only root looks.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    command.env("PATH", std::env::join_paths(folders).unwrap_or(path));
    command.env("E2FSPROGS_FAKE_TIME", TIME).env("LC_ALL", "C").env_remove("DEBUGFS_PAGER");
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => StateError::Missing(tool),
        _ => StateError::Io { doing: format!("run {tool}"), source },
    };
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(words));
    let output = child.wait_with_output().map_err(failed)?;
    match written {
        // A tool that ended early says why itself.
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(StateError::Io { doing: format!("tell {tool} what to write"), source })
        }
        _ => Ok(output),
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// debugfs' commands for everything in a folder, in the order of names.
fn describe(folder: &Path, inside: &str, depth: usize, words: &mut String) -> Result<(), StateError> {
    use std::fmt::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    if depth > MAX_DEPTH {
        return Err(StateError::Deep(folder.to_owned()));
    }
    let failed = |source| StateError::Io { doing: format!("read {}", folder.display()), source };
    let mut entries = fs::read_dir(folder).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let refuse = || StateError::Kind(path.clone());
        let name = entry.file_name().into_string().ok().filter(|name| is_plain(name)).ok_or_else(refuse)?;
        let failed = |source| StateError::Io { doing: format!("read {}", path.display()), source };
        let found = fs::symlink_metadata(&path).map_err(failed)?;
        let bits = found.permissions().mode() & 0o7777;
        let place = format!("{inside}/{name}");
        // Writing to a String can't fail. debugfs makes files where it stands.
        let _ = writeln!(words, "cd \"{inside}/\"");
        if found.is_dir() {
            let _ = writeln!(words, "mkdir \"{name}\"\nsif \"{place}\" mode 04{bits:04o}");
            describe(&path, &place, depth + 1, words)?;
        } else if found.is_symlink() {
            let target = fs::read_link(&path).map_err(failed)?;
            let target = target.to_str().filter(|target| is_plain(target)).ok_or_else(refuse)?;
            let _ = writeln!(words, "symlink \"{name}\" \"{target}\"");
        } else if found.is_file() {
            let source = std::path::absolute(&path).map_err(failed)?;
            let source = source.to_str().filter(|source| is_plain(source)).ok_or_else(refuse)?;
            let _ = writeln!(words, "write \"{source}\" \"{name}\"\nsif \"{place}\" mode 010{bits:04o}");
        } else {
            return Err(refuse());
        }
    }
    Ok(())
}

/// debugfs' commands for the settings, in folders that are made unless the tree has them.
fn describe_settings(settings: &Path, tree: Option<&Path>, words: &mut String) -> Result<(), StateError> {
    use std::fmt::Write as _;
    // What the tree has there; `None`: nothing.
    let there = |place: &str| {
        let Some(path) = tree.map(|tree| tree.join(place)) else { return Ok(None) };
        match fs::symlink_metadata(&path) {
            Ok(found) => Ok(Some((path, found.is_dir()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { doing: format!("read {}", path.display()), source }),
        }
    };
    let mut folder = String::new();
    let (folders, name) = SETTINGS.rsplit_once('/').unwrap_or(("", SETTINGS));
    for part in folders.split('/') {
        let place = if folder.is_empty() { part.to_owned() } else { format!("{folder}/{part}") };
        match there(&place)? {
            Some((_, true)) => {}
            Some((path, false)) => return Err(StateError::Settings(path)),
            // Writing to a String can't fail.
            None => {
                let _ = writeln!(words, "cd \"/{folder}\"\nmkdir \"{part}\"\nsif \"/{place}\" mode 040755");
            }
        }
        folder = place;
    }
    if let Some((path, _)) = there(SETTINGS)? {
        return Err(StateError::Settings(path));
    }
    let failed = |source| StateError::Io { doing: format!("read {}", settings.display()), source };
    let source = std::path::absolute(settings).map_err(failed)?;
    let source = source.to_str().filter(|source| is_plain(source));
    let source = source.ok_or_else(|| StateError::Kind(settings.to_owned()))?;
    let _ = writeln!(words, "cd \"/{folder}\"\nwrite \"{source}\" \"{name}\"\nsif \"/{SETTINGS}\" mode 0100600");
    Ok(())
}

/// Whether debugfs takes it between quotes as it is.
fn is_plain(name: &str) -> bool {
    !name.contains(|letter: char| letter == '"' || letter.is_control())
}
