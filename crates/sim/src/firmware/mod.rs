//! What starts a machine: systemd-boot over an ESP, or a boot loader that reads priorities from the partition table.

use serde::{Deserialize, Serialize};

/// The boot loader of a machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootLoader {
    /// Boot Loader Specification entries with counters in their names.
    #[default]
    SystemdBoot,
    /// GPT attribute bits of ChromeOS, CoreOS, Flatcar and Bottlerocket.
    Gptprio,
}
