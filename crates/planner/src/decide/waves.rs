//! Waves: which nodes go before which, and when the next wave may start.

use super::facts::NodeView;
use crate::Wait;
use bascule_api::{DisruptionOutcome, Time, Version, WaitReason, Wave, WaveStatus};
use std::sync::Arc;

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
pub(super) struct Member<'a, 'b> {
    pub(super) index: usize,
    pub(super) view: &'b NodeView<'a>,
    pub(super) standing: Standing,
    /// Whether it stepped through the floor of the release already: it keeps its place in its wave.
    pub(super) begun: bool,
}

/// The waves of a policy at a moment.
#[derive(Debug, Default)]
pub(super) struct Waves {
    /// For nodes that have still to go (by their index in the snapshot), what holds their wave back.
    wave_of: Vec<(usize, u8)>,
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
        let at = self.wave_of.binary_search_by_key(&node, |(index, _)| *index).ok()?;
        self.wave_of.get(at).map(|(_, wave)| usize::from(*wave))
    }

    /// Assigns members to waves and looks which of them may move.
    pub(super) fn new(waves: &[Wave], members: &[Member<'_, '_>], now: Time) -> Self {
        if waves.is_empty() {
            return Self::default();
        }
        let assigned = assign(waves, members);
        let mut out = Self { names: waves.iter().map(|wave| wave.name.clone()).collect(), ..Self::default() };
        if assigned.len() > out.names.len() {
            out.names.push("remaining".to_owned());
        }
        let mut held: Option<Arc<Wait>> = None;
        let of = u32::try_from(assigned.iter().filter(|wave| !wave.is_empty()).count()).unwrap_or(u32::MAX);
        let mut place = 0_u32;
        for (index, nodes) in assigned.iter().enumerate() {
            out.held.push(held.clone());
            let number = u8::try_from(index).unwrap_or(u8::MAX);
            out.wave_of.extend(nodes.iter().map(|member| (member.index, number)));
            if nodes.is_empty() {
                continue;
            }
            place += 1;
            if held.is_some() {
                continue;
            }
            let name = out.names.get(index).map_or("", String::as_str);
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
            held = hold(&mut status, nodes, soak, now);
            if held.is_some() || out.current.is_none() || place == of {
                out.soak_until = status.soak_until;
                out.current = Some(status);
            }
        }
        out.wave_of.sort_unstable();
        out
    }
}

/// What holds the waves behind this one back.
fn hold(
    status: &mut WaveStatus,
    nodes: &[Member<'_, '_>],
    soak: bascule_api::Duration,
    now: Time,
) -> Option<Arc<Wait>> {
    let unfinished = nodes.iter().find(|member| matches!(member.standing, Standing::Moving | Standing::Ahead));
    let stuck = || nodes.iter().find(|member| member.standing == Standing::Unable);
    let holding = unfinished.or_else(|| if status.done == 0 { stuck() } else { None });
    let name = &status.name;
    if let Some(member) = holding {
        let message = format!("wave {name} comes first: {} of {} nodes are done", status.done, status.nodes);
        return Some(Arc::new(Wait::new(WaitReason::Wave, message).of("Node", None, &member.view.node.name)));
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
    Some(Arc::new(Wait::new(WaitReason::Soak, message).until(Some(until))))
}

/// Waves are filled in order. Where a wave takes some of many nodes, those that already run the release or are on
/// their way count first, so that a wave keeps its size while it moves; then nodes that can be updated, the
/// operator's own last.
fn assign<'a, 'b>(waves: &[Wave], members: &[Member<'a, 'b>]) -> Vec<Vec<Member<'a, 'b>>> {
    let mut remaining: Vec<Member<'a, 'b>> = members.to_vec();
    remaining.sort_unstable_by_key(|member| {
        let rank = match member.standing {
            Standing::Done(_) | Standing::Moving => 0_u8,
            Standing::Ahead | Standing::Unable if member.begun => 1,
            Standing::Ahead => 2,
            Standing::Unable => 3,
        };
        (rank, member.view.runs_operator, member.view.lot, member.index)
    });
    let mut out = Vec::with_capacity(waves.len() + 1);
    for wave in waves {
        let taken: Vec<_> = if let Some(selector) = &wave.selector {
            let (taken, rest) = remaining.into_iter().partition(|member| selector.matches(&member.view.node.labels));
            remaining = rest;
            taken
        } else {
            let count = match (wave.count, wave.percent) {
                (Some(count), _) => usize::try_from(count).unwrap_or(usize::MAX),
                (None, Some(percent)) => {
                    members.len().saturating_mul(usize::try_from(percent).unwrap_or(100)).div_ceil(100)
                }
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

/// Since when a node runs a release, by the operator's own clock where it moved the node itself; the agent's clock
/// may be wrong.
pub(super) fn done_since(view: &NodeView<'_>, version: &Version, now: Time) -> Time {
    let own = view
        .update
        .and_then(|update| update.spec.last_disruption.as_ref())
        .filter(|last| last.outcome == DisruptionOutcome::Committed && last.version.as_ref() == Some(version));
    own.map(|last| last.ended_at)
        .or_else(|| view.booted().and_then(|booted| booted.committed_at))
        .unwrap_or_default()
        .min(now)
}
