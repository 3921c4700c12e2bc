//! The built-in implementation of a host: two slots on a disk with a GUID partition table, each checked by dm-verity, and a
//! boot loader that counts tries (systemd-boot, or one that goes by GPT attributes).

mod observe;
mod stage;
mod switch;
#[cfg(test)]
mod tests;

use bascule_api::{NodeError, PackFallback, RootHash, Version};
use bascule_image::Manifest;

use super::protocol::{Arming, Guarantees, HostProtocol, NoPlan};
use super::{Effect, Facts, KnownRelease, ReleaseTarget, State};

pub(super) use observe::ready;

/// The slots as they were seen, with what is remembered of them.
#[derive(Clone, Copy)]
pub(super) struct BuiltInSlots<'a> {
    pub(super) state: &'a State,
    pub(super) facts: &'a Facts,
}

impl HostProtocol for BuiltInSlots<'_> {
    fn guarantees(&self) -> Guarantees {
        observe::guarantees(self.state, self.facts)
    }

    fn unseen(&self) -> Option<String> {
        (!self.facts.boot.saw_everything()).then(|| super::boot::plan::unread(self.facts))
    }

    fn staged(&self) -> Option<&KnownRelease> {
        ready(self.state, self.facts)
    }

    fn held(&self) -> Option<(Version, RootHash)> {
        observe::held(self.state, self.facts)
    }

    fn target(&self, release: &KnownRelease) -> ReleaseTarget {
        ReleaseTarget::known(self.facts.inactive(), release)
    }

    fn other(&self) -> Result<ReleaseTarget, String> {
        observe::other(self.state, self.facts)
    }

    fn is_armed(&self) -> bool {
        observe::is_armed(self.facts)
    }

    fn refuses(&self, manifest: &Manifest, release: &KnownRelease) -> Option<(NodeError, String)> {
        stage::fits(self.state.config.memory_limit, self.facts, manifest, release).err()
    }

    fn stage(&self, release: &KnownRelease, fallback: PackFallback) -> Result<Vec<Effect>, NoPlan> {
        stage::stage(self.state, self.facts, release, fallback)
    }

    fn check(&self, target: &ReleaseTarget, quick: bool) -> Effect {
        let image = switch::image_of(self.facts, target);
        Effect::Verify { target: target.clone(), image, quick }
    }

    fn discard(&self) -> Vec<Effect> {
        stage::discard(self.facts)
    }

    fn arm(&self, target: &ReleaseTarget, tries: u32, quick: bool) -> Result<Arming, NoPlan> {
        let arming = super::boot::plan::arm(self.facts, target, tries)?;
        let check = self.check(target, quick);
        Ok(Arming { check, placed: arming.placed, effects: vec![Effect::Boot(arming.step)] })
    }

    fn disarm(&self, target: &ReleaseTarget) -> Result<Vec<Effect>, NoPlan> {
        switch::disarm(self.facts, target)
    }

    fn commit(&self) -> Result<Vec<Effect>, NoPlan> {
        switch::commit(self.facts)
    }

    fn revert(&self) -> Result<Vec<Effect>, NoPlan> {
        switch::revert(self.facts)
    }
}
