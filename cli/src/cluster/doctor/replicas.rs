//! What each replica of the operator says is missing for it to act: definitions, its own rights, the admission policies. It looks
//! with rights that nobody on call has, and says it at `/readyz`.

use super::Finding;
use crate::cluster::{
    live::{self, Away, Seen, Source},
    picture,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, ResourceExt as _};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// How many replicas are asked.
const MOST: usize = 5;
/// How long each is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How what passes by itself begins.
const STILL_READING: &str = "still reading";

/// Whether it is of objects that this version does not understand, which make no replica unready.
fn is_note(sentence: &str) -> bool {
    sentence.contains(bascule_api::NOT_UNDERSTOOD)
}

/// A replica, and what it says is missing.
type Said = (String, Result<Vec<String>, Away>);

/// The replicas: the pods that have not ended, and whoever leads, whatever its pod is labelled.
pub(super) fn names(pods: &[Pod], seen: Option<&Seen>) -> BTreeSet<String> {
    let ended = |pod: &&Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"))
    };
    let leader = seen.and_then(|seen| match &seen.source {
        Source::Leader { name } => Some(name.clone()),
        Source::Objects { .. } => None,
    });
    pods.iter().filter(|pod| !ended(pod)).map(Pod::name_any).chain(leader).collect()
}

/// Of these who was not asked, as far as so many are asked: the leader, where it has no label.
pub(super) fn not_asked(names: &BTreeSet<String>, said: &[Said]) -> BTreeSet<String> {
    let new = names.iter().filter(|name| !said.iter().any(|(asked, _)| asked == *name));
    new.take(MOST.saturating_sub(said.len())).cloned().collect()
}

/// Asks them, all at once.
pub(super) async fn ask(client: &Client, namespace: &str, names: &BTreeSet<String>) -> Vec<Said> {
    futures::future::join_all(names.iter().take(MOST).map(|pod| ask_one(client, namespace, pod))).await
}

async fn ask_one(client: &Client, namespace: &str, pod: &str) -> Said {
    let answer = tokio::time::timeout(PATIENCE, live::missing(client, namespace, pod)).await;
    let late = |_| Err(Away::Says(format!("it did not answer within {} s", PATIENCE.as_secs())));
    (pod.to_owned(), answer.unwrap_or_else(late))
}

/// What they said. Several that lack the same are told of once.
pub(super) fn findings(said: &[Said], all: usize, namespace: &str) -> Vec<Finding> {
    let mut ready: Vec<&str> = Vec::new();
    let mut lacking: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut away: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (pod, said) in said {
        match said {
            Ok(missing) => {
                if missing.iter().all(|sentence| is_note(sentence)) {
                    ready.push(pod);
                }
                missing.iter().for_each(|sentence| lacking.entry(sentence).or_default().push(pod));
            }
            Err(why) => away.entry(unreached(why)).or_default().push(pod),
        }
    }
    let mut found = Vec::new();
    if !ready.is_empty() {
        let what = format!("{}: nothing is missing of definitions, rights and admission policies", are_ready(&ready));
        found.push(Finding::good("operators", what));
    }
    let logs = |pods: &[&str]| pods.iter().map(|pod| format!("kubectl -n {namespace} logs {pod}")).collect();
    for (sentence, pods) in lacking {
        let what = format!("{}: {sentence}", pods.join(", "));
        let finding = if sentence.starts_with(STILL_READING) {
            Finding::warning("operators", what, "It takes no part before it has; its log says what it waits for.")
        } else if is_note(sentence) {
            Finding::warning("operators", what, "See docs/runbooks/BasculeObjectUnreadable.md.")
        } else {
            let advice =
                "It does not act before that is fixed, for which it looks every few seconds (docs/install.md).";
            Finding::wrong("operators", what, advice)
        };
        found.push(finding.run_all(logs(&pods)));
    }
    for (why, pods) in away {
        let what = format!("{} can't be asked whether it is ready: {why}", pods.join(", "));
        let finding = Finding::warning("operators", what, "What it lacks, if anything, stands in its log.");
        found.push(finding.run_all(logs(&pods)));
    }
    let left = all.saturating_sub(said.len());
    if left > 0 {
        let what = format!("{}: nobody asked whether ready", picture::count(left, "more replica"));
        let finding = Finding::warning("operators", what, "So many are of no use: one leads, and one stands by.");
        found.push(finding.run(format!("kubectl -n {namespace} get pods -l {}", super::OPERATORS)));
    }
    found
}

/// `a, b are ready`.
fn are_ready(pods: &[&str]) -> String {
    format!("{} {} ready", pods.join(", "), if pods.len() == 1 { "is" } else { "are" })
}

fn unreached(why: &Away) -> String {
    match why {
        Away::Forbidden => "you may not get pods/proxy there".to_owned(),
        Away::NoPod => "there is no such pod".to_owned(),
        Away::Says(why) => why.clone(),
        Away::Follows(_) | Away::Newer => "it answers with something else".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Weight;
    use super::*;
    use crate::cluster::fixture;

    fn pod(name: &str, phase: &str) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": name}, "status": {"phase": phase}})).unwrap()
    }

    #[test]
    fn replicas_that_lack_the_same_are_told_of_once_and_those_that_can_not_be_asked_by_name() {
        let rights = "the operator may not list nodes: apply manifests/operator/rbac.yaml";
        let said = [
            ("operator-a".to_owned(), Ok(Vec::new())),
            ("operator-b".to_owned(), Ok(vec![rights.to_owned(), "another thing".to_owned()])),
            ("operator-c".to_owned(), Ok(vec![rights.to_owned()])),
            ("operator-d".to_owned(), Err(Away::Says("error trying to reach service: no route".to_owned()))),
            ("operator-e".to_owned(), Ok(vec!["still reading: Node".to_owned()])),
            ("operator-f".to_owned(), Ok(vec![format!("Node n1 {}: w", bascule_api::NOT_UNDERSTOOD)])),
        ];
        let unread = format!("operator-f: Node n1 {}: w", bascule_api::NOT_UNDERSTOOD);
        let found = findings(&said, 8, "bascule-system");
        let found: Vec<_> = found.iter().map(|one| (one.weight, one.what.as_str())).collect();
        let rights = format!("operator-b, operator-c: {rights}");
        assert_eq!(
            found,
            [
                (
                    Weight::Good,
                    "operator-a, operator-f are ready: nothing is missing of definitions, rights and admission policies"
                ),
                (Weight::Warning, unread.as_str()),
                (Weight::Wrong, "operator-b: another thing"),
                (Weight::Warning, "operator-e: still reading: Node"),
                (Weight::Wrong, rights.as_str()),
                (
                    Weight::Warning,
                    "operator-d can't be asked whether it is ready: error trying to reach service: no route"
                ),
                (Weight::Warning, "2 more replicas: nobody asked whether ready"),
            ]
        );
        assert!(findings(&[], 0, "bascule-system").is_empty(), "where there is none, others say so");
    }

    #[test]
    fn whoever_leads_is_a_replica_and_a_pod_that_ended_is_none() {
        let pods = [pod("operator-a", "Running"), pod("operator-b", "Failed"), pod("operator-c", "Pending")];
        let seen = fixture::seen();
        let of = |pods: &[Pod], seen| names(pods, seen).into_iter().collect::<Vec<_>>();
        assert_eq!(of(&pods, None), ["operator-a", "operator-c"]);
        assert_eq!(of(&pods, Some(&seen)), ["bascule-operator-5d9f", "operator-a", "operator-c"]);
        assert_eq!(of(&[], Some(&seen)), ["bascule-operator-5d9f"]);
        // Those of the label are asked before it is known who leads.
        let asked = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), Ok(Vec::new()))).collect::<Vec<_>>();
        let names = names(&pods, Some(&seen));
        let left = |said: &[Said]| not_asked(&names, said).into_iter().collect::<Vec<_>>();
        assert_eq!(left(&asked(&["operator-a", "operator-c"])), ["bascule-operator-5d9f"]);
        assert!(left(&asked(&["operator-a", "operator-c", "bascule-operator-5d9f"])).is_empty());
        assert!(left(&asked(&["a", "b", "c", "d", "e"])).is_empty(), "so many are enough");
    }
}
