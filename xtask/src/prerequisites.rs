//! Tools that the commands need beside Rust: installed from Debian where we may, else named in one sentence.

use anyhow::{Context as _, bail};
use std::{
    env,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A program, and the Debian package that has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// What the tests judge our work with, and what images are made with.
pub(crate) const TEST_TOOLS: &[Tool] = &[
    Tool { program: "systemd-analyze", package: "systemd" },
    Tool { program: "veritysetup", package: "cryptsetup-bin" },
    Tool { program: "strace", package: "strace" },
    Tool { program: "partx", package: "util-linux" },
    Tool { program: "losetup", package: "mount" },
    Tool { program: "sbsign", package: "sbsigntool" },
    Tool { program: "openssl", package: "openssl" },
    Tool { program: "sign-efi-sig-list", package: "efitools" },
    Tool { program: "objdump", package: "binutils" },
    // No program, but found the same way: an absolute path stays what it is.
    Tool { program: "/usr/lib/systemd/boot/efi/linuxx64.efi.stub", package: "systemd-boot-efi" },
    Tool { program: "mkfs.erofs", package: "erofs-utils" },
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "sgdisk", package: "gdisk" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "systemd-repart", package: "systemd" },
    Tool { program: "qemu-img", package: "qemu-utils" },
    Tool { program: "fsck.vfat", package: "dosfstools" },
    Tool { program: "cgpt", package: "cgpt" },
    Tool { program: "dbus-daemon", package: "dbus-daemon" },
    Tool { program: "prometheus", package: "prometheus" },
    Tool { program: "prometheus-alertmanager", package: "prometheus-alertmanager" },
    // A hundred megabytes, the largest of them: it alone says what a person sees of the dashboard.
    Tool { program: "chromium-headless-shell", package: "chromium-headless-shell" },
    Tool { program: "rsync", package: "rsync" },
    Tool { program: "softhsm2-util", package: "softhsm2" },
    Tool { program: "swtpm", package: "swtpm" },
    Tool { program: "docker-registry", package: "docker-registry" },
];

/// What the example in examples/debian/ is made with.
pub(crate) const EXAMPLE_TOOLS: &[Tool] = &[
    Tool { program: "mmdebstrap", package: "mmdebstrap" },
    Tool { program: "mkfs.erofs", package: "erofs-utils" },
    Tool { program: "mke2fs", package: "e2fsprogs" },
    Tool { program: "xz", package: "xz-utils" },
    Tool { program: "ip", package: "iproute2" },
];

/// What libFuzzer is compiled with, which the fuzz targets are linked to.
pub(crate) const FUZZ_TOOLS: &[Tool] = &[Tool { program: "c++", package: "g++" }];

/// What container images are made with.
pub(crate) const IMAGE_TOOLS: &[Tool] = &[Tool { program: "objcopy", package: "binutils" }];

/// The same on a machine of another architecture.
pub(crate) const ARM64_TOOLS: &[Tool] = &[
    Tool { program: "aarch64-linux-gnu-gcc", package: "gcc-aarch64-linux-gnu" },
    Tool { program: "/usr/aarch64-linux-gnu/lib/libc.a", package: "libc6-dev-arm64-cross" },
];

/// The same on a machine of another architecture.
pub(crate) const X86_64_TOOLS: &[Tool] = &[
    Tool { program: "x86_64-linux-gnu-gcc", package: "gcc-x86-64-linux-gnu" },
    Tool { program: "/usr/x86_64-linux-gnu/lib/libc.a", package: "libc6-dev-amd64-cross" },
];

/// Where a program is, if it is on the PATH or where Debian keeps programs for root.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Installs what is missing.
///
/// # Errors
/// When something is missing and can't be installed here; the message is the command that installs it.
pub(crate) fn ensure(tools: &[Tool]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        tools.iter().filter(|tool| find(tool.program).is_none()).map(|tool| tool.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let advice = format!("install the missing tools with `apt-get install {}`", missing.join(" "));
    if !rustix::process::geteuid().is_root() || find("apt-get").is_none() {
        bail!("{advice}");
    }
    eprintln!("installing {} from Debian", missing.join(", "));
    // Package lists may be absent or old on a fresh machine; without them the install would fail for no good reason.
    apt(&["update"]).context(advice.clone())?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(missing);
    apt(&arguments).context(advice)
}

fn apt(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("apt-get")
        .arg("--quiet=2")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // A service that a package brings (Prometheus) must not start on a developer's machine.
        .env("RUNLEVEL", "1")
        .stdin(Stdio::null())
        .output()
        .context("starting apt-get")?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    bail!(
        "apt-get {} failed: {}",
        arguments.first().copied().unwrap_or_default(),
        text.lines().last().unwrap_or("no message")
    )
}

/// Fails with one sentence when a program that we never install is missing.
pub(crate) fn require(program: &str, advice: &str) -> anyhow::Result<PathBuf> {
    find(program).with_context(|| format!("{program} is missing: {advice}"))
}

/// Whether a file can be written where the build output goes.
pub(crate) fn writable(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))
}

/// Whether a folder that will hold `whole_mib` in the end can grow to it; what it holds already is not needed again.
///
/// A disk that fills up in the middle shows as a crash of the compiler, an hour later and with no word of why.
///
/// # Errors
/// There is too little room (with what to do), or the folder can't be looked at.
pub(crate) fn room(folder: &Path, whole_mib: u64) -> anyhow::Result<()> {
    let system = rustix::fs::statvfs(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    let free = system.f_bavail.saturating_mul(system.f_frsize) >> 20;
    let held = bytes_below(folder).with_context(|| format!("looking through {}", folder.display()))? >> 20;
    enough_room(folder, whole_mib, held, free)
}

fn enough_room(folder: &Path, whole_mib: u64, held_mib: u64, free_mib: u64) -> anyhow::Result<()> {
    // A folder that is full of old builds still needs a little for the next one.
    let needed = whole_mib.saturating_sub(held_mib).max(whole_mib / 8);
    if free_mib < needed {
        bail!(
            "the build and the tests need {needed} MiB more in {}, {free_mib} MiB are free: free some, or remove \
             old builds with `cargo clean`",
            folder.display()
        );
    }
    Ok(())
}

/// What the files below a folder take on the disk. Links are not followed; what goes away meanwhile counts nothing.
fn bytes_below(folder: &Path) -> std::io::Result<u64> {
    let mut sum: u64 = 0;
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            match entry.metadata() {
                Ok(about) if about.is_dir() => open.push(entry.path()),
                // Sparse disks take less than they are long (stat(2), st_blocks: units of 512 bytes).
                Ok(about) => sum = sum.saturating_add(about.blocks().saturating_mul(512)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_would_fill_up_is_told_before_the_first_step() {
        let target = Path::new("/srv/target");
        enough_room(target, 16_000, 0, 16_000).unwrap();
        enough_room(target, 16_000, 12_000, 4000).unwrap();
        let refused = enough_room(target, 16_000, 12_000, 3999).unwrap_err().to_string();
        assert_eq!(
            refused,
            "the build and the tests need 4000 MiB more in /srv/target, 3999 MiB are free: free some, or remove \
             old builds with `cargo clean`"
        );
        enough_room(target, 16_000, 40_000, 1999).unwrap_err();
    }

    #[test]
    fn what_a_folder_holds_is_counted_once_and_without_what_it_points_to() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        std::fs::write(inner.join("file"), vec![1; 1 << 20]).unwrap();
        std::fs::File::create(inner.join("sparse")).unwrap().set_len(1 << 30).unwrap();
        std::os::unix::fs::symlink("/", inner.join("everything")).unwrap();
        let bytes = bytes_below(folder.path()).unwrap();
        assert!((1 << 20..2 << 20).contains(&bytes), "{bytes}");
    }
}
