//! The programs that the story runs: built from this workspace, as they are shipped but without the long optimisation.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};

/// Where the programs lie.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// `bascule-operator`.
    pub(crate) operator: PathBuf,
    /// `bascule`, the command line tool that on-call uses.
    pub(crate) cli: PathBuf,
    /// The program that plays a machine; the shipped agent is inside.
    pub(crate) machine: PathBuf,
}

/// (package, program)
const WANTED: [(&str, &str); 3] =
    [("bascule-operator", "bascule-operator"), ("bascule-cli", "bascule"), ("bascule-sim", "bascule-sim-node")];

impl Programs {
    /// Builds what is not built. Blocks.
    ///
    /// # Errors
    /// The compiler refuses; the message has its last lines.
    pub(crate) fn build() -> anyhow::Result<Self> {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // This program is named too: cargo unites the features of what is built together, and another set of packages
        // would compile half of them anew.
        cargo.args(["build", "--quiet", "--package", "xtask"]).current_dir(crate::workspace_root());
        for (package, program) in WANTED {
            cargo.args(["--package", package, "--bin", program]);
        }
        let output = cargo.output().context("cannot start cargo")?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
            bail!("the programs of the sandbox do not build:\n{tail}");
        }
        // They lie beside this program, which the same cargo built.
        let own = std::env::current_exe().context("cannot find this program's own folder")?;
        let folder = own.parent().context("this program lies in no folder")?;
        let path = |program: &str| folder.join(program);
        Ok(Self { operator: path("bascule-operator"), cli: path("bascule"), machine: path("bascule-sim-node") })
    }
}
