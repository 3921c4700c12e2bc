//! A host as a small protocol: observe, stage, arm, commit, revert.
//!
//! What the operator and a person on the node ask for ([`crate::goal`], [`crate::manual`]) is decided here in these words only:
//! grants, trials, memory of failures, reboots. What each of them takes is the implementation's: the built-in slots
//! ([`crate::slots`]), and below those systemd-boot or gptprio. An updater that a host brings itself (over D-Bus, say) is
//! another implementation with effects of its own; what it can't promise it says as [`Guarantees`], and the operator and
//! people see that.

use bascule_api::{NodeError, PackFallback, RootHash, Version};
use bascule_image::Manifest;

use super::boot::PlacedImage;
use super::slots::BuiltInSlots;
use super::{Effect, Facts, KnownRelease, ReleaseTarget, State};

/// Whether something can be relied upon, in a sentence where it can't.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guarantee {
    /// It can.
    Given,
    /// It shows with the first trial.
    NotSeenYet(String),
    /// It can't.
    Missing(String),
}

/// What a host's way to update can be relied upon for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarantees {
    /// The running file system is read through dm-verity, by the root hash that was booted, and no change of it was noticed.
    /// Who signed the boot image that names the hash is the firmware's to ask (Secure Boot).
    pub verified: Guarantee,
    /// A trial that is never committed ends by itself.
    pub counted: Guarantee,
    /// Power lost while a release is armed leaves the old one or the new one as a trial.
    pub atomic: Guarantee,
    /// The release that runs before a trial is what the machine comes back to.
    pub way_back: Guarantee,
}

impl Guarantees {
    /// All of them, with the words for conditions: reason and name.
    pub const fn all(&self) -> [(&'static str, &'static str, &Guarantee); 4] {
        [
            ("NotVerified", "the running file system is verified", &self.verified),
            ("NotCounted", "trials end by themselves", &self.counted),
            ("NotAtomic", "arming is atomic", &self.atomic),
            ("NoWayBack", "there is a way back", &self.way_back),
        ]
    }
}

/// Why there is no plan: in a sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NoPlan {
    /// Something could not be read, and the next look may see more.
    Unseen(String),
    /// It can't be done.
    Refused(String),
}

/// How a release is armed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Arming {
    /// Looks once more whether what is armed is what was verified.
    pub(super) check: Effect,
    /// What has to be on record before anything is changed.
    pub(super) placed: Option<PlacedImage>,
    /// Arms.
    pub(super) effects: Vec<Effect>,
}

/// What a host shows, and the chains of effects that change it. Pure; a chain may break off anywhere, and the next one is
/// made from what is seen then.
pub(super) trait HostProtocol {
    /// What can be relied upon.
    fn guarantees(&self) -> Guarantees;

    // Observe.

    /// What matters and could not be seen, in a sentence.
    fn unseen(&self) -> Option<String>;
    /// The release that is staged: whole, read back, ready to be armed.
    fn staged(&self) -> Option<&KnownRelease>;
    /// A release beside the running one that this node once verified or ran, for the repository's rules.
    fn held(&self) -> Option<(Version, RootHash)>;
    /// A release, as what is staged or armed here.
    fn target(&self, release: &KnownRelease) -> ReleaseTarget;
    /// What can be gone back to as it is, or why there is nothing.
    fn other(&self) -> Result<ReleaseTarget, String>;
    /// Whether the next boot is a trial of what is armed.
    fn is_armed(&self) -> bool;

    // Stage.

    /// Why a release can't be staged here: the kind, and a sentence with what to do.
    fn refuses(&self, manifest: &Manifest, release: &KnownRelease) -> Option<(NodeError, String)>;
    /// Brings a release beside the running one. The next boot is not changed by it.
    fn stage(&self, release: &KnownRelease, fallback: PackFallback) -> Result<Vec<Effect>, NoPlan>;
    /// Reads what is staged once more; `quick` leaves out what takes long.
    fn check(&self, target: &ReleaseTarget, quick: bool) -> Effect;
    /// Gives up what is half staged.
    fn discard(&self) -> Vec<Effect>;

    // Arm.

    /// Makes the next boot a trial of a release.
    fn arm(&self, target: &ReleaseTarget, tries: u32, quick: bool) -> Result<Arming, NoPlan>;
    /// Takes that back before the boot.
    fn disarm(&self, target: &ReleaseTarget) -> Result<Vec<Effect>, NoPlan>;

    // Commit.

    /// Makes the running trial what is booted from now on.
    fn commit(&self) -> Result<Vec<Effect>, NoPlan>;

    // Revert.

    /// Makes the next boot one of the other release. Empty: it will be.
    fn revert(&self) -> Result<Vec<Effect>, NoPlan>;
}

/// The implementation that a host has. There is one by now; with another it is chosen here, by what was seen.
pub(super) const fn host<'a>(state: &'a State, facts: &'a Facts) -> BuiltInSlots<'a> {
    BuiltInSlots { state, facts }
}

#[cfg(test)]
mod tests {
    /// What is asked for is decided in the words of the protocol: neither slots nor boot entries are named there.
    #[test]
    fn goals_know_no_slots_and_no_boot_loader() {
        for (file, text) in [("goal.rs", include_str!("goal.rs")), ("manual.rs", include_str!("manual.rs"))] {
            let words =
                ["inactive", "booted_slot", ".boot.", ".entry", "Entry::", "SlotContent", "plan::", "BootPurpose"];
            let words = words.iter().chain(&["Effect::Verify", "WriteSlot", "Uki", "Seal", "Effect::Boot"]);
            for word in words {
                assert!(!text.contains(*word), "{file} names {word}, which is the business of an implementation");
            }
        }
    }
}
