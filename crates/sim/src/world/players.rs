//! Who takes part in some worlds only, beside people, machines and bad luck, who take part in all.
//!
//! One world has one of them at most, so that what a world shows is one player's doing. Each decides by chances of its own: those of the
//! worlds without it stay what they are.

use super::World;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// How long after its boot an agent speaks at the latest, in seconds. Less than any policy waits for it.
const AGENT_SPEAKS_WITHIN: i64 = 300;
/// How long newer versions of Kubernetes show a node as Ready that says nothing more, in seconds.
const NEWER_GRACE: i64 = 50;
/// Of a hundred rounds, in how many the newest version is published anew; and of a machine that is to boot what was armed, in how many
/// somebody picks another entry.
const PUBLISHES: u32 = 4;
const PICKS: u32 = 25;

/// Somebody who takes part in some worlds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Player {
    /// Watches of Nodes, NodeUpdates, pods, and of policies, Freezes and Rollbacks stand still, each by itself, for up to three rounds.
    LateViews,
    /// Agents speak up to five minutes after their Nodes.
    LateWords,
    /// Who is away looks Ready for 50 s, and is unreachable then: five minutes later its pods are replaced, and end when it is back.
    Unreachable,
    /// Pods that are evicted end up to two minutes later, and the statuses of budgets are up to a minute old.
    SlowPods,
    /// Somebody cordons over the operator's mark, deletes policies and NodeUpdates, edits labels, and freezes some policies or nodes.
    People,
    /// What a leader had in flight when it died lands beside the writes of the next.
    TwoLeaders,
    /// The newest version is published anew, with another image.
    PublishedAnew,
    /// Somebody at a machine has it start another boot entry than the one that its agent armed.
    AnotherEntry,
}

impl Player {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::LateViews,
        Self::LateWords,
        Self::Unreachable,
        Self::SlowPods,
        Self::People,
        Self::TwoLeaders,
        Self::PublishedAnew,
        Self::AnotherEntry,
    ];
}

/// Who takes part, by `seed / 16 % 9`: sixteen worlds in a row have the same, so that it meets all that is in each fifth, eighth or
/// sixteenth world. Whoever is held back is `None` here, and stands in docs/testing.md.
const PLAYERS: [Option<Player>; 9] = [
    Some(Player::LateViews),
    Some(Player::LateWords),
    None, // Unreachable
    None, // SlowPods
    Some(Player::People),
    Some(Player::PublishedAnew),
    Some(Player::AnotherEntry),
    Some(Player::TwoLeaders),
    None,
];

/// Who takes part in the world of a seed.
pub(super) fn of_seed(seed: u64) -> Option<Player> {
    let place = usize::try_from(seed / 16 % 9).unwrap_or_default();
    PLAYERS.get(place).copied().flatten()
}

/// The chances of a player.
pub(super) fn chances(seed: u64, player: Player) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed.rotate_left(48) ^ 0x9ad1_0000 ^ player as u64)
}

impl World {
    /// Has whoever takes part in the world of this seed take part in it.
    pub(super) fn invite(&mut self, player: Option<Player>) {
        let Some(player) = player else { return };
        self.tell(&format!("{player:?} takes part"));
        let random = chances(self.seed, player);
        match player {
            Player::LateViews => self.late = Some(super::late::Late::new(random)),
            Player::LateWords | Player::People | Player::TwoLeaders | Player::PublishedAnew | Player::AnotherEntry => {
                self.company = Some((player, random))
            }
            Player::SlowPods => self.workload.slow = Some(random),
            Player::Unreachable => {
                self.workload.replaces = true;
                self.company = Some((player, random));
            }
        }
        let names: Vec<String> = self.machines.keys().cloned().collect();
        for name in names {
            self.greet(&name);
        }
    }

    /// What whoever takes part does to a machine that is new.
    pub(super) fn greet(&mut self, name: &str) {
        let Some((player, random)) = &mut self.company else { return };
        let Some(machine) = self.machines.get_mut(name) else { return };
        match player {
            Player::LateWords => machine.agent_seconds = random.random_range(0..=AGENT_SPEAKS_WITHIN),
            Player::Unreachable => machine.grace = NEWER_GRACE,
            Player::LateViews
            | Player::SlowPods
            | Player::People
            | Player::TwoLeaders
            | Player::PublishedAnew
            | Player::AnotherEntry => {}
        }
    }

    /// With some luck the vendor publishes a version anew, or somebody is at a machine.
    pub(super) fn meddle(&mut self) {
        let Some((player, random)) = &mut self.company else { return };
        match player {
            Player::PublishedAnew if random.random_range(0..100) < PUBLISHES => {
                let times = random.random_range(1..=u8::MAX);
                self.publish_anew(times);
            }
            Player::AnotherEntry => {
                let leaving = self.machines.iter_mut().filter(|(_, machine)| machine.leaves() && !machine.elsewhere);
                let mut told = Vec::new();
                for (name, machine) in leaving {
                    if random.random_range(0..100) < PICKS {
                        machine.elsewhere = true;
                        told.push(format!("{name}: somebody picks another boot entry"));
                    }
                }
                for line in told {
                    self.tell(&line);
                }
            }
            _ => {}
        }
    }

    /// The newest version has another image from now on.
    fn publish_anew(&mut self, times: u8) {
        let newest = self.snapshot.policies.first().and_then(|policy| policy.offer.releases.last());
        let Some(version) = newest.map(|release| release.version.clone()) else { return };
        self.tell(&format!("{version} is published anew"));
        let digest = super::build::digest_anew(version.as_str(), times);
        self.change_offers(|offer| {
            if let Some(release) = offer.releases.last_mut() {
                release.digests.insert(bascule_api::Architecture::X86_64, digest.clone());
            }
        });
    }
}
