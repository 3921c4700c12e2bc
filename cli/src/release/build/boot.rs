//! What boots the image: a UKI made of kernel, initrd and command line, or a ready one.

use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use bascule_image::release::manifest::MAX_UKI_SIZE;
use bascule_image::uki::MAX_COMMAND_LINE;
use bascule_names::{Architecture, RootHash};
use bascule_release::{BootParts, Pcr, read_bounded};
use clap::Args;

use super::check::{self, Finding};

/// Where Debian and Fedora put systemd's stub for x86-64.
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

#[derive(Debug, Args)]
pub(crate) struct BootArguments {
    /// Ready UKI. Its command line must carry the image's root hash.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "initrd", "cmdline", "kernel_release"])]
    uki: Option<PathBuf>,

    /// Kernel to make a UKI of.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// Initrd; several are put together in this order.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Vec<PathBuf>,

    /// Kernel command line. {roothash} in it stands for the root hash; without it, roothash=… is added.
    #[arg(long, value_name = "TEXT", requires = "kernel", default_value = "")]
    cmdline: String,

    /// What `uname -r` prints with this kernel.
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    kernel_release: Option<String>,

    /// systemd's EFI stub to put it in.
    #[arg(long, value_name = "FILE", default_value = STUB)]
    stub: PathBuf,
}

impl BootArguments {
    /// Finds what is missing before hours of work.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match (&self.uki, &self.kernel) {
            (None, None) => bail!("say what boots the image: --kernel (with --initrd and --cmdline) or a ready --uki"),
            (None, Some(_)) if !self.stub.is_file() => bail!(
                "{} is not there; install systemd's EFI stub (apt install systemd-boot-efi) or name it with --stub",
                self.stub.display()
            ),
            _ => {}
        }
        let files = self.uki.iter().chain(&self.kernel).chain(&self.initrd);
        for path in files {
            ensure!(path.is_file(), "{} is no file", path.display());
        }
        ensure!(self.cmdline.len() <= MAX_COMMAND_LINE, "--cmdline is longer than {MAX_COMMAND_LINE} bytes");
        Ok(())
    }

    /// What can be said of kernel, stub and command line before an image is made; and the kernel's release, where it is
    /// known.
    pub(super) fn look(&self, architecture: Architecture) -> anyhow::Result<(Vec<Finding>, Option<String>)> {
        let Some(kernel) = &self.kernel else { return Ok((Vec::new(), None)) };
        let kernel = read_bounded(kernel, MAX_UKI_SIZE)?;
        let mut findings = check::kernel(&kernel, architecture);
        findings.extend(check::firmware_file("the stub", &read_bounded(&self.stub, MAX_UKI_SIZE)?, architecture));
        findings.extend(check::command_line(&self.cmdline));
        Ok((findings, self.kernel_release.clone().or_else(|| check::release_of_kernel(&kernel))))
    }

    /// The UKI's bytes. A ready one says itself what it says of a TPM's policies.
    pub(super) fn uki(&self, root_hash: &RootHash, os_release: &str, pcr: Pcr<'_>) -> anyhow::Result<Vec<u8>> {
        match (&self.uki, &self.kernel) {
            (Some(path), _) => Ok(read_bounded(path, MAX_UKI_SIZE)?),
            (None, Some(kernel)) => {
                let initrd: Vec<&Path> = self.initrd.iter().map(PathBuf::as_path).collect();
                let parts = BootParts {
                    stub: &self.stub,
                    kernel,
                    initrd: &initrd,
                    command_line: &self.cmdline,
                    kernel_release: self.kernel_release.as_deref(),
                    pcr,
                };
                Ok(parts.build(root_hash, os_release)?)
            }
            (None, None) => bail!("say what boots the image"),
        }
    }
}
