//! Hooks of the OS image: units that it may bring for moments of an update.
//!
//! They are template units of systemd, so that what runs, as whom and within what bounds is said where an OS says such things, and
//! the agent starts a unit by its name and nothing else. `docs/os-image.md` tells vendors what each may do.

use std::time::Duration;

use bascule_api::Version;

/// For how long a hook may run. A unit's own `TimeoutStartSec=` may be shorter.
pub const HOOK_LIMIT: Duration = Duration::from_secs(5 * 60);

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// In the release that is left, once the node may reboot and before the boot entry is armed. Fails: nothing is armed.
    BeforeArm,
    /// In the release that was just committed. Fails: tried again; the release stays committed.
    AfterCommit,
}

impl Hook {
    /// Its name in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BeforeArm => "hook-before-arm",
            Self::AfterCommit => "hook-after-commit",
        }
    }

    /// The unit, for a release: the one that is armed, or the one that was committed. The version is the instance, escaped as
    /// systemd escapes it (systemd.unit(5), "String Escaping for Inclusion in Unit Names"); `%I` in the unit is the version.
    pub fn unit(self, version: &Version) -> String {
        let template = match self {
            Self::BeforeArm => "bascule-before-arm",
            Self::AfterCommit => "bascule-after-commit",
        };
        let mut instance = String::new();
        for byte in version.as_str().bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b':' | b'_' | b'.' => instance.push(char::from(byte)),
                other => instance.push_str(&format!("\\x{other:02x}")),
            }
        }
        format!("{template}@{instance}.service")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_an_instance_of_the_unit() {
        for (version, unit) in [
            ("41.3.0", "bascule-before-arm@41.3.0.service"),
            ("1.0~rc.1-2", "bascule-before-arm@1.0\\x7erc.1\\x2d2.service"),
            ("2_0^git", "bascule-before-arm@2_0\\x5egit.service"),
        ] {
            assert_eq!(Hook::BeforeArm.unit(&version.parse().unwrap()), unit);
        }
        assert_eq!(Hook::AfterCommit.unit(&"1.0".parse().unwrap()), "bascule-after-commit@1.0.service");
    }
}
