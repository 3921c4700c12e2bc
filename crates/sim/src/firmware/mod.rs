//! What starts a machine: systemd-boot over an ESP, or a boot loader that reads priorities from the partition table.

pub mod boot_image;
pub mod entries;
pub mod gptprio;
pub mod loaders;
pub mod systemd_boot;
pub mod variables;

use serde::{Deserialize, Serialize};

pub use boot_image::{BootImage, Shown};
pub use loaders::Loaders;
pub use variables::Variables;

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
