//! `bascule wait`: for scripts and for people who want to go to bed.

use super::{Connection, list, problem, view, watched};
use crate::{exit::Exit, output};
use anyhow::bail;
use bascule_api as api;
use bascule_api::conditions;
use clap::{Args, ValueEnum};
use kube::{Api, ResourceExt as _};

/// Wait until a policy is up to date, or until nothing of it is in progress.
///
/// Ends with 0 when it is so, with 1 when the policy halts meanwhile, and with 4 when the time is over.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// The policy.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::policies))]
    policy: String,
    /// What for.
    #[arg(long = "for", value_enum, default_value_t)]
    what: What,
    /// How long at most.
    #[arg(long, value_name = "DURATION", default_value = "1h")]
    timeout: api::Duration,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum What {
    /// Every node runs the target release.
    #[default]
    UpToDate,
    /// No node is being disrupted.
    Calm,
}

/// How a policy stands to that.
#[derive(Debug, PartialEq, Eq)]
enum Stands {
    So,
    NotYet(String),
    Halted(String),
}

fn stands(policy: &api::UpdatePolicy, what: What) -> Stands {
    let status = policy.status.clone().unwrap_or_default();
    // What the operator said of an older spec says nothing of this one.
    if status.observed_generation != policy.metadata.generation {
        return Stands::NotYet("the operator has not looked at the policy yet".to_owned());
    }
    let so = match what {
        What::UpToDate => conditions::is_true(&status.conditions, conditions::UP_TO_DATE),
        What::Calm => status.counts.in_progress == 0,
    };
    if so {
        return Stands::So;
    }
    if what == What::UpToDate
        && let Some(halted) = conditions::get(&status.conditions, conditions::HALTED).filter(|one| one.status == "True")
    {
        return Stands::Halted(halted.message.clone());
    }
    let counts = &status.counts;
    let mut how = format!("{}/{} updated, {} in progress", counts.updated, counts.nodes, counts.in_progress);
    if !matches!(status.columns.waits_for.as_str(), "" | "-") {
        how.push_str(&format!(", waits for {}", status.columns.waits_for));
    }
    Stands::NotYet(how)
}

fn halted(policy: &str, why: &str) -> String {
    format!("{policy} has halted: {why}")
}

fn over(timeout: api::Duration) -> String {
    format!("it is not so after {timeout}")
}

impl Wait {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let policies = list::<api::UpdatePolicy>(&client, "UpdatePolicies").await?;
        let names: Vec<String> = policies.iter().map(|policy| policy.name_any()).collect();
        if !names.contains(&self.policy) {
            let hint = problem::hint(&self.policy, names.iter().map(String::as_str));
            bail!("there is no UpdatePolicy {}{hint}", self.policy);
        }
        view::tell_if_nobody_leads(&client, connection).await;
        let mut shown = String::new();
        let waiting = watched::until(Api::all(client), "UpdatePolicy", &self.policy, |policy: &api::UpdatePolicy| {
            match stands(policy, self.what) {
                Stands::So => return Ok(Some(Exit::Success)),
                Stands::Halted(why) => bail!(halted(&self.policy, &why)),
                Stands::NotYet(how) if how != shown => {
                    output::say(&how);
                    shown = how;
                }
                Stands::NotYet(_) => {}
            }
            Ok(None)
        });
        match tokio::time::timeout(self.timeout.to_std(), waiting).await {
            Ok(done) => done,
            Err(_) => {
                output::say(&over(self.timeout));
                Ok(Exit::TryAgain)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(status: serde_json::Value) -> api::UpdatePolicy {
        serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": "workers", "generation": 2},
            "spec": {"nodeSelector": {}, "source": {"repository": "https://a.example/os", "channel": "stable"}},
            "status": status,
        }))
        .unwrap()
    }

    fn condition(type_: &str, status: &str) -> serde_json::Value {
        json!({"type": type_, "status": status, "reason": "R", "message": "why", "lastTransitionTime": "2026-01-01T00:00:00Z"})
    }

    #[test]
    fn what_was_said_of_an_older_spec_counts_for_nothing() {
        let done = [condition("UpToDate", "True")];
        let old = policy(json!({"observedGeneration": 1, "conditions": done}));
        assert!(matches!(stands(&old, What::UpToDate), Stands::NotYet(_)));
        assert_eq!(stands(&policy(json!({"observedGeneration": 2, "conditions": done})), What::UpToDate), Stands::So);
    }

    #[test]
    fn a_halt_ends_the_wait() {
        let halted = policy(
            json!({"observedGeneration": 2, "counts": {"inProgress": 0}, "conditions": [condition("Halted", "True")]}),
        );
        assert_eq!(stands(&halted, What::UpToDate), Stands::Halted("why".into()));
        assert_eq!(stands(&halted, What::Calm), Stands::So);
    }

    #[test]
    fn what_is_said_while_it_waits() {
        let says = |status: serde_json::Value| match stands(&policy(status), What::UpToDate) {
            Stands::So => "(ends with 0)".to_owned(),
            Stands::NotYet(how) => how,
            Stands::Halted(why) => format!("bascule: {}", halted("workers", &why)),
        };
        let counts = json!({"nodes": 40, "updated": 12, "unavailable": 2, "inProgress": 2, "failed": 1});
        let shown = [
            says(json!({"observedGeneration": 1})),
            says(json!({"observedGeneration": 2, "counts": counts, "columns": {"waitsFor": "Wave"}})),
            says(json!({"observedGeneration": 2, "counts": counts, "columns": {"waitsFor": "-"}})),
            says(json!({"observedGeneration": 2, "conditions": [condition("Halted", "True")]})),
            says(json!({"observedGeneration": 2, "conditions": [condition("UpToDate", "True")]})),
            over(api::Duration::from_minutes(60)),
        ];
        insta::assert_snapshot!("wait", shown.join("\n"));
    }
}
