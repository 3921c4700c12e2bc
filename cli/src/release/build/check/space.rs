//! Whether a release fits the disks that it is for, and how it has grown.

use bascule_disk::least_for_entries;
use bascule_names::Version;

use super::{ESP_TOO_SMALL, Finding, GROWN, SLOT_TOO_SMALL};

/// Sizes of the layout that a release is for, in bytes, where they are said.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Space {
    pub(crate) slot: Option<u64>,
    pub(crate) verity: Option<u64>,
    pub(crate) esp: Option<u64>,
}

pub(crate) fn space(layout: Space, image: u64, hash_tree: u64, uki: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    for (what, need, have) in [("image", image, layout.slot), ("hash tree", hash_tree, layout.verity)] {
        if let Some(have) = have.filter(|have| *have < need) {
            let text = format!("the {what} has {} MiB, its partition {} MiB", mib(need), have >> 20);
            findings.push(SLOT_TOO_SMALL.found(text));
        }
    }
    let need = least_for_entries(uki);
    if let Some(have) = layout.esp.filter(|have| *have < need) {
        let text = format!(
            "3 UKIs of {} MiB and the boot loader need {} MiB, the ESP has {} MiB",
            mib(uki),
            mib(need),
            have >> 20
        );
        findings.push(ESP_TOO_SMALL.found(text));
    }
    findings
}

/// How much larger an image is than the one before it.
pub(crate) fn growth(base: &Version, before: u64, now: u64) -> Vec<Finding> {
    if now <= before.saturating_add(before / 4) {
        return Vec::new();
    }
    let share = 100_u64.saturating_mul(now.saturating_sub(before)) / before.max(1);
    vec![GROWN.found(format!("the image is {share} % larger than that of {base}"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_said() {
        let layout = Space { slot: Some(100 << 20), verity: Some(1 << 20), esp: Some(128 << 20) };
        assert_eq!(space(layout, 100 << 20, 1 << 20, 32 << 20), []);
        let found: Vec<u16> = space(layout, (100 << 20) + 1, (1 << 20) + 1, (32 << 20) + 1)
            .iter()
            .map(|finding| finding.check.number)
            .collect();
        assert_eq!(found, [10, 10, 11]);
        assert_eq!(space(Space::default(), u64::MAX, u64::MAX, u64::MAX), []);
    }

    #[test]
    fn growth_of_a_quarter_is_usual() {
        let base = "1.0".parse().unwrap();
        assert_eq!(growth(&base, 100, 125), []);
        assert_eq!(growth(&base, 100, 126).len(), 1);
        assert_eq!(growth(&base, 0, u64::MAX).len(), 1);
    }
}
