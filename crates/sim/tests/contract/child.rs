//! The real implementations, one system call after the other failing under strace, or moving less than it was asked to.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use bascule_agent::host::BOOT_LOADER_VENDOR;
use bascule_agent::linux::{BlockDisk, EfiVariables, MountedEsp, StateFolder};

use crate::devices::{Loop, SLOT_ALONE};
use crate::state_folder;
use crate::walk::{self, FOLDER, NEW, OLD, PART, Steps, content};

/// Tells the child what to do: what, and in which folder.
const CHILD: &str = "BASCULE_CONTRACT_CHILD";
/// Before each line of the child that counts.
const MARK: &str = "contract-step";

pub(crate) fn real_disk(folder: &Path) -> BlockDisk {
    let path = folder.join("disk");
    std::fs::write(&path, vec![0; 4 << 20]).unwrap();
    BlockDisk::open(&path).unwrap()
}

pub(crate) fn real_esp(folder: &Path) -> MountedEsp {
    let root = folder.join("esp");
    std::fs::create_dir_all(root.join(FOLDER)).unwrap();
    for file in std::fs::read_dir(root.join(FOLDER)).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    std::fs::write(root.join(OLD), content(1, 2000)).unwrap();
    MountedEsp::new(root)
}

pub(crate) fn real_firmware(folder: &Path) -> EfiVariables {
    let root = folder.join("efivars");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join(format!("LoaderInfo-{BOOT_LOADER_VENDOR}")), [6, 0, 0, 0, b'x']).unwrap();
    std::fs::write(root.join(format!("SecureBoot-{}", bascule_secure_boot::GLOBAL)), [6, 0, 0, 0, 1]).unwrap();
    EfiVariables::new(root)
}

/// Carries one walk out and prints its steps; does nothing unless it is started by [`under_strace`].
#[test]
fn child() {
    let Ok(order) = std::env::var(CHILD) else { return };
    let (what, folder) = order.split_once(':').unwrap();
    let folder = Path::new(folder);
    let steps = match what {
        "esp" => walk::esp(&MountedEsp::new(folder.join("esp"))),
        "disk" => {
            let opened = BlockDisk::open(&folder.join("disk"));
            let answer = opened.as_ref().map(|_| String::new()).map_err(|error| error.kind());
            let steps = opened.as_ref().map(|disk| walk::disk(disk)).unwrap_or_default();
            std::iter::once(("open".to_owned(), answer)).chain(steps).collect()
        }
        "state" => walk::state(&StateFolder::create(&folder.join("state")).unwrap()),
        _ => walk::firmware(&EfiVariables::new(folder.join("efivars"))),
    };
    for (name, answer) in steps {
        match answer {
            Ok(text) => println!("\n{MARK}\t{name}\tok\t{text}"),
            Err(kind) => println!("\n{MARK}\t{name}\terror\t{kind:?}"),
        }
    }
}

/// Lets a call move fewer bytes than it asks for; loaded into the child before the C library.
const SHORT: &str = include_str!("short.c");
/// Which calls do.
const MOVES: [&str; 4] = ["read", "write", "pread64", "pwrite64"];

const ERRORS: [(&str, i32); 3] = [("EIO", 5), ("ENOMEM", 12), ("EROFS", 30)];

fn kinds() -> Vec<ErrorKind> {
    ERRORS.iter().map(|(_, number)| std::io::Error::from_raw_os_error(*number).kind()).collect()
}

/// Carries the walk out in a child that `command` starts; the steps, and what was said beside them.
fn walked(mut command: Command, what: &str, folder: &Path) -> (Steps, String) {
    command.args(["--exact", "child::child", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, format!("{what}:{}", folder.display())).env("RUST_BACKTRACE", "0");
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; install strace"));
    let (text, said) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{command:?}: {text}\n{said}");
    let steps = text.lines().filter_map(|line| {
        let mut fields = line.strip_prefix(MARK)?.split('\t').skip(1);
        let (name, outcome, value) = (fields.next()?, fields.next()?, fields.next()?);
        let kind = || {
            kinds()
                .into_iter()
                .chain([ErrorKind::UnexpectedEof, ErrorKind::WriteZero])
                .find(|kind| format!("{kind:?}") == value)
        };
        let answer = if outcome == "ok" { Ok(value.to_owned()) } else { Err(kind().unwrap_or(ErrorKind::NotFound)) };
        Some((name.to_owned(), answer))
    });
    (steps.collect(), said)
}

/// strace of the child and its threads. Only the calls that are looked at stop it.
fn strace(calls: &str, log: &Path) -> Command {
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "--seccomp-bpf", "-o"]).arg(log).arg("-e").arg(format!("trace={calls}"));
    command
}

/// Runs the walk with one fault; the steps, and whether the fault struck.
fn under_strace(what: &str, folder: &Path, paths: &[PathBuf], fault: &str) -> (Steps, bool) {
    let log = folder.join("strace.log");
    let (call, _) = fault.split_once(':').unwrap();
    let mut command = strace(call, &log);
    command.arg("-e").arg(format!("inject={fault}"));
    for path in paths {
        command.arg("-P").arg(path);
    }
    command.arg(std::env::current_exe().unwrap());
    let (steps, _) = walked(command, what, folder);
    (steps, std::fs::read_to_string(log).unwrap().contains("(INJECTED)"))
}

/// Compiles [`SHORT`].
fn short_calls(folder: &Path) -> PathBuf {
    let (source, library) = (folder.join("short.c"), folder.join("short.so"));
    std::fs::write(&source, SHORT).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).args([&library, &source]);
    assert!(compiler.status().expect("install gcc").success(), "{compiler:?}");
    library
}

/// Runs the walk with a `call` that moves `bytes` bytes the `when`th time that it could move more; the steps, and whether there
/// was such a call.
fn with_short_call(
    what: &str,
    place: &Place<'_>,
    library: &Path,
    (call, bytes, when): (&str, u32, u32),
) -> (Steps, bool) {
    let Place { folder, below } = *place;
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env("LD_PRELOAD", library).env("SHORT_FOLDER", below).env("SHORT_CALL", call);
    command.env("SHORT_BYTES", bytes.to_string()).env("SHORT_WHEN", when.to_string());
    let (steps, said) = walked(command, what, folder);
    (steps, said.contains("(SHORT)"))
}

/// Where a walk goes.
struct Place<'p> {
    /// The folder of the child.
    folder: &'p Path,
    /// What the paths of all files begin with that count.
    below: &'p Path,
}

/// Every one of these calls on these paths fails once, with every error.
fn exhaust(what: &str, calls: &[&str], prepare: impl Fn(&Path) -> Vec<PathBuf>) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    exhaust_in(what, &Place { folder: &folder, below: &folder }, calls, prepare)
}

fn exhaust_in(what: &str, place: &Place<'_>, calls: &[&str], prepare: impl Fn(&Path) -> Vec<PathBuf>) -> usize {
    let folder = place.folder.to_owned();
    let paths = prepare(&folder);
    let (good, _) = under_strace(what, &folder, &paths, "gettid:error=EIO:when=9999");
    assert!(good.len() > 2 && good.iter().all(|(_, answer)| answer.is_ok()), "{what}: {good:#?}");
    let mut seen = 0;
    for call in calls {
        for (name, number) in ERRORS {
            let expected = [std::io::Error::from_raw_os_error(number).kind()];
            for when in 1.. {
                prepare(&folder);
                let fault = format!("{call}:error={name}:when={when}");
                let (found, struck) = under_strace(what, &folder, &paths, &fault);
                let failed = walk::hold(&fault, &good, &found, &expected);
                assert_eq!(failed, struck, "{fault}: a fault is reported, and nothing else is\n{found:#?}");
                if !struck {
                    break;
                }
                seen += 1;
            }
        }
    }
    // A read that ends early: the file is shorter than it said, and nothing is made of the rest.
    for call in calls.iter().filter(|call| **call == "pread64") {
        for when in 1.. {
            prepare(&folder);
            let fault = format!("{call}:retval=0:when={when}");
            let (found, struck) = under_strace(what, &folder, &paths, &fault);
            let failed = walk::hold(&fault, &good, &found, &[ErrorKind::UnexpectedEof]);
            assert_eq!(failed, struck, "{fault}: {found:#?}");
            if !struck {
                break;
            }
            seen += 1;
        }
    }
    seen + exhaust_short(what, calls, place, &good, prepare)
}

/// Every one of these calls moves less than it could once: whoever asked asks for the rest.
fn exhaust_short(
    what: &str,
    calls: &[&str],
    place: &Place<'_>,
    good: &Steps,
    prepare: impl Fn(&Path) -> Vec<PathBuf>,
) -> usize {
    let folder = place.folder;
    let library = short_calls(folder);
    let mut seen = 0;
    for call in calls.iter().filter(|call| MOVES.contains(*call)) {
        let before = seen;
        for bytes in [1, 100] {
            for when in 1.. {
                prepare(folder);
                let (found, struck) = with_short_call(what, place, &library, (*call, bytes, when));
                let short = format!("{call} that moves {bytes} bytes, time {when}");
                assert!(!walk::hold(&short, good, &found, &[]), "{short}: {found:#?}");
                if !struck {
                    break;
                }
                seen += 1;
            }
        }
        assert!(seen > before, "no {call} moves more than a byte");
    }
    seen
}

/// What makes a boot image and its names durable, and in which order: the content before the name that the boot loader starts, and
/// each name before what is built on it; where a file takes the place of another, the folder without its old name before the file under
/// its new one. No answer of a step shows that one of them was left out; what power loss makes of it then is shown in
/// [`crate::simulated`].
pub(crate) const FLUSHED: [&str; 30] = [
    "write EFI/Linux/bascule-new.part",
    "fsync EFI/Linux/bascule-new.part",
    "fsync EFI/Linux",
    "syncfs .",
    "fsync .",
    "renameat2 EFI/Linux/bascule-new.part EFI/Linux/acme-os_1.1+3-0.efi",
    "fsync EFI/Linux/acme-os_1.1+3-0.efi",
    "fsync EFI/Linux",
    "syncfs .",
    "fsync .",
    "pwrite64 EFI/Linux/acme-os_1.1+3-0.efi",
    "fsync EFI/Linux/acme-os_1.1+3-0.efi",
    "fsync EFI/Linux",
    "syncfs .",
    "fsync .",
    "write EFI/Linux/bascule-new.part",
    "fsync EFI/Linux/bascule-new.part",
    "fsync EFI/Linux",
    "syncfs .",
    "fsync .",
    "renameat2 EFI/Linux/bascule-new.part EFI/Linux/acme-os_1.1+3-0.efi",
    "fsync EFI/Linux",
    "fsync EFI/Linux/acme-os_1.1+3-0.efi",
    "fsync EFI/Linux",
    "syncfs .",
    "fsync .",
    "unlink EFI/Linux/old.efi",
    "fsync EFI/Linux",
    "syncfs .",
    "fsync .",
];

/// So many of them write a boot image, give it its name and write its start; what follows takes the place of another file.
pub(crate) const ARMED: usize = 15;

/// The system calls of a walk that change or flush something below `root`, in their order.
fn changing_calls(what: &str, folder: &Path, root: &Path) -> Vec<String> {
    let log = folder.join("strace.log");
    let mut command = strace("write,pwrite64,rename,renameat2,unlink,fsync,fdatasync,syncfs", &log);
    // With the path of each open file.
    command.arg("-y").arg(std::env::current_exe().unwrap());
    let (steps, _) = walked(command, what, folder);
    assert!(steps.iter().all(|(_, answer)| answer.is_ok()), "{steps:#?}");
    let log = std::fs::read_to_string(log).unwrap();
    let root = root.to_str().unwrap();
    let call = |line: &str| {
        let paths = line.split(root).skip(1).filter_map(|rest| rest.split(['"', '>']).next());
        let paths: Vec<&str> = paths.map(|path| path.trim_start_matches('/')).collect();
        let name = line.split('(').next().and_then(|begin| begin.split_whitespace().last()).unwrap_or_default();
        let paths = paths.iter().map(|path| if path.is_empty() { "." } else { *path });
        std::iter::once(name).chain(paths).collect::<Vec<_>>().join(" ")
    };
    log.lines().filter(|line| line.contains(root)).map(call).collect()
}

#[test]
fn the_real_boot_partition_flushes_file_name_and_folder_in_this_order() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    real_esp(&folder);
    assert_eq!(changing_calls("esp", &folder, &folder.join("esp")), FLUSHED);
}

#[test]
fn the_real_state_folder_flushes_file_name_and_folder_in_this_order() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let wanted: Vec<&str> = state_folder::CALLS.into_iter().flatten().copied().collect();
    assert_eq!(changing_calls("state", &folder, &folder.join("state")), wanted);
}

#[test]
fn the_real_state_folder_reports_each_failing_call() {
    let seen = exhaust("state", &["openat", "read", "write", "fsync", "rename", "unlink"], |folder| {
        let root = folder.join("state");
        StateFolder::create(&root).unwrap();
        // What a power cut left of an earlier write, longer than what is written now.
        std::fs::write(root.join(state_folder::UNFINISHED), content(8, 5000)).unwrap();
        let _ = std::fs::remove_file(root.join(walk::JOURNAL));
        let inside = [state_folder::UNFINISHED, walk::JOURNAL].map(|file| root.join(file));
        std::iter::once(root).chain(inside).collect()
    });
    assert!(seen > 20, "{seen}");
}

#[test]
fn the_real_boot_partition_reports_each_failing_call() {
    let calls = [
        "openat",
        "statx",
        "statfs",
        "pread64",
        "read",
        "write",
        "pwrite64",
        "fsync",
        "syncfs",
        "renameat2",
        "unlink",
        "getdents64",
    ];
    let seen = exhaust("esp", &calls, |folder| {
        real_esp(folder);
        let root = folder.join("esp");
        let inside = ["EFI", FOLDER, OLD, PART, NEW].map(|path| root.join(path));
        std::iter::once(root).chain(inside).collect()
    });
    assert!(seen > 40, "{seen}");
}

const DISK_CALLS: [&str; 8] = ["openat", "statx", "pread64", "pwrite64", "fsync", "fdatasync", "flock", "lseek"];

#[test]
fn the_real_disk_reports_each_failing_call() {
    let seen = exhaust("disk", &DISK_CALLS, |folder| {
        real_disk(folder);
        vec![folder.join("disk")]
    });
    assert!(seen > 20, "{seen}");
}

/// The same on a block device: with what the kernel says of its sectors and of its partitions, which have nodes of their own.
#[test]
fn the_real_disk_reports_each_failing_call_on_a_device() {
    let Some(device) = Loop::cut(512, &SLOT_ALONE) else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let (whole, partition) = (PathBuf::from(device.name()), PathBuf::from(device.partition(walk::SLOT.0)));
    std::os::unix::fs::symlink(&whole, folder.join("disk")).unwrap();
    let calls: Vec<&str> = DISK_CALLS.into_iter().filter(|call| *call != "statx").chain(["ioctl"]).collect();
    let seen = exhaust_in("disk", &Place { folder: &folder, below: &whole }, &calls, |_| {
        vec![whole.clone(), partition.clone()]
    });
    assert!(seen > 20, "{seen}");
}

#[test]
fn the_real_firmware_variables_report_each_failing_call() {
    let seen = exhaust("firmware", &["openat", "read"], |folder| {
        real_firmware(folder);
        let variables = std::fs::read_dir(folder.join("efivars")).unwrap();
        variables.map(|entry| entry.unwrap().path()).collect()
    });
    assert!(seen > 8, "{seen}");
}
