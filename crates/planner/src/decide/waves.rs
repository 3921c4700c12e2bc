//! Waves: which nodes go before which, and when the next wave may start.

use crate::Wait;
use bascule_api::{Time, WaitReason, Wave, WaveStatus};
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

    /// Assigns members of a policy, given by their lot, to its waves and looks which of them may move. `all` is how many
    /// nodes the snapshot has, `node_name` says their names.
    pub(super) fn new<'m, 'n>(
        policy: &str,
        waves: &[Wave],
        members: impl Iterator<Item = &'m Member>,
        all: usize,
        now: Time,
        node_name: &dyn Fn(usize) -> &'n str,
    ) -> Self {
        if waves.is_empty() {
            return Self::default();
        }
        let assigned = assign(waves, members);
        let names = waves.iter().map(|wave| wave.name.clone()).collect();
        let mut out = Self { names, wave_of: vec![NO_WAVE; all], ..Self::default() };
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
            let soak = waves.get(index).map_or(bascule_api::Duration::ZERO, |wave| wave.soak);
            let done = nodes.iter().filter(|member| matches!(member.standing, Standing::Done(_))).count();
            let mut status = WaveStatus {
                name: name.to_owned(),
                index: place,
                of,
                done: u32::try_from(done).unwrap_or(u32::MAX),
                nodes: u32::try_from(nodes.len()).unwrap_or(u32::MAX),
                soak_until: None,
            };
            held = hold(policy, &mut status, nodes, soak, now, node_name);
            if held.is_some() || out.current.is_none() || place == of {
                out.soak_until = status.soak_until;
                out.current = Some(status);
            }
        }
        out
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

impl Held {
    fn by(wait: Wait) -> Option<Self> {
        Some(Self { wait: Arc::new(wait), stuck: false })
    }
}

fn comes_first(policy: &str, wave: &str, nodes: usize) -> Wait {
    let nodes = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
    let message = format!("wave {wave} of {nodes} comes first");
    Wait::new(WaitReason::Wave, message).of("UpdatePolicy", None, policy)
}

/// What holds the waves behind this one back. How far it is stands in the policy's status and not here: every node that
/// waits would be explained anew with every node that is done.
fn hold<'n>(
    policy: &str,
    status: &mut WaveStatus,
    nodes: &[Member],
    soak: bascule_api::Duration,
    now: Time,
    node_name: &dyn Fn(usize) -> &'n str,
) -> Option<Held> {
    let name = &status.name;
    if nodes.iter().any(|member| matches!(member.standing, Standing::Moving | Standing::Ahead)) {
        return Held::by(comes_first(policy, name, nodes.len()));
    }
    let stuck = nodes.iter().find(|member| member.standing == Standing::Unable).filter(|_| status.done == 0);
    if let Some(member) = stuck {
        let message = format!("wave {name} comes first, and none of its {} nodes can be updated", status.nodes);
        let wait = Wait::new(WaitReason::Wave, message).of("Node", None, node_name(member.index));
        return Some(Held { wait: Arc::new(wait), stuck: true });
    }
    let last = nodes.iter().filter_map(|member| match member.standing {
        Standing::Done(at) => Some(at.min(now)),
        _ => None,
    });
    let until = last.max()?.after(soak);
    if now >= until {
        return None;
    }
    status.soak_until = Some(until);
    let message = format!("wave {name} is done and soaks for {soak}");
    Held::by(Wait::new(WaitReason::WaveSoak, message).until(Some(until)))
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

    fn waves(texts: &[&str], standings: &[Standing]) -> Waves {
        let waves: Vec<Wave> = texts.iter().map(|text| serde_json::from_str(text).unwrap()).collect();
        let member = |(index, standing): (usize, &Standing)| Member {
            index,
            standing: *standing,
            selected: 0,
            runs_operator: false,
            begun: false,
        };
        let members: Vec<_> = standings.iter().enumerate().map(member).collect();
        let now = Time::new(chrono::DateTime::from_timestamp(1_000, 0).unwrap());
        Waves::new("p", &waves, members.iter(), members.len(), now, &|_| "n")
    }

    fn said(waves: &Waves) -> Vec<&str> {
        (0..3).map(|node| waves.holds(node).map_or("", |wait| wait.message.as_str())).collect()
    }

    const THREE: [&str; 3] =
        [r#"{"name": "a", "count": 1, "soak": "1h"}"#, r#"{"name": "b", "count": 1}"#, r#"{"name": "c"}"#];

    #[test]
    fn each_wave_names_the_one_before_it_however_far_those_are() {
        let done = Standing::Done(Time::new(chrono::DateTime::from_timestamp(900, 0).unwrap()));
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
}
