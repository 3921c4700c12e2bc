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
}

/// Who takes part, by `seed / 16 % 8`: sixteen worlds in a row have the same, so that it meets all that is in each fifth, eighth or
/// sixteenth world. Whoever is to be held back is `None` here, and stands in docs/testing.md as not played.
const PLAYERS: [Option<Player>; 8] = [
    Some(Player::LateViews),
    Some(Player::LateWords),
    Some(Player::Unreachable),
    Some(Player::SlowPods),
    Some(Player::People),
    None,
    None,
    None,
];

/// Who takes part in the world of a seed.
pub(super) fn of_seed(seed: u64) -> Option<Player> {
    let place = usize::try_from(seed / 16 % 8).unwrap_or_default();
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
            Player::LateWords | Player::People => self.company = Some((player, random)),
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
            Player::LateViews | Player::SlowPods | Player::People => {}
        }
    }
}
