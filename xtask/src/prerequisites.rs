//! Tools that the commands need beside Rust: installed from Debian where we may, else named in one sentence.

use anyhow::{Context as _, bail};
use std::{
    env,
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
    Tool { program: "fsck.vfat", package: "dosfstools" },
    Tool { program: "cgpt", package: "cgpt" },
    Tool { program: "dbus-daemon", package: "dbus-daemon" },
    Tool { program: "prometheus", package: "prometheus" },
    Tool { program: "prometheus-alertmanager", package: "prometheus-alertmanager" },
    // A hundred megabytes, the largest of them: it alone says what a person sees of the dashboard.
    Tool { program: "chromium-headless-shell", package: "chromium-headless-shell" },
    Tool { program: "rsync", package: "rsync" },
    Tool { program: "softhsm2-util", package: "softhsm2" },
    Tool { program: "systemd-analyze", package: "systemd" },
    Tool { program: "openssl", package: "openssl" },
    Tool { program: "sbverify", package: "sbsigntool" },
    Tool { program: "docker-registry", package: "docker-registry" },
];

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
