//! Disks as the tools of others see them: sgdisk, fsck.vfat, e2fsck and debugfs, veritysetup, systemd-repart.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod device;
mod install;

use std::fs::{self, File};
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use bascule_disk::{
    BootFiles, DiskError, GROWING, Installed, Needs, Plan, SETTINGS, STATE, SlotNumbers, StateError, StateFiles,
    Wishes, XBOOTLDR, entry_file, identity_of, make, uuid_of_half,
};
use bascule_gpt::{FileMedium, Health, Partition, Table, kind};
use bascule_image::verity::{self, Parameters, Tree};
use bascule_image::work::Watch;
use bascule_names::Architecture;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A release of a few blocks, and a folder to make disks of it in.
struct Bench {
    folder: TempDir,
    image: Vec<u8>,
    tree: Tree,
    boot_image: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let image: Vec<u8> = (0..3 * MIB).map(|at| (at / 4096 * 7 + at % 251) as u8).collect();
        let parameters = Parameters { salt: vec![7; 32], uuid: [9; 16] };
        let tree = verity::build(&image, image.len() as u64, &parameters, NonZeroUsize::MIN, &Watch::none()).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), image, tree, boot_image: vec![0xEF; 5_000_001] }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Files of the state partition, whose times are `age` ago.
    fn state(&self, name: &str, age: Duration) -> PathBuf {
        let tree = self.path(name);
        fs::create_dir_all(tree.join("etc/bascule")).unwrap();
        fs::write(tree.join("etc/bascule/node.toml"), "[node]\nname = \"a\"\n").unwrap();
        fs::write(tree.join("etc/a key"), "secret").unwrap();
        fs::set_permissions(tree.join("etc/a key"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::set_permissions(tree.join("etc"), fs::Permissions::from_mode(0o750)).unwrap();
        std::os::unix::fs::symlink("bascule/node.toml", tree.join("etc/link")).unwrap();
        let file = File::options().write(true).open(tree.join("etc/a key")).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
        tree
    }

    fn make(&self, name: &str, wishes: Wishes, state: Option<&Path>) -> Result<Vec<Partition>, DiskError> {
        self.make_with(name, wishes, StateFiles { tree: state, settings: None })
    }

    fn make_with(&self, name: &str, wishes: Wishes, state: StateFiles<'_>) -> Result<Vec<Partition>, DiskError> {
        self.laid(wishes, |plan, first| make(&self.path(name), plan, first, state))
    }

    /// Does something with what goes onto a disk of the release.
    fn laid<T>(&self, wishes: Wishes, act: impl FnOnce(Plan<'_>, &mut Installed<'_>) -> T) -> T {
        let (mut esp, mut xbootldr) = (BootFiles::of_esp(None), BootFiles::default());
        esp.add("loader/keys/auto/db.auth", b"keys".to_vec()).unwrap();
        let home = if wishes.xbootldr.is_some() { &mut xbootldr } else { &mut esp };
        home.add_entry(&entry_file("acme-os", "1.0"), self.boot_image.clone()).unwrap();
        let needs =
            Needs { image: self.image.len() as u64, boot_image: self.boot_image.len() as u64, files: esp.size() };
        let root_hash = self.tree.root_hash();
        let identity = identity_of("acme-os", "1.0", root_hash);
        let plan = Plan { sizes: wishes.sizes(needs).unwrap(), identity, esp: &esp, xbootldr: &xbootldr };
        let hashes = self.tree.to_bytes();
        let mut first = Installed {
            version: "1.0",
            architecture: Architecture::X86_64,
            root_hash,
            data: &mut self.image.as_slice(),
            verity: &mut hashes.as_slice(),
        };
        act(plan, &mut first)
    }

    /// One partition as a file of its own.
    fn cut_out(&self, disk: &str, part: &Partition) -> PathBuf {
        let to = self.path(&format!("{disk}-{}", part.number));
        let (from, file) = (File::open(self.path(disk)).unwrap(), File::create(&to).unwrap());
        file.set_len(part.length).unwrap();
        let mut piece = vec![0; MIB as usize];
        for offset in (0..part.length).step_by(MIB as usize) {
            from.read_exact_at(&mut piece, part.start + offset).unwrap();
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(&piece, offset).unwrap();
            }
        }
        to
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).env("PATH", path).env("LC_ALL", "C").output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn find(parts: &[Partition], number: u32) -> &Partition {
    parts.iter().find(|part| part.number == number).unwrap()
}

fn table(path: &Path) -> Table {
    Table::read(&FileMedium { file: &File::open(path).unwrap(), sector: 512 }).unwrap()
}

/// A file of a FAT file system.
fn fat_file(path: &Path, name: &str) -> Vec<u8> {
    let mut image = File::options().read(true).write(true).open(path).unwrap();
    let fat = fatfs::FileSystem::new(&mut image, fatfs::FsOptions::new()).unwrap();
    let mut content = Vec::new();
    fat.root_dir().open_file(name).unwrap().read_to_end(&mut content).unwrap();
    content
}

#[test]
fn a_disk_is_whole_to_the_tools_of_others() {
    let bench = Bench::new();
    let state = bench.state("state", Duration::ZERO);
    let parts = bench.make("disk", Wishes::default(), Some(&state)).unwrap();
    let disk = bench.path("disk");
    assert!(run("sgdisk", &["-v", text(&disk)]).contains("No problems found"));
    assert_eq!(table(&disk).health(), Health::Good);
    let seen: Vec<_> = parts.iter().map(|part| (part.number, part.kind, part.label.as_str())).collect();
    let (root, hashes) = (kind::ROOT_X86_64, kind::ROOT_X86_64_VERITY);
    assert_eq!(
        seen,
        [
            (1, kind::ESP, "ESP"),
            (2, root, "1.0"),
            (3, hashes, "1.0"),
            (4, root, "_empty"),
            (5, hashes, "_empty"),
            (6, kind::VAR, "state")
        ]
    );
    let root_hash = bench.tree.root_hash();
    assert_eq!(find(&parts, 2).uuid, uuid_of_half(root_hash.first_half()));
    assert_eq!(find(&parts, 3).uuid, uuid_of_half(root_hash.second_half()));
    let written = fs::metadata(&disk).unwrap();
    assert!(written.blocks() * 512 < written.len() / 10, "{} bytes take room", written.blocks() * 512);

    let esp = bench.cut_out("disk", find(&parts, 1));
    let checked = run("fsck.vfat", &["-n", "-v", text(&esp)]);
    assert!(checked.contains("FATs, 32 bit entries"), "{checked}");
    assert_eq!(fat_file(&esp, "EFI/Linux/acme-os_1.0.efi"), bench.boot_image);
    assert_eq!(fat_file(&esp, "loader/keys/auto/db.auth"), b"keys");
    assert_eq!(fat_file(&esp, "loader/loader.conf"), b"timeout 0\nconsole-mode keep\n");

    let (a, b) = (SlotNumbers::A, SlotNumbers::B);
    let [data, hashes, empty] = [a.data, a.verity, b.data].map(|number| bench.cut_out("disk", find(&parts, number)));
    run("veritysetup", &["verify", text(&data), text(&hashes), &root_hash.to_string()]);
    assert!(fs::read(empty).unwrap().iter().all(|byte| *byte == 0));

    let var = bench.cut_out("disk", find(&parts, STATE));
    run("e2fsck", &["-f", "-n", text(&var)]);
    let ask = |question: &str| run("debugfs", &["-R", question, text(&var)]);
    assert!(ask("cat /etc/bascule/node.toml").contains("name = \"a\""));
    let key = ask("stat \"/etc/a key\"");
    assert!(key.contains("Mode:  0600") && key.contains("User:     0   Group:     0"), "{key}");
    assert!(ask("stat /etc").contains("Mode:  0750"));
    assert!(ask("stat /etc/link").contains("Fast link dest: \"bascule/node.toml\""));
}

/// Settings are in place before the first boot, whether or not there are other files, and for root alone.
#[test]
fn the_settings_of_a_machine_lie_where_its_agent_looks() {
    let bench = Bench::new();
    let settings = bench.path("machine.toml");
    fs::write(&settings, "[node]\nname = \"n1\"\n").unwrap();
    let other = bench.path("other");
    fs::create_dir_all(other.join("etc/kubernetes")).unwrap();
    fs::write(other.join("etc/kubernetes/ca.pem"), "authority").unwrap();
    for (name, tree) in [("alone", None), ("beside", Some(other.as_path()))] {
        let files = StateFiles { tree, settings: Some(&settings) };
        let parts = bench.make_with(name, Wishes::default(), files).unwrap();
        let var = bench.cut_out(name, find(&parts, STATE));
        run("e2fsck", &["-f", "-n", text(&var)]);
        let ask = |question: &str| run("debugfs", &["-R", question, text(&var)]);
        assert!(ask(&format!("cat /{SETTINGS}")).contains("name = \"n1\""), "{name}");
        let stat = ask(&format!("stat /{SETTINGS}"));
        assert!(stat.contains("Mode:  0600") && stat.contains("User:     0   Group:     0"), "{name}: {stat}");
        assert!(ask("stat /etc/bascule").contains("Mode:  0755"), "{name}");
        if tree.is_some() {
            assert!(ask("cat /etc/kubernetes/ca.pem").contains("authority"));
        }
    }
    // Two answers to one question are none.
    let twice = bench.state("twice", Duration::ZERO);
    fs::write(twice.join(SETTINGS), "").unwrap();
    let linked = bench.path("linked");
    fs::create_dir(&linked).unwrap();
    std::os::unix::fs::symlink("/elsewhere", linked.join("etc")).unwrap();
    for (tree, end) in [(&twice, SETTINGS), (&linked, "etc")] {
        let files = StateFiles { tree: Some(tree), settings: Some(&settings) };
        let error = bench.make_with(&format!("of-{end}").replace('/', "-"), Wishes::default(), files).unwrap_err();
        let DiskError::State(StateError::Settings(path)) = &error else { panic!("{error:?}") };
        assert!(path.ends_with(end), "{error}");
    }
}

#[test]
fn the_same_release_gives_the_same_bytes() {
    let bench = Bench::new();
    let (old, new) = (bench.state("old", Duration::from_secs(86_400)), bench.state("new", Duration::ZERO));
    bench.make("first", Wishes::default(), Some(&old)).unwrap();
    bench.make("second", Wishes::default(), Some(&new)).unwrap();
    run("cmp", &[text(&bench.path("first")), text(&bench.path("second"))]);
}

#[test]
fn the_state_partition_grows_to_the_end_of_a_larger_disk() {
    let bench = Bench::new();
    let before = bench.make("disk", Wishes::default(), None).unwrap();
    let disk = bench.path("disk");
    let length = fs::metadata(&disk).unwrap().len() + 3 * (1 << 30);
    File::options().write(true).open(&disk).unwrap().set_len(length).unwrap();
    let definitions = bench.path("repart.d");
    fs::create_dir(&definitions).unwrap();
    fs::write(definitions.join("60-state.conf"), GROWING).unwrap();
    let definitions = format!("--definitions={}", text(&definitions));
    run("systemd-repart", &["--dry-run=no", "--pretty=no", &definitions, text(&disk)]);
    let after = table(&disk);
    assert_eq!(after.health(), Health::Good);
    for old in &before {
        let new = after.partition(old.number).unwrap();
        if old.number == STATE {
            assert_eq!(new.start, old.start);
            assert!(length - (new.start + new.length) < 2 * MIB, "{new:?} of {length}");
        } else {
            assert_eq!(&new, old);
        }
    }
}

#[test]
fn entries_on_a_partition_of_their_own_lie_before_what_grows() {
    let bench = Bench::new();
    let parts = bench.make("disk", Wishes { xbootldr: Some(128 * MIB), ..Wishes::default() }, None).unwrap();
    let order: Vec<u32> = parts.iter().map(|part| part.number).collect();
    assert_eq!(order, [1, XBOOTLDR, 2, 3, 4, 5, STATE]);
    let [esp, more] = [1, XBOOTLDR].map(|number| bench.cut_out("disk", find(&parts, number)));
    run("fsck.vfat", &["-n", text(&more)]);
    assert_eq!(fat_file(&more, "EFI/Linux/acme-os_1.0.efi"), bench.boot_image);
    run("fsck.vfat", &["-n", text(&esp)]);
    assert_eq!(fat_file(&esp, "loader/keys/auto/db.auth"), b"keys");
}

#[test]
fn what_the_state_partition_can_not_hold_is_said() {
    let bench = Bench::new();
    let odd = bench.path("odd");
    fs::create_dir(&odd).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(odd.join("socket")).unwrap();
    let error = bench.make("one", Wishes::default(), Some(&odd)).unwrap_err();
    assert!(matches!(&error, DiskError::State(StateError::Kind(path)) if path.ends_with("socket")), "{error:?}");
    let large = bench.path("large");
    fs::create_dir(&large).unwrap();
    fs::write(large.join("file"), vec![1; 80 * MIB as usize]).unwrap();
    let error = bench.make("two", Wishes { state: Some(64 * MIB), ..Wishes::default() }, Some(&large)).unwrap_err();
    assert!(matches!(&error, DiskError::State(StateError::Failed { tool: "debugfs", .. })), "{error:?}");
    let there = bench.make("two", Wishes::default(), None).unwrap_err();
    assert!(matches!(there, DiskError::Io { .. }), "a file that is there is not written over: {there:?}");
}
