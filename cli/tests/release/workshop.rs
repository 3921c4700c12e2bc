//! A vendor's workshop for the tests: a folder, real tools, and the program.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;

/// What starts in a tree, and by which target.
const UNITS: [(&str, &str); 2] =
    [("bascule-guard.service", "sysinit.target"), ("bascule-agent.service", "multi-user.target")];

/// A vendor's working folder.
pub(crate) struct Workshop(TempDir);

impl Workshop {
    pub(crate) fn new() -> Self {
        let workshop = Self(tempfile::tempdir().unwrap());
        fs::write(workshop.path("vmlinuz"), kernel(0x8664)).unwrap();
        fs::write(workshop.path("initrd"), noise(2, 100_001)).unwrap();
        workshop
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bascule"));
        command.current_dir(self.0.path()).arg("release").args(arguments.split_whitespace());
        command.env_remove("SOURCE_DATE_EPOCH").env_remove("BASCULE_TRUST_ROOT").env_remove("BASCULE_LOG");
        command
    }

    /// The program, with everything that stands on its command line.
    pub(crate) fn bascule(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bascule"));
        command.current_dir(self.0.path()).args(arguments.split_whitespace());
        command.env_remove("SOURCE_DATE_EPOCH").env_remove("BASCULE_TRUST_ROOT").env_remove("BASCULE_LOG");
        command.output().unwrap()
    }

    pub(crate) fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a step that must succeed, and gives its output.
    pub(crate) fn step(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a step that must fail, and gives its exit code and message.
    pub(crate) fn refused(&self, arguments: &str) -> (i32, String) {
        let output = self.run(arguments);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    /// A root tree. `order` changes the order in which its files are made, and so that in which folders list them.
    pub(crate) fn tree(&self, name: &str, version: &str, order: impl Fn(usize) -> usize) {
        let tree = self.path(name);
        for folder in ["etc", "usr/lib/bascule", "usr/bin", "var/lib/dpkg"] {
            fs::create_dir_all(tree.join(folder)).unwrap();
        }
        fs::write(tree.join("usr/lib/bascule/root.json"), r#"{"signed": {"_type": "root"}}"#).unwrap();
        fs::write(tree.join("usr/bin/bascule-agent"), "the agent").unwrap();
        for (unit, target) in UNITS {
            let (file, links) =
                (format!("usr/lib/systemd/system/{unit}"), format!("etc/systemd/system/{target}.wants"));
            fs::create_dir_all(tree.join("usr/lib/systemd/system")).unwrap();
            fs::create_dir_all(tree.join(&links)).unwrap();
            fs::write(tree.join(&file), "[Service]\nExecStart=/usr/bin/bascule-agent\n").unwrap();
            std::os::unix::fs::symlink(format!("/{file}"), tree.join(links).join(unit)).unwrap();
        }
        for number in 0..200 {
            let number = order(number);
            fs::write(tree.join(format!("usr/bin/tool-{number}")), noise(number as u64, 20_000)).unwrap();
        }
        fs::write(tree.join("usr/lib/os-release"), os_release(version)).unwrap();
        std::os::unix::fs::symlink("../usr/lib/os-release", tree.join("etc/os-release")).unwrap();
        let status = "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\n";
        fs::write(tree.join("var/lib/dpkg/status"), status).unwrap();
    }

    /// Builds a release of a tree, which says that it is this version.
    pub(crate) fn build(&self, out: &str, version: &str, tree: &str, more: &str) -> String {
        fs::write(self.path(tree).join("usr/lib/os-release"), os_release(version)).unwrap();
        self.step(&format!(
            "build {out} --product acme-os --release {version} --root {tree} --kernel vmlinuz --initrd initrd \
             --cmdline quiet --fast {more}"
        ))
    }

    /// Kernel and stub of another processor, in `vmlinuz-arm64` and `stub-arm64`.
    pub(crate) fn arm64(&self) {
        fs::write(self.path("vmlinuz-arm64"), kernel(0xAA64)).unwrap();
        let mut stub = fs::read("/usr/lib/systemd/boot/efi/linuxx64.efi.stub").expect("install systemd-boot-efi");
        let headers = u32::from_le_bytes(stub[0x3C..0x40].try_into().unwrap()) as usize;
        stub[headers + 4..headers + 6].copy_from_slice(&0xAA64_u16.to_le_bytes());
        fs::write(self.path("stub-arm64"), stub).unwrap();
    }

    pub(crate) fn repository(&self) {
        self.step("keygen keys/root keys/targets keys/snapshot keys/timestamp");
        self.step(
            "init repository --root keys/root.pem --targets keys/targets.pem --snapshot keys/snapshot.pem \
             --timestamp keys/timestamp.pem",
        );
    }

    pub(crate) fn publish(&self, build: &str) {
        self.step(&format!("publish repository {build} --channel stable {ONLINE}"));
    }
}

pub(crate) const ONLINE: &str = "--key keys/targets.pem --key keys/snapshot.pem --key keys/timestamp.pem";

/// The headers of a kernel that the firmware can start, and noise.
fn kernel(machine: u16) -> Vec<u8> {
    let mut kernel = vec![0; 0x400];
    let mut put = |at: usize, bytes: &[u8]| kernel[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3C, &0x40_u32.to_le_bytes());
    put(0x40, b"PE\0\0");
    put(0x44, &machine.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x20E, &0x100_u16.to_le_bytes());
    put(0x300, b"6.12.1-test (somebody@somewhere) #1 SMP\0");
    kernel.extend(noise(1, 400_000));
    kernel
}

fn os_release(version: &str) -> String {
    format!("ID=acme\nVERSION_ID={version}\nIMAGE_ID=acme-os\nIMAGE_VERSION={version}\n")
}

/// Bytes that depend on the seed only.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

pub(crate) fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}
