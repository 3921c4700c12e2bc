//! Faults that a release carries on purpose, so that tests can see a machine leave it again. They are named in the
//! initrd's copy of os-release; a release without `BASCULE_FAULT=` has none.

use std::fs;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The kernel crashes.
    KernelPanic,
    /// Nothing happens any more.
    InitrdHang,
}

impl Fault {
    pub(crate) fn of_this_release() -> Option<Self> {
        Self::parse(&fs::read_to_string("/etc/initrd-release").ok()?)
    }

    fn parse(release: &str) -> Option<Self> {
        match release.lines().find_map(|line| line.strip_prefix("BASCULE_FAULT="))? {
            "panic" => Some(Self::KernelPanic),
            "hang" => Some(Self::InitrdHang),
            // The other faults are those of programs that run later.
            _ => None,
        }
    }

    pub(crate) fn happen(self) {
        if self == Self::KernelPanic {
            // kernel documentation, admin-guide/sysrq: "c" crashes at once. Should it fail, we hang instead.
            let _ = fs::write("/proc/sysrq-trigger", "c");
        }
        loop {
            let _ = rustix::event::poll(&mut [], None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_faults_of_the_initrd_are_ours() {
        assert_eq!(Fault::parse("ID=x\nBASCULE_FAULT=hang\n"), Some(Fault::InitrdHang));
        assert_eq!(Fault::parse("BASCULE_FAULT=panic\n"), Some(Fault::KernelPanic));
        assert_eq!(Fault::parse("BASCULE_FAULT=never-ready\n"), None);
        assert_eq!(Fault::parse("ID=x\n"), None);
    }
}
