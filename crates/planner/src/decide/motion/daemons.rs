//! DaemonSet pods before and after a reboot. The kubelet of the new boot looks at them one after the other, and until it has
//! the API server shows what the old boot said; and what was broken before is no fault of the release.

use crate::snapshot::Node;
use bascule_api::{DaemonSetBefore, Time};

/// Most that are noted, as in the schema. A further one has to be ready after the reboot, whenever that was said.
const MOST: usize = 64;
/// How many a sentence names.
const NAMED: usize = 5;

/// A node's DaemonSet pods as they are, to be compared with after its reboot. One that was ready at the grant and is not
/// now keeps the time of that: the drain may have taken what it needs, or it broke meanwhile.
pub(in crate::decide) fn note(node: &Node, before: &[DaemonSetBefore]) -> Vec<DaemonSetBefore> {
    let known = |name: &str| before.iter().find(|known| known.name == name);
    let pods = node.daemon_sets.0.iter().take(MOST);
    pods.map(|pod| {
        let was_ready = || known(&pod.set).and_then(|known| known.since);
        let since = if pod.ready { pod.since } else { was_ready() };
        DaemonSetBefore { name: pod.set.to_string(), ready: pod.ready, since }
    })
    .collect()
}

/// Whether a pod lost its readiness between the grant and the word to reboot.
fn is_shaken(before: &DaemonSetBefore) -> bool {
    !before.ready && before.since.is_some()
}

/// Those that were ready at the grant, not at the word to reboot, and are not now: they were given their time, and the release
/// does not answer for them.
pub(super) fn passed_over<'a>(node: &Node, before: &'a [DaemonSetBefore]) -> Vec<&'a str> {
    let down = |name: &str| node.daemon_sets.0.iter().any(|pod| *pod.set == *name && !pod.ready);
    before.iter().filter(|known| is_shaken(known) && down(&known.name)).map(|known| known.name.as_str()).collect()
}

/// Since when all pods are ready that have to be, by what their node said in this boot; or what is missing, in a sentence. Those
/// that lost their readiness before the word to reboot have to be as long as there is `time` for them.
pub(super) fn ready_since(node: &Node, before: &[DaemonSetBefore], time: bool) -> Result<Option<Time>, String> {
    let (mut wanted, mut since) = (0_usize, None);
    let (mut missing, mut unseen, mut broken) = (Vec::new(), Vec::new(), Vec::new());
    for pod in &node.daemon_sets.0 {
        let known = before.iter().find(|known| *known.name == *pod.set);
        if known.is_some_and(|known| !(known.ready || (time && is_shaken(known)))) {
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
        assert_eq!(before[2], DaemonSetBefore { ready: false, ..granted[2].clone() });
        assert_eq!(before[..2], granted[..2]);
        for (after, wanted) in [
            ([("a/ok", true, 1), ("a/broken", false, 2), ("a/shaken", true, 30)], Err("has not spoken")),
            ([("a/ok", true, 20), ("a/broken", false, 2), ("a/shaken", true, 3)], Err("has not spoken")),
            ([("a/ok", true, 20), ("a/broken", false, 2), ("a/shaken", false, 30)], Err("1 of 2")),
            ([("a/ok", true, 20), ("a/broken", false, 2), ("a/shaken", true, 30)], Ok(Some(at(30)))),
        ] {
            match (ready_since(&node(&after), &before, true), wanted) {
                (Ok(since), Ok(wanted)) => assert_eq!(since, wanted),
                (Err(message), Err(part)) => {
                    assert!(message.contains(part) && message.contains("a/broken was not ready before"), "{message}");
                }
                (found, _) => panic!("{after:?}: {found:?}"),
            }
        }
        let unknown = node(&[("a/ok", true, 1)]);
        assert_eq!(ready_since(&unknown, &[], true), Ok(Some(at(1))), "a grant of an older operator noted nothing");
        // A clock that starts in 1970 after the reboot says something else than before, and that is enough.
        let early = node(&[("a/ok", true, 0), ("a/broken", true, 0), ("a/shaken", true, 0)]);
        assert_eq!(ready_since(&early, &before, true), Ok(Some(at(0))));
        // What the drain shook is asked for again, and given its time; it may have broken in these hours as well.
        let down = node(&[("a/ok", true, 20), ("a/broken", false, 2), ("a/shaken", false, 30)]);
        assert_eq!(ready_since(&down, &before, false), Ok(Some(at(20))));
        assert_eq!(passed_over(&down, &before), ["a/shaken"]);
        assert!(ready_since(&down, &granted, false).is_err(), "it was ready when the node was told to reboot");
        // Told once more what is so, it stays what it was.
        assert_eq!(note(&down, &before)[2], before[2]);
    }
}
