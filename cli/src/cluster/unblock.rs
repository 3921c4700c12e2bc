//! `bascule unblock`: an admin looked into why a release failed and lets the policy take it again.

use super::{Connection, agree_and_change, agreed, change_spec, list, named, picture, problem};
use crate::exit::Exit;
use bascule_api as api;
use bascule_api::Version;
use clap::Args;
use kube::{Client, ResourceExt as _};

/// Let a policy take a release again that failures or a Rollback blocked. Takes the rights of an admin.
///
/// The block stays on record. A node on which the release failed does not try it again before `bascule retry`, and as many further failures as the
/// threshold block it anew.
#[derive(Debug, Args)]
pub(crate) struct Unblock {
    /// The policy.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::policies))]
    policy: String,
    /// The release.
    version: Version,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

impl Unblock {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let done = done(&self.policy, &self.version);
        agree_and_change(connection, &done, async |client, agreed_to| self.once(client, agreed_to).await).await
    }

    /// Whether it was agreed to, and so written.
    async fn once(&self, client: &Client, agreed_to: &mut String) -> anyhow::Result<bool> {
        let policies = list::<api::UpdatePolicy>(client, "UpdatePolicies").await?;
        let policy = named(&policies, "UpdatePolicy", &self.policy)?;
        let Asked { allowed, sentence } = asked(policy, &self.version)?;
        if !agreed(agreed_to, sentence, self.yes)? {
            return Ok(false);
        }
        change_spec(client, policy, &serde_json::json!({"allowedVersions": allowed})).await?;
        Ok(true)
    }
}

fn done(policy: &str, version: &Version) -> String {
    format!("{version} may be taken by {policy} again.\n")
}

#[derive(Debug, PartialEq)]
struct Asked {
    allowed: Vec<Version>,
    sentence: String,
}

fn asked(policy: &api::UpdatePolicy, version: &Version) -> anyhow::Result<Asked> {
    let spec = &policy.spec;
    if spec.blocked_versions.contains(version) {
        anyhow::bail!(
            "{version} is in spec.blockedVersions: an admin put it there by hand and takes it out the same way"
        );
    }
    if spec.allowed_versions.contains(version) {
        anyhow::bail!(
            "{version} is allowed already (spec.allowedVersions); if it is blocked again it failed since, see `bascule explain`"
        );
    }
    let status = policy.status.clone().unwrap_or_default();
    let Some(block) = status.blocked.iter().find(|block| block.version == *version) else {
        let blocked: Vec<_> = status.blocked.iter().map(|block| block.version.to_string()).collect();
        let hint = problem::hint(version.as_str(), blocked.iter().map(String::as_str));
        anyhow::bail!("{version} is not blocked for {}{hint}", policy.name_any());
    };
    let failed = status.failures.iter().filter(|failure| failure.version == *version).count();
    let allowed = spec.allowed_versions.iter().chain([version]).cloned().collect();
    // Who blocked it need not be a failure.
    let tries = match failed {
        0 => format!("Nodes of {}", policy.name_any()),
        _ => format!("It failed on {}; the others of {}", picture::count(failed, "node"), policy.name_any()),
    };
    let sentence = format!(
        "{version} was blocked by {}: {}. {tries} will try it, {} more failing {} it again.",
        block.by,
        block.reason,
        spec.failure_threshold,
        if spec.failure_threshold == 1 { "blocks" } else { "block" },
    );
    Ok(Asked { allowed, sentence })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_block_in_force_is_lifted() {
        let policy: api::UpdatePolicy = serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": "workers"},
            "spec": {"nodeSelector": {}, "source": {"repository": "https://a.example/os", "channel": "stable"},
                "blockedVersions": ["0.9"], "allowedVersions": ["1.0"]},
            "status": {
                "blocked": [
                    {"version": "1.1", "at": "2026-01-01T00:00:00Z", "by": "FailureThreshold", "reason": "it failed on n1"},
                    {"version": "1.3", "at": "2026-01-01T00:00:00Z", "by": "Rollback", "reason": "breaks NIC offload"},
                ],
                "failures": [{"node": "n1", "version": "1.1", "at": "2026-01-01T00:00:00Z", "category": "TrialFailed", "message": ""}],
            },
        }))
        .unwrap();
        let of = |version: &str| asked(&policy, &Version::parse(version).unwrap());
        let fine = of("1.1").unwrap();
        assert_eq!(fine.allowed.len(), 2);
        assert!(fine.sentence.contains("it failed on n1"));
        for (version, part) in [("0.9", "by hand"), ("1.0", "allowed already"), ("1.2", "is not blocked")] {
            assert!(of(version).unwrap_err().to_string().contains(part), "{version}");
        }
        let says = |version: &str| match of(version) {
            Ok(asked) => {
                format!("{}\n{}", asked.sentence, done("workers", &Version::parse(version).unwrap()))
            }
            Err(error) => format!("bascule: {error}\n"),
        };
        let all = ["1.1", "1.3", "0.9", "1.0", "1.2"];
        let shown: String =
            all.iter().map(|version| format!("$ bascule unblock workers {version}\n{}", says(version))).collect();
        insta::assert_snapshot!("unblock", shown);
    }
}
