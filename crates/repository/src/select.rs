//! Which release a node goes to, and from which pack: pure decisions over signed data and what the slots hold.

use bascule_image::release::channel::{Channel, Refusal, Release};
use bascule_image::release::manifest::{Manifest, Pack};
use bascule_names::{Architecture, Product, RootHash, Version};

/// What one slot holds, as verified by whoever looked at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Version of the release in the slot.
    pub version: Version,
    /// Its verity root hash.
    pub root_hash: RootHash,
}

/// What a node is and holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The product its OS image belongs to.
    pub product: Product,
    /// Its architecture.
    pub architecture: Architecture,
    /// The booted slot; `None` where nothing is installed yet.
    pub booted: Option<Held>,
    /// The other slot, if it holds a whole, verified release.
    pub other: Option<Held>,
}

impl Host {
    /// Root hashes of the images this node can read as the base of a delta. The slot that will be overwritten is no
    /// base, so this is the booted one only.
    pub fn bases(&self) -> Vec<RootHash> {
        self.booted.iter().map(|held| held.root_hash.clone()).collect()
    }
}

/// Which release is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// What the channel offers.
    Newest,
    /// This version.
    Version(Version),
}

/// What a node would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice<'a> {
    /// It runs the release already.
    Booted(&'a Release),
    /// The other slot holds it: no download. This is the one way back to an older release that needs no word of the
    /// channel, because this node verified that release once.
    InOtherSlot(&'a Release),
    /// Install this release.
    Install(&'a Release),
    /// Install `step` first, because `target` does not accept nodes from the running version.
    StepThrough { step: &'a Release, target: &'a Release },
    /// Nothing newer is offered: the channel is empty, or the newest release that was not withdrawn is older than what
    /// runs and does not ask to go back. Only for [`Wanted::Newest`]; whoever names a version gets a [`Refusal`].
    Stay { newest: Option<&'a Release> },
}

impl<'a> Choice<'a> {
    /// The release that the node's next action is about.
    pub fn release(&self) -> Option<&'a Release> {
        match self {
            Self::Booted(release) | Self::InOtherSlot(release) | Self::Install(release) => Some(release),
            Self::StepThrough { step, .. } => Some(step),
            Self::Stay { .. } => None,
        }
    }
}

/// Decides.
///
/// # Errors
/// A [`Refusal`] that says what would be accepted: another product or architecture, not in the channel, withdrawn, below
/// its floor, or a downgrade that neither the channel allows nor the other slot already holds.
pub fn decide<'a>(channel: &'a Channel, wanted: &Wanted, host: &Host) -> Result<Choice<'a>, Refusal> {
    channel.accept_for(&host.product)?;
    let version = match wanted {
        Wanted::Version(version) => version.clone(),
        Wanted::Newest => match channel.newest(host.architecture) {
            None => return Ok(Choice::Stay { newest: None }),
            Some(release) => {
                let lower = host.booted.as_ref().is_some_and(|booted| release.version < booted.version);
                if lower && !release.downgrade {
                    return Ok(Choice::Stay { newest: Some(release) });
                }
                release.version.clone()
            }
        },
    };
    if let Some(release) = channel.release(&version) {
        if host.booted.as_ref().is_some_and(|held| held.version == version) {
            return Ok(Choice::Booted(release));
        }
        if host.other.as_ref().is_some_and(|held| held.version == version) {
            return Ok(Choice::InOtherSlot(release));
        }
    }
    let target = channel.installable(&version, host.architecture)?;
    let Some(booted) = &host.booted else { return Ok(Choice::Install(target)) };
    let step = channel.step_towards(&version, &booted.version, host.architecture)?;
    Ok(if step.version == target.version { Choice::Install(target) } else { Choice::StepThrough { step, target } })
}

/// What to do when the cheapest pack is missing on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MissingPack {
    /// Take the next cheapest, at last the full pack, and say so.
    #[default]
    FallBack,
    /// Fail. For fleets behind thin lines, where a full image for each node costs more than a late update.
    Refuse,
}

/// The packs to try, in this order.
pub fn candidates<'a>(manifest: &'a Manifest, bases: &[RootHash], missing: MissingPack) -> Vec<&'a Pack> {
    let mut packs = manifest.usable_packs(bases);
    if missing == MissingPack::Refuse {
        packs.truncate(1);
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_image::release::channel::Withdrawal;

    /// A channel with 1.0, 2.0 (only from 1.0 on) and 3.0 (only from 2.0 on).
    fn channel() -> Channel {
        let release = |version: &str, floor: Option<&str>| {
            let digest = format!("sha256:{}", "0".repeat(64));
            let file = serde_json::json!({"path": "a", "size": 1, "digest": digest});
            serde_json::json!({
                "version": version,
                "manifests": {"x86-64": file},
                "publishedAt": "2026-03-01T12:00:00Z",
                "floor": floor,
            })
        };
        let releases = [release("1.0", None), release("2.0", Some("1.0")), release("3.0", Some("2.0"))];
        let text = serde_json::json!({"format": 1, "product": "acme-os", "channel": "stable", "releases": releases});
        Channel::parse(text.to_string().as_bytes()).unwrap()
    }

    fn host(running: Option<&str>) -> Host {
        let held =
            |version: &str| Held { version: version.parse().unwrap(), root_hash: RootHash::from_bytes(&[1; 32]) };
        Host {
            product: "acme-os".parse().unwrap(),
            architecture: Architecture::X86_64,
            booted: running.map(held),
            other: None,
        }
    }

    fn chosen(running: Option<&str>) -> String {
        let channel = channel();
        match decide(&channel, &Wanted::Newest, &host(running)) {
            Ok(Choice::StepThrough { step, target }) => format!("{} on the way to {}", step.version, target.version),
            Ok(Choice::Install(release)) => format!("install {}", release.version),
            Ok(Choice::Booted(release)) => format!("runs {}", release.version),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn floors_are_stepped_through() {
        assert_eq!(chosen(Some("0.9")), "1.0 on the way to 3.0");
        assert_eq!(chosen(Some("1.0")), "2.0 on the way to 3.0");
        assert_eq!(chosen(Some("2.0")), "install 3.0");
        assert_eq!(chosen(Some("3.0")), "runs 3.0");
        assert_eq!(chosen(None), "install 3.0");
    }

    #[test]
    fn an_empty_channel_is_no_reason_to_move() {
        let mut empty = channel();
        empty.releases.clear();
        assert_eq!(decide(&empty, &Wanted::Newest, &host(Some("1.0"))), Ok(Choice::Stay { newest: None }));
        let named = decide(&empty, &Wanted::Version("1.0".parse().unwrap()), &host(Some("0.9")));
        assert!(matches!(named, Err(Refusal::NotInChannel { .. })));
    }

    /// Every channel of three releases with every combination of withdrawn, downgrade and floor, against every node: the
    /// rules hold for all of them, not for the few that somebody thought of.
    #[test]
    fn the_rules_hold_for_every_small_channel_and_node() {
        let versions: Vec<Version> = ["1.0", "2.0", "3.0", "4.0"].map(|text| text.parse().unwrap()).to_vec();
        let template = channel();
        let mut decided = [0_u32; 6];
        // Three bits for each of three releases.
        for bits in 0..512_u32 {
            let mut channel = template.clone();
            for (at, release) in channel.releases.iter_mut().enumerate() {
                let bit = |number: u32| bits >> (at as u32 * 3 + number) & 1 == 1;
                release.withdrawn = bit(0).then(|| Withdrawal { at: release.published_at, reason: "bad".to_owned() });
                release.downgrade = bit(1);
                if !bit(2) {
                    release.floor = None;
                }
            }
            let held = |at: usize| {
                let version = versions.get(at.checked_sub(1)?)?.clone();
                Some(Held { version, root_hash: RootHash::from_bytes(&[1; 32]) })
            };
            for case in 0..5 * 5 * 5_usize {
                let (booted, other, wanted) = (held(case % 5), held(case / 5 % 5), held(case / 25));
                let node = Host { booted, other, ..host(None) };
                let wanted = wanted.map_or(Wanted::Newest, |held| Wanted::Version(held.version));
                let shown = || format!("{node:?} {wanted:?} {:?}", channel.releases);
                let running = node.booted.as_ref().map(|held| &held.version);
                match decide(&channel, &wanted, &node) {
                    Ok(Choice::Booted(release)) => {
                        decided[0] += 1;
                        assert_eq!(Some(&release.version), running, "{}", shown());
                    }
                    Ok(Choice::InOtherSlot(release)) => {
                        decided[1] += 1;
                        assert_eq!(
                            Some(&release.version),
                            node.other.as_ref().map(|held| &held.version),
                            "{}",
                            shown()
                        );
                    }
                    Ok(choice @ (Choice::Install(release) | Choice::StepThrough { step: release, .. })) => {
                        decided[if matches!(choice, Choice::Install(_)) { 2 } else { 3 }] += 1;
                        assert!(release.withdrawn.is_none(), "{}", shown());
                        if let Some(running) = running {
                            assert!(release.version >= *running || release.downgrade, "{}", shown());
                            assert!(release.floor.as_ref().is_none_or(|floor| floor <= running), "{}", shown());
                            assert_ne!(release.version, *running, "{}", shown());
                        }
                        if let Wanted::Version(wanted) = &wanted {
                            assert!(release.version <= *wanted, "{}", shown());
                        }
                    }
                    Ok(Choice::Stay { .. }) => {
                        decided[4] += 1;
                        assert_eq!(wanted, Wanted::Newest, "{}", shown());
                    }
                    Err(_) => decided[5] += 1,
                }
            }
        }
        assert!(decided.iter().all(|count| *count > 100), "each outcome occurs: {decided:?}");
    }
}
