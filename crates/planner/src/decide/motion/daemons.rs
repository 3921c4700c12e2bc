//! DaemonSet pods before and after a reboot. The kubelet of the new boot looks at them one after the other, and until it has
//! the API server shows what the old boot said; and what was broken before is no fault of the release.

use crate::snapshot::Node;
use bascule_api::{DaemonSetBefore, Time};

/// Most that are noted, as in the schema. A further one has to be ready after the reboot, whenever that was said.
const MOST: usize = 64;
/// How many a sentence names.
const NAMED: usize = 5;

/// A node's DaemonSet pods as they are, to be compared with after its reboot. One that was ready at the grant and is not
/// now (the drain may have taken what it needs) keeps its place.
pub(in crate::decide) fn note(node: &Node, before: &[DaemonSetBefore]) -> Vec<DaemonSetBefore> {
    let known = |name: &str| before.iter().find(|known| known.name == name);
    let pods = node.daemon_sets.0.iter().take(MOST);
    pods.map(|pod| match known(&pod.set) {
        Some(known) if !pod.ready => known.clone(),
        _ => DaemonSetBefore { name: pod.set.to_string(), ready: pod.ready, since: pod.since.filter(|_| pod.ready) },
    })
    .collect()
}

/// Since when all pods are ready that have to be, by what their node said in this boot; or what is missing, in a sentence.
pub(super) fn ready_since(node: &Node, before: &[DaemonSetBefore]) -> Result<Option<Time>, String> {
    let (mut wanted, mut since) = (0_usize, None);
    let (mut missing, mut unseen, mut broken) = (Vec::new(), Vec::new(), Vec::new());
    for pod in &node.daemon_sets.0 {
        let known = before.iter().find(|known| *known.name == *pod.set);
        if known.is_some_and(|known| !known.ready) {
            broken.push(&*pod.set);
            continue;
        }
        wanted += 1;
        let same_word = known.is_some_and(|known| known.since.is_some() && known.since == pod.since);
        if !pod.ready {
            missing.push(&*pod.set);
        } else if same_word {
            unseen.push(&*pod.set);
        } else {
            since = since.max(pod.since);
        }
    }
    let names = |of: &[&str]| of.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    let mut message = if !missing.is_empty() {
        let ready = wanted - missing.len();
        format!("{ready} of {wanted} DaemonSet pods are ready, not {}", names(&missing))
    } else if !unseen.is_empty() {
        format!("the kubelet has not spoken of these DaemonSet pods since the reboot: {}", names(&unseen))
    } else {
        return Ok(since);
    };
    if !broken.is_empty() {
        message
            .push_str(&format!(" ({} was not ready before the reboot either and is not waited for)", names(&broken)));
    }
    Err(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{DaemonSetPod, DaemonSets};

    fn at(second: i64) -> Time {
        chrono::DateTime::from_timestamp(second, 0).unwrap_or_default().into()
    }

    fn node(pods: &[(&str, bool, i64)]) -> Node {
        let pods = pods.iter().map(|(set, ready, since)| DaemonSetPod {
            set: (*set).into(),
            ready: *ready,
            since: Some(at(*since)),
        });
        Node { daemon_sets: DaemonSets(pods.collect()), ..Node::default() }
    }

    #[test]
    fn the_word_of_the_old_boot_is_none_and_what_was_broken_before_is_not_waited_for() {
        let granted = note(&node(&[("a/ok", true, 1), ("a/broken", false, 2), ("a/shaken", true, 3)]), &[]);
        let before = note(&node(&[("a/ok", true, 1), ("a/broken", false, 2), ("a/shaken", false, 9)]), &granted);
        assert_eq!(before, granted, "what the drain shook is asked for again");
        for (after, wanted) in [
            ([("a/ok", true, 1), ("a/broken", false, 2), ("a/shaken", true, 30)], Err("has not spoken")),
            ([("a/ok", true, 20), ("a/broken", false, 2), ("a/shaken", true, 3)], Err("has not spoken")),
            ([("a/ok", true, 20), ("a/broken", false, 2), ("a/shaken", false, 30)], Err("1 of 2")),
            ([("a/ok", true, 20), ("a/broken", false, 2), ("a/shaken", true, 30)], Ok(Some(at(30)))),
        ] {
            match (ready_since(&node(&after), &before), wanted) {
                (Ok(since), Ok(wanted)) => assert_eq!(since, wanted),
                (Err(message), Err(part)) => {
                    assert!(message.contains(part) && message.contains("a/broken was not ready before"), "{message}");
                }
                (found, _) => panic!("{after:?}: {found:?}"),
            }
        }
        let unknown = node(&[("a/ok", true, 1)]);
        assert_eq!(ready_since(&unknown, &[]), Ok(Some(at(1))), "a grant of an older operator noted nothing");
        // A clock that starts in 1970 after the reboot says something else than before, and that is enough.
        let early = node(&[("a/ok", true, 0), ("a/broken", true, 0), ("a/shaken", true, 0)]);
        assert_eq!(ready_since(&early, &before), Ok(Some(at(0))));
    }
}
