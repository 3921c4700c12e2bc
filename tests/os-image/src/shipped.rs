//! Builds programs exactly as they are shipped: the release profile of the workspace, one static file that needs nothing
//! of the root it runs in. `cargo xtask agent`, the images and the boot tests all come here, so that what is measured and
//! tested is what a vendor would put into an image.

use std::path::{Path, PathBuf};

use crate::{Error, cargo::cargo, tool};

/// glibc and all else inside the program: it must also run in an empty root, and in whatever a vendor's image holds.
///
/// The crate getrandom looks for getrandom(2) by dlsym, which finds nothing in a static program, and then reads
/// `/dev/urandom`, which an empty root has not: it is told to call the function that is linked in.
const STATIC: &str = "-C target-feature=+crt-static --cfg=getrandom_backend=\"linux_getrandom\"";

/// The target that programs are shipped for: this machine's own architecture.
///
/// Named even though it is the host's: cargo then keeps the flags away from build scripts and procedural macros, which
/// can't be linked statically.
#[must_use]
pub fn target() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// The profile that a program is shipped with; cargo names the folder after it. The agent has one of its own, where it is
/// built alone: beside others it would only be what they are built with. The boot tests' own program, which is made of the
/// same parts, is built the same way, so that those are built once.
fn profile(packages: &[&str]) -> &'static str {
    match packages {
        ["bascule-agent" | "bascule-boot-guest"] => "shipped",
        _ => "release",
    }
}

/// Builds the programs of these packages and returns the folder that holds them. cargo decides what is up to date.
///
/// # Errors
/// When cargo is not there or fails; the error holds the last lines it wrote.
pub fn build(workspace: &Path, packages: &[&str]) -> Result<PathBuf, Error> {
    // A folder of its own: the flags differ from those of every other build here.
    let folder = workspace.join("target/shipped");
    let (target, profile) = (target(), profile(packages));
    let mut command = cargo();
    command.current_dir(workspace).env("RUSTFLAGS", STATIC).env("CARGO_TARGET_DIR", &folder).args([
        "build",
        "--quiet",
        "--profile",
        profile,
        "--target",
        &target,
    ]);
    for package in packages {
        command.args(["--package", package]);
    }
    tool::run(&format!("building {}", packages.join(", ")), &mut command)?;
    Ok(folder.join(target).join(profile))
}
