//! Waves: which nodes go before which, and when the next wave may start.
//!
//! Which nodes are in a wave of some of many follows from how all of them stand, so that it is others after each node that joins,
//! leaves or falls ill. That a wave was complete is therefore remembered with the rollout: it holds nobody up again, and its soak
//! counts from then.

use crate::Wait;
use bascule_api::{CompleteWave, Duration, Time, WaitReason, Wave, WaveStatus};
use std::sync::Arc;

/// More waves than a policy may have.
const NO_WAVE: u8 = u8::MAX;

/// How a member of a policy stands to the release that is rolled out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Runs it, committed, since then.
    Done(Time),
    /// Is on its way to it.
    Moving,
    /// Has still to go.
    Ahead,
    /// Can't be updated for a reason of its own.
    Unable,
}

/// One member of a policy.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    pub(super) index: usize,
    pub(super) standing: Standing,
    /// A bit for each wave whose selector matches it.
    pub(super) selected: u64,
    pub(super) runs_operator: bool,
    /// Whether it stepped through the floor of the release already: it keeps its place in its wave.
    pub(super) begun: bool,
}

/// The waves of a policy at a moment.
#[derive(Debug, Default)]
pub(super) struct Waves {
    /// The wave of each node, by its index in the snapshot; [`NO_WAVE`] for nodes of other policies.
    wave_of: Vec<u8>,
    held: Vec<Option<Arc<Wait>>>,
    /// The wave that moves now.
    pub(super) current: Option<WaveStatus>,
    /// Name of each wave.
    pub(super) names: Vec<String>,
    /// When a soak ends.
    pub(super) soak_until: Option<Time>,
    /// The waves that are or were complete, to be remembered.
    pub(super) complete: Vec<CompleteWave>,
}

/// What the waves of a policy are made from, its members apart.
pub(super) struct Rollout<'r, 'n> {
    pub(super) policy: &'r str,
    pub(super) waves: &'r [Wave],
    /// The waves of which is remembered that they were complete.
    pub(super) complete: &'r [CompleteWave],
    /// Whether what is remembered counts.
    pub(super) remembers: bool,
    /// How many nodes the snapshot has.
    pub(super) all: usize,
    pub(super) now: Time,
    /// The nodes' names, by their index in the snapshot.
    pub(super) node_name: &'r dyn Fn(usize) -> &'n str,
}

impl Waves {
    /// What holds a node's wave back.
    pub(super) fn holds(&self, node: usize) -> Option<&Arc<Wait>> {
        self.held.get(self.index_of(node)?)?.as_ref()
    }

    /// The place of the node's wave, from 0.
    pub(super) fn index_of(&self, node: usize) -> Option<usize> {
        self.wave_of.get(node).filter(|wave| **wave != NO_WAVE).map(|wave| usize::from(*wave))
    }

    /// Assigns members of a policy, given by their lot, to its waves and looks which of them may move.
    pub(super) fn new<'m>(rollout: &Rollout<'_, '_>, members: impl Iterator<Item = &'m Member>) -> Self {
        let Rollout { policy, waves, now, .. } = *rollout;
        if waves.is_empty() {
            return Self::default();
        }
        let assigned = assign(waves, members);
        let names = waves.iter().map(|wave| wave.name.clone()).collect();
        let is_wave = |known: &&CompleteWave| waves.iter().any(|wave| wave.name == known.name);
        let complete = rollout.complete.iter().filter(is_wave).cloned().collect();
        let mut out = Self { names, complete, wave_of: vec![NO_WAVE; rollout.all], ..Self::default() };
        if assigned.len() > out.names.len() {
            out.names.push("remaining".to_owned());
        }
        let mut held: Option<Held> = None;
        let of = u32::try_from(assigned.iter().filter(|wave| !wave.is_empty()).count()).unwrap_or(u32::MAX);
        let mut place = 0_u32;
        for (index, nodes) in assigned.iter().enumerate() {
            out.held.push(held.as_ref().map(|held| Arc::clone(&held.wait)));
            let number = u8::try_from(index).unwrap_or(u8::MAX);
            for member in nodes {
                if let Some(wave) = out.wave_of.get_mut(member.index) {
                    *wave = number;
                }
            }
            if nodes.is_empty() {
                continue;
            }
            place += 1;
            let name = out.names.get(index).map_or("", String::as_str);
            if let Some(held) = &mut held {
                if !held.stuck {
                    held.wait = Arc::new(comes_first(policy, name, nodes.len()));
                }
                continue;
            }
            let wave = waves.get(index);
            let done = nodes.iter().filter(|member| matches!(member.standing, Standing::Done(_))).count();
            let mut status = WaveStatus {
                name: name.to_owned(),
                index: place,
                of,
                done: u32::try_from(done).unwrap_or(u32::MAX),
                nodes: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
                soak_until: None,
            };
            held = match out.complete_at(rollout, wave, nodes) {
                Some(at) => soaks(&mut status, at, wave.map_or(Duration::ZERO, |wave| wave.soak), now),
                None => Some(unfinished(rollout, &status, nodes)),
            };
            if held.is_some() || out.current.is_none() || place == of {
                out.soak_until = status.soak_until;
                out.current = Some(status);
            }
        }
        // When every node runs the release it has passed the waves that had no node, too.
        let mut all = assigned.iter().flatten().peekable();
        if all.peek().is_some() && all.all(|member| matches!(member.standing, Standing::Done(_))) {
            for wave in waves {
                out.note(&wave.name, now);
            }
        }
        out
    }

    /// When a wave was complete first: as is remembered, or as its nodes stand now.
    fn complete_at(&mut self, rollout: &Rollout<'_, '_>, wave: Option<&Wave>, nodes: &[Member]) -> Option<Time> {
        let known = wave.and_then(|wave| self.complete.iter().find(|known| known.name == wave.name));
        if let Some(known) = known.filter(|_| rollout.remembers) {
            return Some(known.complete_at.min(rollout.now));
        }
        let at = complete_since(nodes, rollout.now)?;
        // A moment in which most of its nodes can't be updated, as when a network fails, is nothing to remember.
        let unable = nodes.iter().filter(|member| member.standing == Standing::Unable).count();
        if let Some(wave) = wave.filter(|_| unable.saturating_mul(2) <= nodes.len()) {
            self.note(&wave.name, at);
        }
        Some(at)
    }

    /// Notes a wave as complete, unless that is known.
    fn note(&mut self, name: &str, complete_at: Time) {
        if !self.complete.iter().any(|known| known.name == name) {
            self.complete.push(CompleteWave { name: name.to_owned(), complete_at });
        }
    }
}

/// What holds waves back.
struct Held {
    /// What the next wave waits for. Each wave names the one before it, and not the one that moves: every node that
    /// waits would be explained anew with every wave that is done.
    wait: Arc<Wait>,
    /// Whether nothing goes on before somebody mends a node, which then all waves name.
    stuck: bool,
}

fn comes_first(policy: &str, wave: &str, nodes: usize) -> Wait {
    let nodes = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
    let message = format!("wave {wave} of {nodes} comes first");
    Wait::new(WaitReason::Wave, message).of("UpdatePolicy", None, policy)
}

/// Since when all nodes of a wave that can be updated run the release, where at least one does.
fn complete_since(nodes: &[Member], now: Time) -> Option<Time> {
    if nodes.iter().any(|member| matches!(member.standing, Standing::Moving | Standing::Ahead)) {
        return None;
    }
    let done = nodes.iter().filter_map(|member| match member.standing {
        Standing::Done(at) => Some(at.min(now)),
        Standing::Moving | Standing::Ahead | Standing::Unable => None,
    });
    done.max()
}

/// What the nodes of a wave that was never complete hold back. How far it is stands in the policy's status and not here: every
/// node that waits would be explained anew with every node that is done.
fn unfinished(rollout: &Rollout<'_, '_>, status: &WaveStatus, nodes: &[Member]) -> Held {
    let stuck = nodes.first().filter(|_| nodes.iter().all(|member| member.standing == Standing::Unable));
    let Some(member) = stuck else {
        return Held { wait: Arc::new(comes_first(rollout.policy, &status.name, nodes.len())), stuck: false };
    };
    let message = format!("wave {} comes first, and none of its {} nodes can be updated", status.name, status.nodes);
    let wait = Wait::new(WaitReason::Wave, message).of("Node", None, (rollout.node_name)(member.index));
    Held { wait: Arc::new(wait), stuck: true }
}

/// What a wave that is or was complete holds the next one back with.
fn soaks(status: &mut WaveStatus, complete_at: Time, soak: Duration, now: Time) -> Option<Held> {
    let until = complete_at.after(soak);
    if now >= until {
        return None;
    }
    status.soak_until = Some(until);
    let message = format!("wave {} is done and soaks for {soak}", status.name);
    let wait = Wait::new(WaitReason::WaveSoak, message).until(Some(until));
    Some(Held { wait: Arc::new(wait), stuck: false })
}

/// Waves are filled in order. Where a wave takes some of many nodes, those that already run the release or are on
/// their way count first, so that a wave keeps its size while it moves; then nodes that can be updated, the
/// operator's own last.
fn assign<'m>(waves: &[Wave], members: impl Iterator<Item = &'m Member>) -> Vec<Vec<Member>> {
    let mut ranked: [Vec<Member>; 8] = Default::default();
    let mut all = 0_usize;
    for member in members {
        all += 1;
        let rank = match member.standing {
            Standing::Done(_) | Standing::Moving => 0,
            Standing::Ahead | Standing::Unable if member.begun => 2,
            Standing::Ahead => 4,
            Standing::Unable => 6,
        };
        if let Some(bucket) = ranked.get_mut(rank + usize::from(member.runs_operator)) {
            bucket.push(*member);
        }
    }
    let mut remaining = ranked.concat();
    let mut out = Vec::with_capacity(waves.len() + 1);
    for (index, wave) in waves.iter().enumerate() {
        let taken: Vec<_> = if wave.selector.is_some() {
            let selected = |member: &Member| member.selected >> index & 1 == 1;
            let (taken, rest) = remaining.into_iter().partition(selected);
            remaining = rest;
            taken
        } else {
            let count = match (wave.count, wave.percent) {
                (Some(count), _) => usize::try_from(count).unwrap_or(usize::MAX),
                (None, Some(percent)) => all.saturating_mul(usize::try_from(percent).unwrap_or(100)).div_ceil(100),
                (None, None) => usize::MAX,
            };
            remaining.drain(..count.min(remaining.len())).collect()
        };
        out.push(taken);
    }
    if !remaining.is_empty() {
        out.push(remaining);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::new(chrono::DateTime::from_timestamp(seconds, 0).unwrap())
    }

    fn waves(texts: &[&str], standings: &[Standing]) -> Waves {
        remembering(texts, standings, &[])
    }

    /// The same at second 10,000, with waves of which is remembered when they were complete.
    fn remembering(texts: &[&str], standings: &[Standing], known: &[(&str, i64)]) -> Waves {
        let waves: Vec<Wave> = texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let member = |(index, standing): (usize, &Standing)| Member {
            index,
            standing: *standing,
            selected: 0,
            runs_operator: false,
            begun: false,
        };
        let members: Vec<_> = standings.iter().enumerate().map(member).collect();
        let note = |(name, seconds): &(&str, i64)| CompleteWave { name: (*name).to_owned(), complete_at: at(*seconds) };
        let known: Vec<_> = known.iter().map(note).collect();
        let rollout = Rollout {
            policy: "p",
            waves: &waves,
            complete: &known,
            remembers: true,
            all: members.len(),
            now: at(10_000),
            node_name: &|_| "n",
        };
        Waves::new(&rollout, members.iter())
    }

    fn complete(waves: &Waves) -> Vec<(&str, i64)> {
        waves.complete.iter().map(|known| (known.name.as_str(), known.complete_at.get().timestamp())).collect()
    }

    fn said(waves: &Waves) -> Vec<&str> {
        (0..3).map(|node| waves.holds(node).map_or("", |wait| wait.message.as_str())).collect()
    }

    const THREE: [&str; 3] =
        [r#"{"name": "a", "count": 1, "soak": "1h"}"#, r#"{"name": "b", "count": 1}"#, r#"{"name": "c"}"#];

    #[test]
    fn each_wave_names_the_one_before_it_however_far_those_are() {
        let done = Standing::Done(at(9_900));
        let first = waves(&THREE, &[Standing::Moving, Standing::Ahead, Standing::Ahead]);
        assert_eq!(said(&first), ["", "wave a of 1 node comes first", "wave b of 1 node comes first"]);
        let soaking = waves(&THREE, &[done, Standing::Ahead, Standing::Ahead]);
        assert_eq!(said(&soaking)[2], said(&first)[2], "the soak is the affair of the next wave alone");
        assert_eq!(soaking.holds(1).map(|wait| wait.reason), Some(WaitReason::WaveSoak));
    }

    #[test]
    fn a_wave_that_nothing_can_be_done_about_is_named_by_all() {
        let stuck = waves(&THREE, &[Standing::Unable, Standing::Unable, Standing::Unable]);
        let message = "wave a comes first, and none of its 1 nodes can be updated";
        assert_eq!(said(&stuck), ["", message, message]);
    }

    #[test]
    fn a_wave_that_was_complete_holds_nobody_back_again_and_its_soak_counts_from_then() {
        let (done, moving) = (Standing::Done(at(9_900)), Standing::Moving);
        // The first by lot joined in the middle, and is in the first wave since it moves.
        let joined = remembering(&THREE, &[moving, done, Standing::Ahead], &[("a", 6_000), ("b", 9_900)]);
        assert_eq!(said(&joined), ["", "", ""]);
        assert_eq!(said(&waves(&THREE, &[moving, done, Standing::Ahead]))[2], "wave b of 1 node comes first");
        let soaking = remembering(&THREE, &[moving, done, Standing::Ahead], &[("a", 7_000)]);
        assert_eq!(soaking.holds(1).and_then(|wait| wait.until), Some(at(10_600)));
        // A node that was done later than the others does not begin the soak anew either.
        let later = remembering(&THREE, &[done, Standing::Ahead, Standing::Ahead], &[("a", 6_000)]);
        assert_eq!((later.holds(1), complete(&later)), (None, vec![("a", 6_000)]));
        // Nor does one that can't be updated, though it alone is left of the wave.
        let stuck = remembering(&THREE, &[Standing::Unable, Standing::Unable, Standing::Unable], &[("a", 6_000)]);
        assert!(stuck.holds(1).is_none(), "{:?}", said(&stuck));
    }

    #[test]
    fn what_is_complete_is_noted_once_and_waves_that_the_policy_has_no_more_are_forgotten() {
        let done = Standing::Done(at(9_000));
        let first = waves(&THREE, &[done, Standing::Ahead, Standing::Ahead]);
        assert_eq!(complete(&first), [("a", 9_000)]);
        let known = [("renamed", 1_000), ("a", 2_000)];
        let edited = remembering(&THREE, &[done, done, Standing::Ahead], &known);
        assert_eq!(complete(&edited), [("a", 2_000), ("b", 9_000)]);
        // With all nodes done the rollout has passed every wave, those without a node included.
        let few = remembering(&THREE, &[done], &known);
        assert_eq!(complete(&few), [("a", 2_000), ("b", 10_000), ("c", 10_000)]);
        assert!(complete(&waves(&THREE, &[])).is_empty(), "no node runs it");
        // That most of a wave can't be updated may be over in a moment.
        let four = [r#"{"name": "a", "count": 4}"#, r#"{"name": "b"}"#];
        let half = |unable: usize| {
            let standing = |index: usize| if index < unable { Standing::Unable } else { done };
            remembering(&four, &(0..4).map(standing).collect::<Vec<_>>(), &[])
        };
        assert_eq!((complete(&half(2)), complete(&half(3))), (vec![("a", 9_000)], vec![]));
    }
}
