//! Running one process and reading its times and peak memory from GNU time.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// What one process took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Wall clock in seconds.
    pub(crate) wall: f64,
    /// Processor time (user and system) in seconds. Unlike the wall clock it hardly depends on what else the machine does.
    pub(crate) processor: f64,
    /// Peak resident memory in KiB, of the largest process.
    pub(crate) peak_kib: u64,
    /// Processors that anything else kept busy meanwhile, on average: how far the wall clock can be believed.
    pub(crate) others: f64,
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
    let (report, log) = (work.join("time"), work.join("step.log"));
    let (started, busy) = (Instant::now(), busy_seconds()?);
    let status = Command::new("/usr/bin/time")
        .args(["-f", "%e %U %S %M", "-o"])
        .arg(&report)
        .args(["bash", "-o", "pipefail", "-c", shell])
        .current_dir(work)
        .stdout(std::process::Stdio::null())
        .stderr(File::create(&log)?)
        .status()?;
    let (elapsed, busy) = (started.elapsed().as_secs_f64(), busy_seconds()? - busy);
    ensure!(status.success(), "{shell} failed ({status}): {}", std::fs::read_to_string(log)?.trim());
    let report = std::fs::read_to_string(report)?;
    let numbers: Vec<f64> = report.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers.as_slice() {
        [wall, user, system, peak] => {
            let processor = user + system;
            let others = ((busy - processor) / elapsed.max(0.01)).max(0.0);
            Ok(Usage { wall: *wall, processor, peak_kib: *peak as u64, others })
        }
        _ => anyhow::bail!("GNU time reported {report:?}"),
    }
}

/// Seconds that all processors together were busy since the machine started (proc_stat(5), in hundredths).
fn busy_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    match ticks.as_slice() {
        [user, nice, system, _idle, _wait, interrupts, soft, ..] => {
            Ok((user + nice + system + interrupts + soft) / 100.0)
        }
        _ => anyhow::bail!("/proc/stat begins with {line:?}"),
    }
}
