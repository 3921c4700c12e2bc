//! How a stop ends: `unfreeze` by the name of a Freeze, `resume` by that of a policy or node. The Freeze stays, with who ended
//! it; `bascule history` shows it.

use super::{Connection, freeze::named, picture, problem, problem::Role, view, whoami};
use crate::{clock, exit::Exit, output};
use bascule_api as api;
use bascule_api::{FreezeSpec, Time};
use clap::Args;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use serde_json::json;

/// Let a paused policy or a held node go on.
///
/// Ends every Freeze that is for this policy or node alone.
#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// The policy or the node.
    #[arg(value_name = "POLICY|NODE", add = clap_complete::ArgValueCandidates::new(crate::completion::nodes_and_policies))]
    name: String,
}

impl Resume {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let freezes = super::list::<api::Freeze>(&client, "Freezes").await?;
        let now = Time::new(clock::now());
        let active = freezes.iter().filter(|freeze| freeze.is_active(now));
        let (alone, others): (Vec<_>, Vec<_>) = active.partition(|freeze| is_for(&freeze.spec, &self.name));
        end(&client, &alone).await?;
        let names: Vec<String> = alone.iter().map(|freeze| freeze.name_any()).collect();
        // Ended it is, whoever leads. Who is let go on by nobody is to know that.
        let seen = view::tell_if_nobody_leads(&client, connection).await;
        if let Some(seen) = seen.filter(|_| names.is_empty()) {
            named(&seen, &self.name)?;
        }
        let policies: Api<api::UpdatePolicy> = Api::all(client.clone());
        let policy = policies.get_opt(&self.name).await.ok().flatten();
        let its_policy = match &policy {
            Some(_) => policy.clone(),
            None => of_node(&client, &self.name).await,
        };
        let holds = |freeze: &&&api::Freeze| still_holds(&freeze.spec, &self.name, its_policy.as_ref());
        let others: Vec<String> = others.iter().filter(holds).map(|freeze| described(freeze)).collect();
        let ended: Vec<String> = alone.iter().map(|freeze| described(freeze)).collect();
        let mut text = resumed(&self.name, &ended, &others);
        if policy.is_some_and(|policy| policy.spec.paused) {
            text.push_str(&format!(
                "An admin paused the policy itself; an admin lets it go on: kubectl patch updatepolicy {} --type=merge -p '{{\"spec\":{{\"paused\":false}}}}'\n",
                self.name
            ));
        }
        output::print(&text)?;
        Ok(if names.is_empty() { Exit::Failed } else { Exit::Success })
    }
}

/// What is said of what ended, and of what holds the same policy or node beside it.
fn resumed(name: &str, ended: &[String], others: &[String]) -> String {
    let list = |all: &[String]| all.iter().map(|one| format!("  {one}\n")).collect::<String>();
    let mut text = match (ended.is_empty(), others.is_empty()) {
        (true, _) => format!("No Freeze is for {name} alone.\n"),
        (false, true) => format!("{name} may go on; ended:\n{}", list(ended)),
        (false, false) => format!("Ended:\n{}", list(ended)),
    };
    if !others.is_empty() {
        text.push_str(&format!("{name} is still held. End one with: bascule unfreeze NAME\n{}", list(others)));
    }
    text
}

/// A Freeze in a line: whose it is, what for and why.
fn described(freeze: &api::Freeze) -> String {
    let by = freeze.spec.requested_by.as_deref().map(|user| format!(" by {user}")).unwrap_or_default();
    format!("{} ({}{by}): {}", freeze.name_any(), view::place(&freeze.spec), freeze.spec.reason)
}

/// Whether a Freeze that is not for this name alone holds it all the same.
fn still_holds(spec: &FreezeSpec, name: &str, policy: Option<&api::UpdatePolicy>) -> bool {
    spec.is_for_node(name) || policy.is_some_and(|policy| spec.is_for_policy(&policy.name_any(), policy.labels()))
}

/// The policy of a node, where the name is a node's and both can be read.
async fn of_node(client: &Client, node: &str) -> Option<api::UpdatePolicy> {
    let updates: Api<api::NodeUpdate> = Api::all(client.clone());
    let update = updates.get_opt(node).await.ok().flatten()?;
    let policies: Api<api::UpdatePolicy> = Api::all(client.clone());
    policies.get_opt(&update.spec.policy).await.ok().flatten()
}

/// Whether a Freeze is for this policy or node and nothing else.
fn is_for(spec: &FreezeSpec, name: &str) -> bool {
    let only = |names: &[String]| matches!(names, [one] if one == name);
    only(&spec.policies) || only(&spec.nodes)
}

/// End freezes before their time.
#[derive(Debug, Args)]
pub(crate) struct Unfreeze {
    /// The names of the freezes, as `bascule status` shows them.
    #[arg(required_unless_present = "all", add = clap_complete::ArgValueCandidates::new(crate::completion::freezes))]
    names: Vec<String>,
    /// End all of them, those of others too.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Do not ask before all of them are ended.
    #[arg(long, short)]
    yes: bool,
}

impl Unfreeze {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client: Client = connection.client().await?;
        let freezes = super::list::<api::Freeze>(&client, "Freezes").await?;
        let now = Time::new(clock::now());
        let active: Vec<&api::Freeze> = freezes.iter().filter(|freeze| freeze.is_active(now)).collect();
        let mut text = String::new();
        let ended = if self.all {
            if !active.is_empty() {
                output::say(&ending(&active));
                if !output::confirmed("Continue", self.yes)? {
                    output::print("Nothing was changed.\n")?;
                    return Ok(Exit::Failed);
                }
            }
            active
        } else {
            let mut chosen = Vec::new();
            for name in &self.names {
                let Some(freeze) = freezes.iter().find(|freeze| freeze.name_any() == *name) else {
                    let known: Vec<String> = active.iter().map(|freeze| freeze.name_any()).collect();
                    anyhow::bail!("there is no Freeze {name}{}", problem::hint(name, known.iter().map(String::as_str)));
                };
                if freeze.is_active(now) {
                    chosen.push(freeze);
                } else {
                    text.push_str(&over(name, freeze.spec.ended_by.as_deref()));
                }
            }
            chosen
        };
        let before_us = end(&client, &ended).await?;
        if !ended.is_empty() {
            view::tell_if_nobody_leads(&client, connection).await;
        }
        text.extend(before_us.iter().map(|(name, by)| over(name, Some(by))));
        let count = ended.len() - before_us.len();
        if count > 0 || text.is_empty() {
            text.push_str(&count_ended(count));
        }
        output::print(&text)?;
        Ok(Exit::Success)
    }
}

fn count_ended(count: usize) -> String {
    format!("{} ended\n", picture::count(count, "freeze"))
}

/// What is said of a Freeze that holds nothing any more.
fn over(name: &str, by: Option<&str>) -> String {
    match by {
        Some(by) => format!("{name} was ended by {by} already\n"),
        None => format!("{name} was over already\n"),
    }
}

/// Whose freezes end, and why they were written: some of them are other people's.
fn ending(freezes: &[&api::Freeze]) -> String {
    let mut text = match freezes.len() {
        1 => "1 freeze ends now, and what it held may start at once:".to_owned(),
        many => format!("{} end now, and what they held may start at once:", picture::count(many, "freeze")),
    };
    for freeze in freezes {
        text.push_str(&format!("\n  {}", described(freeze)));
    }
    text
}

/// Ends freezes. Returns those that somebody else ended in between, with who.
async fn end(client: &Client, freezes: &[&api::Freeze]) -> anyhow::Result<Vec<(String, String)>> {
    if freezes.is_empty() {
        return Ok(Vec::new());
    }
    let me = whoami(client).await?;
    let api: Api<api::Freeze> = Api::all(client.clone());
    let mut before_us = Vec::new();
    for freeze in freezes {
        let (name, uid) = (freeze.name_any(), freeze.metadata.uid.clone());
        // Without a resourceVersion, which each write of the operator changes: the definition itself takes one end and no second.
        let patch = json!({"metadata": {"uid": uid}, "spec": {"endedBy": me}});
        let why_not = if me.is_none() {
            "the API server does not say who you are"
        } else {
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(written) if written.spec.ended_by.is_some() => continue,
                Ok(_) => "the definition of Freezes in this cluster is older than this program",
                Err(kube::Error::Api(status)) if status.code == 404 => continue,
                Err(kube::Error::Api(status)) if status.code == 403 && problem::lacks_a_right(&status) => {
                    "you may not patch Freezes, which the ClusterRole bascule-on-call of this version allows"
                }
                Err(error) => {
                    let there = api.get_opt(&name).await.ok().flatten();
                    if let Some(by) = there.and_then(|there| there.spec.ended_by) {
                        before_us.push((name, by));
                        continue;
                    }
                    return Err(problem::told(error, "patch", "Freezes", Role::OnCall));
                }
            }
        };
        // What was asked for is that nodes go on; as it was done before there was a record of it.
        output::say(&format!("{name} is deleted, and who ended it is not on record: {why_not}"));
        let it = DeleteParams {
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&name, &it).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(problem::told(error, "delete", "Freezes", Role::OnCall)),
        }
    }
    Ok(before_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(fields: serde_json::Value) -> FreezeSpec {
        let mut whole = json!({"reason": "INC-4711", "duration": "2h"});
        whole.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn whoever_ends_all_freezes_reads_whose_they_are() {
        let freeze = api::Freeze::new("freeze-x7k2", spec(json!({"requestedBy": "alice"})));
        let said = ending(&[&freeze]);
        assert!(said.contains("freeze-x7k2 (everywhere by alice): INC-4711"), "{said}");
    }

    #[test]
    fn resuming_ends_what_is_for_this_name_alone() {
        let is_for = |fields, name: &str| is_for(&spec(fields), name);
        assert!(is_for(json!({"policies": ["workers"]}), "workers") && is_for(json!({"nodes": ["n1"]}), "n1"));
        assert!(!is_for(json!({}), "workers") && !is_for(json!({"policies": ["workers", "control"]}), "workers"));
    }

    #[test]
    fn what_holds_somebody_else_is_not_offered() {
        let workers: api::UpdatePolicy = serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy",
            "metadata": {"name": "workers", "labels": {"tier": "web"}},
            "spec": {"nodeSelector": {}, "source": {"repository": "https://a.example/os", "channel": "stable"}},
        }))
        .unwrap();
        for (fields, policy, node) in [
            (json!({}), true, true),
            (json!({"policies": ["workers", "control"]}), true, true),
            (json!({"policies": ["control"]}), false, false),
            (json!({"policySelector": {"matchLabels": {"tier": "web"}}}), true, true),
            (json!({"policySelector": {"matchLabels": {"tier": "db"}}}), false, false),
            (json!({"nodes": ["n1", "n2"]}), false, true),
            (json!({"nodes": ["n2"]}), false, false),
        ] {
            let spec = spec(fields.clone());
            let held = (still_holds(&spec, "workers", Some(&workers)), still_holds(&spec, "n1", Some(&workers)));
            assert_eq!(held, (policy, node), "{fields}");
        }
    }

    #[test]
    fn the_ends_say_what_they_did() {
        let ended = ["pause-x7k2 (policy workers by alice): not tonight".to_owned()];
        let others = ["freeze-b4f9 (everywhere by bob): INC-4711".to_owned()];
        let says = [
            ("resume workers", resumed("workers", &ended, &[])),
            ("resume workers, others hold", resumed("workers", &ended, &others)),
            ("resume control", resumed("control", &[], &others)),
            (
                "unfreeze --all, asking",
                ending(&[&api::Freeze::new("freeze-x7k2", spec(json!({"requestedBy": "alice"})))]) + "\n",
            ),
            ("unfreeze --all", count_ended(2)),
            ("unfreeze freeze-x7k2, after bob", over("freeze-x7k2", Some("bob"))),
            ("unfreeze freeze-x7k2, too late", over("freeze-x7k2", None)),
        ];
        let shown: String = says.iter().map(|(line, says)| format!("$ bascule {line}\n{says}")).collect();
        insta::assert_snapshot!("end-commands", shown);
    }
}
