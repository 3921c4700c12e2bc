//! What kind of file a disk is kept in.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;

/// A kind of disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Byte for byte what the disk holds. Sparse: what is zero takes no room.
    Raw,
    /// QEMU's format, made with qemu-img.
    Qcow2,
}

impl Format {
    /// As asked for, else by the file's name.
    pub(super) fn of(asked: Option<Self>, out: &Path) -> Self {
        let qcow2 = out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("qcow2"));
        asked.unwrap_or(if qcow2 { Self::Qcow2 } else { Self::Raw })
    }

    /// Finds what is missing before the work.
    pub(super) fn check(self) -> anyhow::Result<()> {
        if self == Self::Raw {
            return Ok(());
        }
        match Command::new("qemu-img").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!(
                    "qemu-img is not there; install it (apt install qemu-utils), or make a raw image with --format raw"
                )
            }
            other => other.map(drop).context("can't run qemu-img"),
        }
    }

    /// Gives the file in this format, beside the raw one.
    pub(super) fn convert(self, raw: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
        if self == Self::Raw {
            return Ok(raw.to_owned());
        }
        let to = folder.join("qcow2");
        let output = Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "qcow2"]).arg(raw).arg(&to).output();
        let output = output.context("can't run qemu-img")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "qemu-img failed: {}", said.trim());
        Ok(to)
    }
}
