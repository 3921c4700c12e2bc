//! Invariant 7: what a person cordoned stays cordoned until a person says otherwise, and what a person uncordoned in the middle of a
//! drain is not cordoned again for it.

use super::past::{Held, Past};
use crate::world::history::Event;
use bascule_planner::Action;

pub(super) fn judge(past: &Past<'_>, event: &Event) -> Vec<String> {
    let Event::Act(act) = event else { return Vec::new() };
    let held = past.cordon(&act.uid);
    let what = match &act.action {
        Action::Uncordon { node, .. } if held == Held::Person => {
            format!("{node} is uncordoned, which a person cordoned")
        }
        Action::Cordon { node, mark } if held == Held::Lifted(mark) => {
            format!("{node} is cordoned again, which a person uncordoned")
        }
        Action::Cordon { node, .. }
            if held == Held::Nobody && past.word(&act.uid).is_some_and(|word| word.was_cordoned) =>
        {
            format!("{node} is cordoned, whose own cordon a person lifted")
        }
        Action::Cordon { node, .. } if held == Held::Person => {
            format!("{node} is marked as ours, which a person cordoned")
        }
        _ => return Vec::new(),
    };
    vec![what]
}
