//! A planner that plans on from plan to plan, beside the one that knows nothing: both must say the same.

use super::Broken;
use bascule_planner::{Plan, Planner, Report, Snapshot, plan, snapshot::Node};
use std::{collections::BTreeMap, sync::Arc};

/// Seconds after a plan at which both plan again from the same facts.
const LATER: [i64; 2] = [1, 900];

/// The planner and the facts it saw last. Facts that did not change keep their pointer, as the operator keeps them.
#[derive(Debug, Default)]
pub(super) struct Twin {
    planner: Planner,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
}

impl Twin {
    pub(super) fn compare(&mut self, seen: &Snapshot, full: &Plan, report: &Report) -> Vec<Broken> {
        let mut shared = seen.clone();
        for node in &mut shared.nodes {
            match self.nodes.get(&node.name) {
                Some(before) if before == node => *node = Arc::clone(before),
                _ => {
                    self.nodes.insert(Arc::clone(&node.name), Arc::clone(node));
                }
            }
        }
        let mut broken = Vec::new();
        differ(&self.planner.plan(&shared), &(full.clone(), report.clone()), "at once", &mut broken);
        for seconds in LATER {
            shared.now = bascule_api::Time::new(seen.now.get() + chrono::TimeDelta::seconds(seconds));
            let what = format!("{seconds} s later");
            differ(&self.planner.plan(&shared), &plan(&shared), &what, &mut broken);
        }
        // The next facts come with an earlier clock again, as after a clock was set.
        broken
    }
}

fn differ(given: &(Plan, Report), wanted: &(Plan, Report), when: &str, broken: &mut Vec<Broken>) {
    if given == wanted {
        return;
    }
    let nodes = given.1.nodes.iter().zip(&wanted.1.nodes).find(|(given, wanted)| given != wanted);
    let steps = given.0.steps.iter().zip(&wanted.0.steps).find(|(given, wanted)| given != wanted);
    let what = format!("planning on gave another plan {when}: {nodes:?} {steps:?}");
    broken.push(Broken::World(10, what));
}
