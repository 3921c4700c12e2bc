//! Invariant 9: nobody waits for ever. Once nothing happens any more, whoever waits for a window was seen in an open one with a reason
//! that is no window's, nor that its writes are refused; whoever waits for a wave has another node before it that a person has to look
//! after; and whoever is halted waits for a newer release than one that failed.

use super::{
    facts::{members, policy_of},
    past::Past,
    reasons::head,
    windows::{Stand, stand},
};
use crate::world::{
    check::lasts,
    history::{Event, Planned},
};
use bascule_api::{MaintenanceWindow, WaitReason};
use bascule_planner::{
    Wait,
    snapshot::{Node, PolicyFacts},
};

/// How many seconds before the end a window must have opened for somebody to have looked.
const SEEN_WITHIN: i64 = 60;

pub(super) fn judge(past: &Past<'_>, event: &Event) -> Vec<String> {
    if !matches!(event, Event::Rest) {
        return Vec::new();
    }
    let quiet = past.quiet();
    let Some(last) = quiet.last() else { return Vec::new() };
    let policies = last.view.facts.policies.iter();
    policies.flat_map(|policy| of_policy(past, &quiet, last, policy)).collect()
}

fn of_policy(past: &Past<'_>, quiet: &[&Planned], last: &Planned, policy: &PolicyFacts) -> Vec<String> {
    let Ok(valid) = &policy.spec else { return Vec::new() };
    let windows = &valid.spec.maintenance_windows;
    let nodes = members(&last.view.facts, &policy.name);
    let waits = |node: &&&Node| reason(last, node) == Some(WaitReason::MaintenanceWindow);
    let asleep: Vec<&str> = nodes.iter().filter(waits).map(|node| &*node.name).collect();
    if windows.is_empty() {
        let what = |node: &str| format!("{node} waits for a maintenance window for ever, and {} has none", policy.name);
        let mut broken: Vec<String> = asleep.into_iter().map(what).collect();
        broken.extend(of_nodes(past, last, policy));
        return broken;
    }
    match quiet.iter().rev().find(|plan| stand(windows, plan.view.facts.now) == Stand::Open) {
        Some(open) => {
            let mut broken = in_window(open, policy);
            broken.extend(of_nodes(past, open, policy));
            broken
        }
        None if opened(quiet, last, windows) => {
            let why = "and nobody looked when one opened";
            asleep.into_iter().map(|node| format!("{node} waits for a maintenance window for ever, {why}")).collect()
        }
        None => Vec::new(),
    }
}

/// Whether a window opened while nothing happened any more.
fn opened(quiet: &[&Planned], last: &Planned, windows: &[MaintenanceWindow]) -> bool {
    let Some(first) = quiet.first() else { return false };
    let since = last.view.facts.now.seconds_since(first.view.facts.now);
    matches!(stand(windows, first.view.facts.now), Stand::Closed(seconds) if seconds + SEEN_WITHIN <= since)
}

/// In an open window nobody waits for one, nor for what neither ends nor lasts.
fn in_window(open: &Planned, policy: &PolicyFacts) -> Vec<String> {
    let mut broken = Vec::new();
    for (node, said) in of_policy_said(open, policy) {
        let (name, now) = (&node.name, open.view.facts.now);
        if said.reason == WaitReason::MaintenanceWindow {
            broken.push(format!("{name} waits for a maintenance window for ever, and one was open at {now}"));
        } else if !lasts(said.reason) && !ends(said) {
            broken.push(format!("{name} waits with {} for ever, in the window at {now} too", said.reason));
        }
    }
    broken
}

/// Whether what is said ends by itself. What is refused does not: its end is that of what the node would wait for without it.
fn ends(said: &Wait) -> bool {
    said.until.is_some() && said.reason != WaitReason::WriteRefused
}

/// Waves and halts, by what was said in a plan that no window held back.
fn of_nodes(past: &Past<'_>, plan: &Planned, policy: &PolicyFacts) -> Vec<String> {
    let mut broken = Vec::new();
    let said: Vec<(&Node, &Wait)> = of_policy_said(plan, policy).collect();
    for (node, wait) in &said {
        match wait.reason {
            WaitReason::Wave => {
                let stands = said.iter().any(|(other, wait)| other.uid != node.uid && stands_in_the_way(wait.reason));
                if !stands {
                    let name = &node.name;
                    broken.push(format!("{name} waits for a wave for ever, and no other node needs a person"));
                }
            }
            WaitReason::Halted => {
                let failed = head(policy).is_some_and(|newest| past.blocked(&policy.name, newest));
                if !failed {
                    broken.push(format!("{} waits for the end of a halt for ever, and nothing failed", node.name));
                }
            }
            _ => {}
        }
    }
    broken
}

/// What keeps a node from ever being done, until a person does something about it or its window is longer.
const fn stands_in_the_way(reason: WaitReason) -> bool {
    matches!(
        reason,
        WaitReason::FailedHere
            | WaitReason::Reverted
            | WaitReason::ReleaseBlocked
            | WaitReason::ReleaseWithdrawn
            | WaitReason::NoRelease
            | WaitReason::MinimumSourceVersion
            | WaitReason::StateVersion
            | WaitReason::WindowTooShort
    )
}

fn reason(plan: &Planned, node: &Node) -> Option<WaitReason> {
    plan.sentences().find(|(other, _)| other.uid == node.uid).map(|(_, said)| said.reason)
}

fn of_policy_said<'p>(plan: &'p Planned, policy: &'p PolicyFacts) -> impl Iterator<Item = (&'p Node, &'p Wait)> {
    let of = move |node: &Node| policy_of(&plan.view.facts, node).is_some_and(|of| of.name == policy.name);
    plan.sentences().filter(move |(node, _)| of(node))
}
