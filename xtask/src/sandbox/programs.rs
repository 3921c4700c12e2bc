//! The programs that the story runs: built from this workspace, as they are shipped but without the long optimisation.

use std::path::PathBuf;
use std::process::Stdio;

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

/// By their names.
const WANTED: [&str; 3] = ["bascule-operator", "bascule", "bascule-sim-node"];

impl Programs {
    /// Builds what is not built. Blocks.
    ///
    /// # Errors
    /// The compiler refuses, and says why on standard error.
    pub(crate) fn build() -> anyhow::Result<Self> {
        let mut cargo = bascule_os_image::cargo();
        // No package is named: cargo unites the features of what is selected, which is then the whole workspace as for this
        // program and for tests. Another set would compile half of it anew.
        cargo.arg("build").current_dir(crate::workspace_root());
        for program in WANTED {
            cargo.args(["--bin", program]);
        }
        // cargo says itself how far it is; the table is not drawn yet.
        let status = cargo.stdin(Stdio::null()).status().context("cannot start cargo")?;
        if !status.success() {
            bail!("the programs of the sandbox do not build; what cargo said stands above");
        }
        // They lie beside this program, which the same cargo built.
        let own = std::env::current_exe().context("cannot find this program's own folder")?;
        let folder = own.parent().context("this program lies in no folder")?;
        let path = |program: &str| folder.join(program);
        Ok(Self { operator: path("bascule-operator"), cli: path("bascule"), machine: path("bascule-sim-node") })
    }
}
