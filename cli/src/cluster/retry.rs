//! `bascule retry`: somebody looked at a node and lets it try again what went wrong on it.

use super::{Connection, agree_and_change, agreed, change_spec, list, named, picture};
use crate::{clock, exit::Exit};
use bascule_api as api;
use clap::Args;
use kube::{Client, ResourceExt as _};

/// Most entries of `spec.retries`, as in the schema.
const MOST: usize = 64;

/// Let a node try again what went wrong on it: a release that failed there, a drain that was given up, a download that
/// waits. Takes the rights of an admin.
///
/// Gates, budgets and windows hold as ever. A release that is blocked for the policy stays so, see `bascule unblock`.
#[derive(Debug, Args)]
pub(crate) struct Retry {
    /// The node.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::nodes))]
    node: String,
    /// Why; it goes into the record of the node.
    #[arg(long)]
    reason: Option<String>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

impl Retry {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let done = done(&self.node);
        agree_and_change(connection, &done, async |client, agreed_to| self.once(client, agreed_to).await).await
    }

    /// Whether it was agreed to, and so written.
    async fn once(&self, client: &Client, agreed_to: &mut String) -> anyhow::Result<bool> {
        let updates = list::<api::NodeUpdate>(client, "NodeUpdates").await?;
        let update = named(&updates, "NodeUpdate", &self.node)?;
        let policies = list::<api::UpdatePolicy>(client, "UpdatePolicies").await?;
        let policy = policies.iter().find(|policy| policy.name_any() == update.spec.policy).ok_or_else(|| {
            anyhow::anyhow!("the policy {} of {} is gone: no policy asks anything of it", update.spec.policy, self.node)
        })?;
        let retry = api::Retry { node: self.node.clone(), at: clock::now().into(), reason: self.reason.clone() };
        let Asked { retries, sentence } = asked(policy, update, retry)?;
        if !agreed(agreed_to, sentence, self.yes)? {
            return Ok(false);
        }
        change_spec(client, policy, &serde_json::json!({"retries": retries})).await?;
        Ok(true)
    }
}

fn done(node: &str) -> String {
    format!("{node} tries again; see bascule explain {node}.\n")
}

#[derive(Debug, PartialEq)]
struct Asked {
    retries: Vec<api::Retry>,
    sentence: String,
}

fn asked(policy: &api::UpdatePolicy, update: &api::NodeUpdate, retry: api::Retry) -> anyhow::Result<Asked> {
    let (name, node) = (policy.name_any(), retry.node.as_str());
    if update.spec.disruption.is_some() {
        anyhow::bail!("{node} is being updated: there is nothing to try again before that ended");
    }
    let status = update.status.clone().unwrap_or_default();
    let known = policy.status.clone().unwrap_or_default();
    let mut failed: Vec<&api::Version> = status.failed_releases.iter().map(|failed| &failed.version).collect();
    failed.extend(known.failures.iter().filter(|failure| failure.node == node).map(|failure| &failure.version));
    failed.sort_unstable();
    failed.dedup();
    let gave_up = update.spec.last_disruption.as_ref().filter(|last| last.given_up > 0);
    let mut parts: Vec<String> = Vec::new();
    if !failed.is_empty() {
        let list: Vec<_> = failed.iter().map(ToString::to_string).collect();
        parts.push(format!("{node} forgets that {} failed there", list.join(", ")));
    }
    if let Some(last) = gave_up {
        let times = picture::count(usize::try_from(last.given_up).unwrap_or(usize::MAX), "time");
        parts.push(format!("its drain, given up {times}, is tried without a pause"));
    }
    if let Some(error) = &status.last_error {
        parts.push(format!("what is in its way now is tried again at once: {}", error.message));
    }
    if parts.is_empty() {
        anyhow::bail!(
            "nothing went wrong on {node} that it could try again; bascule explain {node} says what it waits for"
        );
    }
    let mut sentence = format!("{}.", parts.join("; "));
    for block in known.blocked.iter().filter(|block| failed.contains(&&block.version)) {
        if !policy.spec.allowed_versions.contains(&block.version) {
            sentence.push_str(&format!(
                " {version} stays blocked for {name}: bascule unblock {name} {version} lifts that.",
                version = block.version
            ));
        }
    }
    let mut retries: Vec<api::Retry> =
        policy.spec.retries.iter().filter(|other| other.node != retry.node).cloned().collect();
    // What was done needs no entry any more, and there is room for the newest.
    if retries.len() >= MOST {
        retries.retain(|other| !known.retried.contains(other));
    }
    if retries.len() >= MOST {
        anyhow::bail!(
            "{name} has {MOST} retries that were not done yet: wait for them, or take some out of spec.retries"
        );
    }
    retries.push(retry);
    Ok(Asked { retries, sentence })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(spec: Value, status: Value) -> api::UpdatePolicy {
        let mut whole =
            json!({"nodeSelector": {}, "source": {"repository": "https://a.example/os", "channel": "stable"}});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": "workers"},
            "spec": whole, "status": status,
        }))
        .unwrap()
    }

    fn update(spec: Value, status: Value) -> api::NodeUpdate {
        let mut whole = json!({"policy": "workers"});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": "n3"},
            "spec": whole, "status": status,
        }))
        .unwrap()
    }

    fn again(second: i64) -> api::Retry {
        api::Retry {
            node: "n3".to_owned(),
            at: chrono::DateTime::from_timestamp(second, 0).unwrap().into(),
            reason: Some("disk replaced".to_owned()),
        }
    }

    #[test]
    fn what_failed_is_named_and_a_block_stays() {
        let failure = json!({"version": "1.1", "node": "n3", "at": "2026-01-01T00:00:00Z", "category": "TrialFailed", "message": "x"});
        let block =
            json!({"version": "1.1", "at": "2026-01-01T00:00:00Z", "by": "FailureThreshold", "reason": "it failed"});
        let workers = policy(json!({}), json!({"failures": [failure], "blocked": [block]}));
        let given_up = json!({"endedAt": "2026-01-01T00:00:00Z", "outcome": "DrainFailed", "givenUp": 2});
        let asked = asked(&workers, &update(json!({"lastDisruption": given_up}), json!({})), again(1)).unwrap();
        assert_eq!(
            asked.sentence,
            "n3 forgets that 1.1 failed there; its drain, given up 2 times, is tried without a pause. 1.1 stays blocked for \
             workers: bascule unblock workers 1.1 lifts that."
        );
        assert_eq!(asked.retries, [again(1)]);
    }

    #[test]
    fn what_is_said_before_and_after() {
        let failure = json!({"version": "1.1", "node": "n3", "at": "2026-01-01T00:00:00Z", "category": "TrialFailed", "message": "x"});
        let block =
            json!({"version": "1.1", "at": "2026-01-01T00:00:00Z", "by": "FailureThreshold", "reason": "it failed"});
        let workers = policy(json!({}), json!({"failures": [failure], "blocked": [block]}));
        let away = json!({"lastError": {"category": "Network", "message": "the server is away", "attempts": 1, "at": "2026-01-01T00:00:00Z"}});
        let given_up =
            json!({"lastDisruption": {"endedAt": "2026-01-01T00:00:00Z", "outcome": "DrainFailed", "givenUp": 1}});
        let others: Vec<_> = (0..64).map(|number| api::Retry { node: format!("x{number}"), ..again(1) }).collect();
        let full = policy(json!({"retries": others}), json!({}));
        let disruption = json!({"disruption": {"grantedAt": "2026-01-01T00:00:00Z", "wasCordoned": false,
            "cause": {"object": {"kind": "UpdatePolicy", "name": "workers"}}}});
        let says = |policy: &api::UpdatePolicy, update: api::NodeUpdate| match asked(policy, &update, again(1)) {
            Ok(asked) => format!("{}\n{}", asked.sentence, done("n3")),
            Err(error) => format!("bascule: {error}\n"),
        };
        let shown: String = [
            says(&workers, update(given_up, away.clone())),
            says(&policy(json!({}), json!({})), update(json!({}), json!({}))),
            says(&workers, update(disruption, json!({}))),
            says(&full, update(json!({}), away)),
        ]
        .iter()
        .map(|said| format!("$ bascule retry n3\n{said}"))
        .collect();
        insta::assert_snapshot!("retry", shown);
    }

    #[test]
    fn a_second_word_takes_the_place_of_the_first_and_what_is_done_makes_room() {
        let error = json!({"lastError": {"category": "Network", "message": "the server is away", "attempts": 1, "at": "2026-01-01T00:00:00Z"}});
        let twice = policy(json!({"retries": [again(1)]}), json!({}));
        assert_eq!(asked(&twice, &update(json!({}), error.clone()), again(2)).unwrap().retries, [again(2)]);

        let others: Vec<_> = (0..64).map(|number| api::Retry { node: format!("x{number}"), ..again(1) }).collect();
        let full = policy(json!({"retries": others}), json!({}));
        let refused = asked(&full, &update(json!({}), error.clone()), again(2)).unwrap_err().to_string();
        assert!(refused.contains("64 retries"), "{refused}");
        let done = policy(json!({"retries": others}), json!({"retried": others[..2]}));
        assert_eq!(asked(&done, &update(json!({}), error), again(2)).unwrap().retries.len(), 63);
    }

    #[test]
    fn a_node_on_which_nothing_went_wrong_or_that_is_under_way_has_nothing_to_try_again() {
        let workers = policy(json!({}), json!({}));
        let refused = asked(&workers, &update(json!({}), json!({})), again(1)).unwrap_err().to_string();
        assert!(refused.contains("nothing went wrong on n3") && refused.contains("bascule explain n3"), "{refused}");
        let disruption = json!({"grantedAt": "2026-01-01T00:00:00Z", "wasCordoned": false,
            "cause": {"object": {"kind": "UpdatePolicy", "name": "workers"}}});
        let moving = update(json!({"disruption": disruption}), json!({}));
        assert!(asked(&workers, &moving, again(1)).unwrap_err().to_string().contains("is being updated"));
    }
}
