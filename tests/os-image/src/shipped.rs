//! Builds programs exactly as they are shipped: the release profile of the workspace, one static file that needs nothing
//! of the root it runs in. `cargo xtask agent`, the images and the boot tests all come here, so that what is measured and
//! tested is what a vendor would put into an image.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::{Error, cargo::cargo, tool};

/// glibc and all else inside the program: it must also run in an empty root, and in whatever a vendor's image holds.
///
/// The crate getrandom looks for getrandom(2) by dlsym, which finds nothing in a static program, and then reads
/// `/dev/urandom`, which an empty root has not: it is told to call the function that is linked in.
const STATIC: [&str; 3] = ["-C", "target-feature=+crt-static", "--cfg=getrandom_backend=\"linux_getrandom\""];

/// What programs are shipped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    /// `amd64` in images.
    X86_64,
    /// `arm64` in images.
    Arm64,
}

impl Architecture {
    /// Of this machine, if programs are shipped for it.
    #[must_use]
    pub fn own() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Arm64),
            _ => None,
        }
    }

    /// Its name, as Rust and GNU have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// The target that cargo is told, also where it is this machine's own: cargo then keeps the flags away from build scripts
    /// and procedural macros, which can't be linked statically.
    #[must_use]
    pub fn target(self) -> String {
        format!("{}-unknown-linux-gnu", self.name())
    }

    /// What the names of GNU's tools for it begin with, where it is not this machine's own (Debian, `gcc-aarch64-linux-gnu`).
    #[must_use]
    pub fn tools(self) -> String {
        if Self::own() == Some(self) { String::new() } else { format!("{}-linux-gnu-", self.name()) }
    }
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
    // Where it is none of the two, cargo says what is missing.
    build_for(workspace, packages, Architecture::own().unwrap_or(Architecture::X86_64))
}

/// The same for an architecture, which may be another than this machine's: its compiler for C and its part of Rust's library
/// have to be there.
///
/// # Errors
/// As [`build`].
pub fn build_for(workspace: &Path, packages: &[&str], architecture: Architecture) -> Result<PathBuf, Error> {
    // A folder of its own: the flags differ from those of every other build here.
    let folder = workspace.join("target/shipped");
    let (target, profile) = (architecture.target(), profile(packages));
    let mut command = cargo();
    let tools = architecture.tools();
    if !tools.is_empty() {
        let variable = target.replace('-', "_");
        command.env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), format!("{tools}gcc"));
        command
            .env(format!("CC_{variable}"), format!("{tools}gcc"))
            .env(format!("AR_{variable}"), format!("{tools}ar"));
    }
    command
        .current_dir(workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(workspace))
        .env("CARGO_TARGET_DIR", &folder)
        .args(["build", "--quiet", "--profile", profile, "--target", &target]);
    for package in packages {
        command.args(["--package", package]);
    }
    tool::run(&format!("building {}", packages.join(", ")), &mut command)?;
    Ok(folder.join(target).join(profile))
}

/// What the compiler is told. Messages of a panic name source files: without the places of this machine in them another
/// checkout of the same commit, in another folder, by another user, is the same program to the byte.
fn flags(workspace: &Path) -> OsString {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    // Of several that fit the compiler takes the last one (rustc book, "Remap source paths").
    let places = cargo_home.into_iter().map(|home| (home, "=/cargo")).chain([(workspace.to_owned(), "=/bascule")]);
    let mut flags = OsString::from(STATIC.join("\u{1f}"));
    for (place, name) in places {
        flags.push("\u{1f}--remap-path-prefix=");
        flags.push(place);
        flags.push(name);
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A workspace whose program names the place of a file that its build script wrote, as a panic there would.
    fn lay_out(workspace: &Path) {
        let source = workspace.join("program/src");
        fs::create_dir_all(&source).unwrap();
        let profile = "[profile.release]\nopt-level = \"s\"\nlto = \"thin\"\ncodegen-units = 4\npanic = \"abort\"\nstrip = true\n";
        let members = "[workspace]\nresolver = \"3\"\nmembers = [\"program\"]\n";
        fs::write(workspace.join("Cargo.toml"), format!("{members}{profile}")).unwrap();
        let package = "[package]\nname = \"program\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        fs::write(workspace.join("program/Cargo.toml"), package).unwrap();
        let script = r#"fn main() {
            let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").unwrap());
            std::fs::write(out.join("made.rs"), "pub fn first(of: &[u8]) -> u8 { of[0] }").unwrap();
        }"#;
        fs::write(workspace.join("program/build.rs"), script).unwrap();
        let program = r#"mod made { include!(concat!(env!("OUT_DIR"), "/made.rs")); }
        fn main() {
            let name = std::env::args().next().unwrap_or_default();
            println!("{}", made::first(name.as_bytes()));
        }"#;
        fs::write(source.join("main.rs"), program).unwrap();
    }

    #[test]
    fn a_program_is_the_same_to_the_byte_whichever_folder_it_is_built_in() {
        let folder = tempfile::tempdir().unwrap();
        let built = ["here", "in/another/place"].map(|place| {
            let workspace = folder.path().join(place);
            lay_out(&workspace);
            fs::read(build(&workspace, &["program"]).unwrap().join("program")).unwrap()
        });
        let holds = |text: &str| built[0].windows(text.len()).any(|part| part == text.as_bytes());
        assert!(holds("/bascule/target/shipped") && !holds(folder.path().to_str().unwrap()));
        // Not shown when they differ: programs.
        assert!(built[0] == built[1], "another folder makes another program");
    }
}
