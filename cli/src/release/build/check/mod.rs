//! What a build would do to the nodes that get it, found before it reaches them. Errors stop. Each finding has a number, by
//! which a vendor accepts a warning that he means, and an error that is right for a set-up of his.

mod boot;
mod host;
mod image;
mod policy;
mod signed;
mod space;
mod tree;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::bail;
use bascule_names::{Architecture, Product, Version};

pub(crate) use boot::{command_line, firmware_file, kernel, release_of_kernel, uki};
use host::host;
pub(crate) use image::image;
pub(crate) use policy::policy;
pub(crate) use signed::{is_signed, vouched};
pub(crate) use space::{Space, growth, space};
pub(crate) use tree::tree;

/// What a build is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) product: &'a Product,
    pub(crate) version: &'a Version,
    pub(crate) architecture: Architecture,
}

/// What becomes of a release of which something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// It is stopped.
    Error,
    /// It is stopped until somebody accepts the number: wrong for a fleet, but for a set-up of its own.
    UnlessAccepted,
    /// It is said, and stops where warnings are to stop.
    Warning,
}

/// A check that can fail. The number never changes its meaning: vendors write it in their scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) number: u16,
    weight: Weight,
    /// What it means and how to fix it.
    explanation: &'static str,
}

macro_rules! checks {
    ($($name:ident = $number:literal $kind:ident $explanation:literal;)*) => {
        $(pub(crate) const $name: Check =
            Check { number: $number, weight: checks!(@$kind), explanation: $explanation };)*
        /// Every check, by number.
        #[cfg(test)]
        const ALL: &[Check] = &[$($name),*];
    };
    (@error) => { Weight::Error };
    (@unless_accepted) => { Weight::UnlessAccepted };
    (@warning) => { Weight::Warning };
}

checks! {
    EMPTY_TREE = 1 error "The root tree has nothing in it, so a node that boots it finds no system. Give the folder that holds etc, usr and so on.";
    OTHER_PRODUCT = 2 error "IMAGE_ID in os-release is the product whose releases a node accepts. A release that calls itself something else than it is published as makes a node that refuses its own updates.";
    OTHER_VERSION = 3 error "IMAGE_VERSION in os-release is what the node, the boot menu and the boot loader's order go by. If it is not the release's version, the node reports another release than it was given, and reverts.";
    OTHER_MACHINE = 4 error "The file is for other processors: the firmware of a node refuses to start it, and every node reverts after its tries. Take kernel and stub of the release's architecture, or correct --architecture.";
    NO_KERNEL = 5 error "The firmware can't start it: a kernel is a PE file (bzImage with EFI stub on x86-64, an uncompressed or zboot Image on arm64). Take vmlinuz as the distribution ships it.";
    OWN_ROOT_HASH = 6 error "The build computes the root hash and puts it in. One written by hand names another image or none. Leave it out, or write {roothash} where it is to stand.";
    OTHER_ROOT_HASH = 7 error "The command line names the root by its hash. A UKI that names another one boots another image, or none.";
    COMPRESSED = 8 error "A delta finds nothing again in compressed data: each update would cost as much as a first installation. Packs are compressed on their way, so make the image without compression.";
    OTHER_MODULES = 9 error "The tree has kernel modules, and none of the kernel that boots: nothing that is a module (network, storage, file systems) would load.";
    SLOT_TOO_SMALL = 10 error "Image and hash tree don't fit the slot of the layout: no node could stage the release.";
    ESP_TOO_SMALL = 11 error "The boot partition holds the UKI that runs, the one in the other slot, and for a moment the one that is being written.";
    NOT_SIGNED = 12 error "Firmware with Secure Boot on starts only what a certificate in its db vouches for: every node would refuse the release before it is drained, and stay where it is. Sign the boot image with --secure-boot-key where the release is built.";
    SEVERAL_PROFILES = 13 error "The boot loader shows an entry for each profile of a UKI, with one counter for all, and a profile may boot something else than the release: every node would refuse it before it is drained. Build the UKI with one profile.";
    NO_TRUST_ROOT = 14 unless_accepted "By /usr/lib/bascule/root.json a node judges every release, whether its agent is a service of the host or a pod. One that boots this release takes no other after it, and nothing that is published changes that. Copy the repository's 1.root.json there. Another place is meant only where repository.trust-root in the image's settings names it.";
    NO_GUARD = 15 unless_accepted "The guard takes a release back that nobody commits in time, also one whose agent never starts. It is part of every image, where the agent is a pod too: /usr/bin/bascule-agent, bascule-guard.service, and the link by which a target starts it (systemctl --root=TREE enable bascule-guard.service). Without links it is meant only where presets are applied at each boot.";
    NO_AGENT = 16 unless_accepted "Without its agent a node that boots this release reports nothing, is not committed, and goes back once the guard's time is over. Enable the unit in the tree (systemctl --root=TREE enable bascule-agent.service). It is meant where the agent is a pod of the DaemonSet.";
    OTHER_POLICY = 17 error "A signature in .pcrsig is for a value of PCR 11 that this image does not come to: what is bound to the key stays closed on each machine that boots it. Whatever is measured (kernel, initrd, command line, os-release, the public key) decides the value, and so do the phases that the OS enters. Sign what is built, by --pcr-key or --pcr-signer, and name phases of your own with --pcr-phase.";
    OTHER_POLICY_KEY = 18 error "A machine binds its secrets to the key in .pcrpkey. Without a signature by that key that holds nothing opens under this release. Sign with the private key that belongs to it.";
    TREE_TOO_LARGE = 19 error "An image has at most 16 GiB: agents refuse a larger one. One file that is much longer than what is in it is a frequent cause (a disk image, a database's file, /var/log/lastlog): leave it out, or make it at the first boot.";
    NO_BOOT_LOADER = 20 error "With --boot-loader nodes take the systemd-boot that lies in the image, at usr/lib/systemd/boot/efi: none is there, or it is another program, or says no version. Install the package systemd-boot-efi (systemd-boot-unsigned elsewhere) into the tree, or leave the option out: then nodes keep the boot loader that they have.";
    LOADER_NOT_SIGNED = 35 unless_accepted "Firmware with Secure Boot on starts no boot loader that its db does not vouch for: every node refuses it and keeps the one that it has. Sign it in the tree before the build (bascule release sign-efi FILE FILE.signed, with the key of the UKI). It is meant where the fleet has firmware of both kinds and the boot loader is for those without.";
    NO_IDENTITY = 21 warning "Without IMAGE_ID and IMAGE_VERSION in os-release a node does not know what it runs. Write them when the image is made.";
    NO_INIT = 22 warning "The tree has no /usr/lib/systemd/systemd, /usr/sbin/init or /sbin/init, so nothing runs after the kernel.";
    NO_PANIC_RESTART = 23 warning "A trial is only taken back if a machine that gets nowhere restarts. Without panic=SECONDS (1 is usual) a kernel that panics stands still until somebody comes.";
    NO_OOPS_PANIC = 24 warning "Without oops=panic and softlockup_panic=1 a kernel that is damaged or loops goes on, and a trial that hangs is not taken back.";
    SHELL = 25 warning "The command line opens a shell without a password, or starts something else than the system. That is for looking for faults, not for a fleet.";
    NO_SBAT = 26 warning "Without an .sbat section a UKI can't be revoked by generation, and shim refuses to start it. systemd's stub brings one along.";
    NO_MODULES = 27 warning "The tree has no kernel modules. That is right only for a kernel that has everything built in.";
    NO_ROOT_DRIVERS = 28 warning "Neither the modules nor the list of built-in ones name what the root needs (erofs, dm-verity). A node that boots this finds no root, unless the initrd brings them.";
    DEVICE_NODES = 29 warning "Device nodes in an image are never used: devtmpfs is mounted over /dev. They are often left by whatever made the tree.";
    UNKNOWN_FORMAT = 30 warning "The image is neither EROFS nor anything else that is known here. Whether it is compressed, and whether the kernel can mount it, could not be looked at.";
    GROWN = 31 warning "The image is more than a quarter larger than the base. That may be meant; a log, a cache or a second kernel is a frequent cause.";
    ONE_SIGNED = 32 warning "Firmware with Secure Boot on starts neither a boot loader nor a boot image that is not signed. Sign the one with --secure-boot-key where the disk is made, the other where the release is built.";
    UNJUDGED_POLICY = 33 warning "What .pcrsig and .pcrpkey say could not be held against what a TPM will hold, so whether secrets open under this release is known when a machine boots it. Try it on one.";
    SPARSE_FILE = 34 warning "The file is long, and most of it is holes. An image has no holes: each is written as zeros, into every slot. Leave the file out, or make it at the first boot.";
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) check: Check,
    pub(crate) text: String,
}

impl Finding {
    /// Whether it stops a release of which nobody says that it is meant.
    pub(crate) fn stops(&self) -> bool {
        self.check.weight != Weight::Warning
    }
}

impl Check {
    pub(crate) fn found(self, text: impl Into<String>) -> Finding {
        Finding { check: self, text: text.into() }
    }
}

/// Which findings are meant, and how much is said.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct CheckArguments {
    /// Accept the finding with this number: it is meant. Errors that no set-up can mean are not accepted. May be repeated.
    #[arg(long, value_name = "NUMBER", help_heading = "Checks")]
    accept: Vec<u16>,

    /// Stop at warnings that are not accepted.
    #[arg(long, help_heading = "Checks")]
    strict: bool,

    /// Say with each finding what it means and how to fix it.
    #[arg(long, help_heading = "Checks")]
    explain: bool,
}

impl CheckArguments {
    /// Tells what was found; stops at errors.
    pub(crate) fn judge(&self, findings: &[Finding]) -> anyhow::Result<()> {
        let (text, stops) = self.tell(findings);
        if !text.is_empty() {
            crate::output::say(text.trim_end());
        }
        match stops {
            0 => Ok(()),
            1 => bail!("1 finding stops the release"),
            count => bail!("{count} findings stop the release"),
        }
    }

    fn tell(&self, findings: &[Finding]) -> (String, usize) {
        let mut text = String::new();
        let mut stops = 0;
        let mut explained = BTreeSet::new();
        for finding in findings {
            let check = finding.check;
            let acceptable = check.weight != Weight::Error;
            if acceptable && self.accept.contains(&check.number) {
                continue;
            }
            let word = if finding.stops() { "error" } else { "warning" };
            stops += usize::from(finding.stops() || self.strict);
            // Writing to a String can't fail.
            let _ = writeln!(text, "{word} {}: {}", check.number, finding.text);
            if self.explain && explained.insert(check.number) {
                let _ = writeln!(text, "  {}", check.explanation);
                if acceptable {
                    let _ = writeln!(text, "  If it is meant: --accept {}", check.number);
                }
            }
        }
        (text, stops)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique() {
        let numbers: BTreeSet<u16> = ALL.iter().map(|check| check.number).collect();
        assert_eq!(numbers.len(), ALL.len());
    }

    #[test]
    fn errors_stop_and_warnings_are_accepted_by_number() {
        let findings = [NO_SBAT.found("no .sbat"), GROWN.found("grown"), OTHER_PRODUCT.found("other")];
        let arguments = CheckArguments { accept: vec![26, 2], strict: false, explain: true };
        let (text, stops) = arguments.tell(&findings);
        assert_eq!(stops, 1, "an error can't be accepted: {text}");
        assert!(
            !text.contains("no .sbat") && text.contains("warning 31: grown") && text.contains("--accept 31"),
            "{text}"
        );
        let strict = CheckArguments { accept: vec![26], strict: true, explain: false };
        assert_eq!(strict.tell(&findings[..2]).1, 1);
        assert_eq!(strict.tell(&findings[..1]), (String::new(), 0));
    }

    #[test]
    fn an_error_that_a_set_up_can_mean_stops_until_its_number_is_accepted() {
        let findings = [NO_AGENT.found("no agent")];
        assert!(findings[0].stops());
        let told = |accept: Vec<u16>| CheckArguments { accept, strict: false, explain: true }.tell(&findings);
        let (text, stops) = told(vec![14]);
        assert_eq!(stops, 1);
        assert!(text.contains("error 16: no agent") && text.contains("If it is meant: --accept 16"), "{text}");
        assert_eq!(told(vec![16]), (String::new(), 0));
    }
}
