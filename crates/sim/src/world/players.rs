//! Who takes part in some worlds only, beside people, machines and bad luck, who take part in all.
//!
//! One world has one of them at most, so that what a world shows is one player's doing. Each decides by chances of its own: those of the
//! worlds without it stay what they are.

use super::World;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// Somebody who takes part in some worlds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Player {
    /// Watches of Nodes, NodeUpdates, pods, and of policies, Freezes and Rollbacks stand still, each by itself, for up to three rounds.
    LateViews,
}

/// Who takes part, by `seed / 16 % 8`: sixteen worlds in a row have the same, so that it meets all that is in each fifth, eighth or
/// sixteenth world. Whoever is to be held back is `None` here, and stands in docs/testing.md as not played.
const PLAYERS: [Option<Player>; 8] = [Some(Player::LateViews), None, None, None, None, None, None, None];

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
        }
    }
}
