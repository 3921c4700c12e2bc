//! Tells of objects that this version of the operator does not understand, wherever people look: in `/readyz` and in the metrics; the log
//! has each of them once (`gather`). Every replica tells, whether it leads or not.

use crate::{gather::Caches, metrics::Metrics, server::Readiness};
use bascule_planner::snapshot::Unreadable;
use std::collections::BTreeMap;

/// How many are named at once.
const NAMED: usize = 8;

/// Tells, until it is dropped.
pub(crate) async fn keep_telling(world: Caches, metrics: Metrics, readiness: Readiness) {
    let mut noted = world.noted();
    loop {
        noted.mark_unchanged();
        let found = world.unreadable();
        metrics.unreadable(&counted(&found));
        readiness.note(sentences(&found));
        if noted.changed().await.is_err() {
            return;
        }
    }
}

fn counted(found: &[Unreadable]) -> BTreeMap<&str, i64> {
    let mut counts = BTreeMap::new();
    for one in found {
        *counts.entry(one.object.kind.as_str()).or_default() += 1;
    }
    counts
}

fn sentences(found: &[Unreadable]) -> Vec<String> {
    let mut sentences: Vec<String> = found.iter().take(NAMED).map(ToString::to_string).collect();
    if found.len() > NAMED {
        sentences.push(format!("{} more {}", found.len() - NAMED, bascule_api::NOT_UNDERSTOOD));
    }
    sentences
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::ObjectRef;

    #[test]
    fn many_are_counted_and_some_are_named() {
        let object = |kind: &str, name: String| ObjectRef { kind: kind.to_owned(), namespace: None, name };
        let mut found: Vec<Unreadable> = (0..NAMED)
            .map(|number| Unreadable { object: object("NodeUpdate", format!("n{number}")), why: "w".to_owned() })
            .collect();
        assert_eq!((sentences(&found).len(), counted(&found)), (NAMED, BTreeMap::from([("NodeUpdate", 8)])));
        assert_eq!(sentences(&found)[0], "NodeUpdate n0 can't be read by this version of the operator: w");
        found.push(Unreadable { object: object("UpdatePolicy", "workers".to_owned()), why: "w".to_owned() });
        assert_eq!(
            sentences(&found).last().map(String::as_str),
            Some("1 more can't be read by this version of the operator")
        );
        assert_eq!(counted(&found), BTreeMap::from([("NodeUpdate", 8), ("UpdatePolicy", 1)]));
        assert!(sentences(&[]).is_empty());
    }
}
