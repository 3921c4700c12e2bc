//! Running one process and reading its times and peak memory from GNU time.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What one process took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Wall clock in seconds.
    pub(crate) wall: f64,
    /// Processor time (user and system) in seconds. Unlike the wall clock it hardly depends on what else the machine does.
    pub(crate) processor: f64,
    /// Peak resident memory in KiB.
    pub(crate) peak_kib: u64,
}

/// Runs a program to its end; its errors go to our standard error.
pub(crate) fn command<A: AsRef<OsStr>, P: AsRef<OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = A>,
    paths: impl IntoIterator<Item = P>,
) -> Result<()> {
    let status = Command::new(program).args(arguments).args(paths).stdout(std::process::Stdio::null()).status();
    let status = status.with_context(|| format!("{program} did not start"))?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}

/// Runs a shell command under GNU time. `wall` and `processor` include every process of the command.
pub(crate) fn measured(work: &Path, shell: &str) -> Result<Usage> {
    let report = work.join("time");
    let status = Command::new("/usr/bin/time")
        .args(["-f", "%e %U %S %M", "-o"])
        .arg(&report)
        .args(["bash", "-o", "pipefail", "-c", shell])
        .current_dir(work)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()?;
    ensure!(status.success(), "{shell} failed: {status}");
    let report = std::fs::read_to_string(report)?;
    let numbers: Vec<f64> = report.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers.as_slice() {
        [wall, user, system, peak] => Ok(Usage { wall: *wall, processor: user + system, peak_kib: *peak as u64 }),
        _ => anyhow::bail!("GNU time reported {report:?}"),
    }
}
