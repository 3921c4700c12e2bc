//! `bascule rollback`: the way back, with a look at what it will cost before it starts.

use super::{
    Cluster, Connection, generated_name, picture,
    problem::{self, Role},
    whoami,
};
use crate::{clock, exit::Exit, output};
use anyhow::bail;
use bascule_api as api;
use bascule_api::{SlotState, Version};
use clap::Args;
use futures::StreamExt as _;
use kube::{
    Api, ResourceExt as _,
    api::PostParams,
    runtime::{WatchStreamExt as _, watcher},
};
use std::{collections::BTreeSet, time::Duration};

/// Bring a policy or some of its nodes back to the previous or a named release.
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The policy.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::policies))]
    policy: String,
    /// Why. It goes into the record of every node.
    #[arg(long)]
    reason: String,
    /// Only these nodes (comma-separated or repeated).
    #[arg(
        long,
        value_name = "NODE",
        value_delimiter = ',',
        add = clap_complete::ArgValueCandidates::new(crate::completion::nodes)
    )]
    nodes: Vec<String>,
    /// The release to go back to. Default: what each node's other slot holds.
    #[arg(long, value_name = "VERSION")]
    to: Option<Version>,
    /// Do not block the release that is left.
    #[arg(long)]
    no_block: bool,
    /// Wait for maintenance windows.
    #[arg(long)]
    respect_windows: bool,
    /// All nodes at once, whatever the budget.
    #[arg(long)]
    ignore_budgets: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// Wait until every node is back, at most this long.
    #[arg(long, value_name = "DURATION")]
    wait: Option<api::Duration>,
}

/// What a rollback will do, as far as it can be seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Forecast {
    to: BTreeSet<Version>,
    from: BTreeSet<Version>,
    without_download: usize,
    with_download: usize,
    already_there: usize,
}

/// Looks at what every node runs and holds.
fn forecast(nodes: &[&api::NodeUpdate], to: Option<&Version>) -> Forecast {
    let mut seen = Forecast {
        to: BTreeSet::new(),
        from: BTreeSet::new(),
        without_download: 0,
        with_download: 0,
        already_there: 0,
    };
    for node in nodes {
        let Some((status, booted)) = node.status.as_ref().and_then(|status| Some((status, status.booted.as_ref()?)))
        else {
            continue;
        };
        let other = status.slots.as_ref().map(|slots| slots.get(booted.slot.other()));
        let held = other
            .filter(|slot| matches!(slot.state, SlotState::Good | SlotState::Staged))
            .and_then(|slot| slot.version.as_ref());
        let wanted = to.or_else(|| held.filter(|held| **held < booted.version));
        match wanted {
            Some(version) if *version == booted.version => seen.already_there += 1,
            Some(version) => {
                seen.to.insert(version.clone());
                seen.from.insert(booted.version.clone());
                if held == Some(version) {
                    seen.without_download += 1;
                } else {
                    seen.with_download += 1;
                }
            }
            // Runs nothing newer than what its other slot holds: there is no way back that this rollback means.
            None => seen.already_there += 1,
        }
    }
    seen
}

fn versions(set: &BTreeSet<Version>) -> String {
    set.iter().map(Version::to_string).collect::<Vec<_>>().join(", ")
}

impl Rollback {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let cluster = Cluster::read(&client).await?;
        let policy = super::named(&cluster.policies, "UpdatePolicy", &self.policy)?;
        let mut nodes = cluster.nodes_of(&self.policy);
        if let Some(unknown) = self.nodes.iter().find(|name| !nodes.iter().any(|node| node.name_any() == name.as_str()))
        {
            let names: Vec<_> = nodes.iter().map(|node| node.name_any()).collect();
            let hint = problem::hint(unknown, names.iter().map(String::as_str));
            bail!("node {unknown} does not belong to policy {}{hint}", self.policy);
        }
        if !self.nodes.is_empty() {
            nodes.retain(|node| self.nodes.contains(&node.name_any()));
        }
        let seen = forecast(&nodes, self.to.as_ref());
        if seen.without_download + seen.with_download == 0 {
            bail!("no node of {} has anything to go back to", self.policy);
        }
        let mut text = self.sentence(policy, &seen);
        let freezes = super::list::<api::Freeze>(&client, "Freezes").await?;
        let nodes: Vec<String> = nodes.iter().map(|node| node.name_any()).collect();
        let now = api::Time::new(clock::now());
        for freeze in freezes.iter().filter(|freeze| holds(freeze, policy, &nodes, now)) {
            let name = freeze.name_any();
            text.push_str(&format!(
                "Freeze {name} holds it meanwhile ({}): bascule unfreeze {name}\n",
                freeze.spec.reason
            ));
        }
        output::print(&text)?;
        if !output::confirmed("Continue", self.yes)? {
            output::print("Nothing was changed.\n")?;
            return Ok(Exit::Failed);
        }
        let spec = api::RollbackSpec {
            reason: self.reason.clone(),
            policy: self.policy.clone(),
            nodes: self.nodes.clone(),
            version: self.to.clone(),
            block: !self.no_block,
            respect_windows: self.respect_windows,
            ignore_budgets: self.ignore_budgets,
            requested_by: whoami(&client).await?,
        };
        let rollback = api::Rollback { metadata: generated_name("rollback"), spec, status: None };
        let api: Api<api::Rollback> = Api::all(client);
        let rollback = api
            .create(&PostParams::default(), &rollback)
            .await
            .map_err(|error| problem::told(error, "create", "Rollbacks", Role::OnCall))?;
        let name = rollback.name_any();
        output::print(&format!("Rollback {name} is written; follow it with: kubectl get rollback {name} --watch\n"))?;
        match self.wait {
            Some(limit) => wait(&api, &name, limit.to_std()).await,
            None => Ok(Exit::Success),
        }
    }

    fn sentence(&self, policy: &api::UpdatePolicy, seen: &Forecast) -> String {
        let to = versions(&seen.to);
        let mut text = format!(
            "{} goes back to {to}: {} in the other slot (no download), {} must fetch it.\n",
            self.policy,
            if seen.without_download == 1 {
                "1 node holds it".to_owned()
            } else {
                format!("{} hold it", picture::count(seen.without_download, "node"))
            },
            seen.with_download,
        );
        let budget = match &policy.spec.budget.max_unavailable {
            _ if self.ignore_budgets => "All at once (budgets ignored)".to_owned(),
            api::IntOrPercent::Int(count) => format!("At most {count} at once"),
            api::IntOrPercent::Percent(share) => format!("At most {share} at once"),
        };
        let windows = if self.respect_windows { "in maintenance windows" } else { "windows ignored" };
        let domains = policy.spec.budget.per_domain.as_ref().filter(|_| !self.ignore_budgets).map(|domain| {
            let key = domain.topology_key.rsplit('/').next().unwrap_or_default();
            format!(", in {} at a time", picture::count(domain.max_domains as usize, key))
        });
        text.push_str(&format!("{budget}{}, {windows}.", domains.unwrap_or_default()));
        if !self.no_block && !seen.from.is_empty() {
            text.push_str(&format!(" {} will be blocked for this policy.", versions(&seen.from)));
        }
        text.push('\n');
        text
    }
}

/// Whether a Freeze holds nodes of a policy now: a rollback waits for its end too.
fn holds(freeze: &api::Freeze, policy: &api::UpdatePolicy, nodes: &[String], now: api::Time) -> bool {
    freeze.is_active(now)
        && (freeze.spec.is_for_policy(&policy.name_any(), policy.labels())
            || nodes.iter().any(|node| freeze.spec.is_for_node(node)))
}

async fn wait(api: &Api<api::Rollback>, name: &str, limit: Duration) -> anyhow::Result<Exit> {
    let watch = watcher(api.clone(), watcher::Config::default().fields(&format!("metadata.name={name}")))
        .default_backoff()
        .applied_objects();
    let finished = async {
        let mut watch = std::pin::pin!(watch);
        let mut shown = String::new();
        while let Some(event) = watch.next().await {
            // A dropped watch is taken up again by the watcher; the limit bounds how long.
            let Ok(rollback) = event else { continue };
            let status = rollback.status.unwrap_or_default();
            let progress = status.progress.unwrap_or_default();
            if progress != shown {
                output::print(&format!("{progress} nodes are back\n"))?;
                shown = progress;
            }
            if api::conditions::is_true(&status.conditions, api::conditions::COMPLETE) {
                return anyhow::Ok(());
            }
        }
        bail!("the watch on Rollback {name} ended")
    };
    match tokio::time::timeout(limit, finished).await {
        Ok(done) => done.map(|()| Exit::Success),
        Err(_) => {
            output::say(&format!(
                "Rollback {name} is not complete after {}",
                api::Duration::from_secs(limit.as_secs())
            ));
            Ok(Exit::TryAgain)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::{Booted, NodeUpdate, NodeUpdateSpec, NodeUpdateStatus, RootHash, SlotName, SlotStatus, Slots};

    fn node(name: &str, booted: &str, other: Option<&str>) -> NodeUpdate {
        let version = |text: &str| Version::parse(text).unwrap();
        let hash = RootHash::from_bytes(&[7; 32]);
        let spec: NodeUpdateSpec = serde_json::from_value(serde_json::json!({"policy": "workers"})).unwrap();
        let mut node = NodeUpdate::new(name, spec);
        let b = SlotStatus {
            state: if other.is_some() { SlotState::Good } else { SlotState::Empty },
            version: other.map(version),
            root_hash: None,
        };
        node.status = Some(NodeUpdateStatus {
            booted: Some(Booted { slot: SlotName::A, version: version(booted), root_hash: hash, committed_at: None }),
            slots: Some(Slots { a: SlotStatus::default(), b }),
            ..NodeUpdateStatus::default()
        });
        node
    }

    fn policy(budget: serde_json::Value) -> api::UpdatePolicy {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy",
            "metadata": {"name": "workers", "labels": {"tier": "web"}},
            "spec": {"nodeSelector": {}, "budget": budget,
                "source": {"repository": "https://a.example/os", "channel": "stable"}},
        }))
        .unwrap()
    }

    #[test]
    fn what_a_rollback_will_do_is_said_before_it_is_asked_for() {
        use clap::Parser as _;
        let says = |line: &str, budget: serde_json::Value| {
            let words = ["bascule", "rollback", "workers", "--reason", "41.3.0 breaks the network"];
            let parsed = crate::args::Arguments::parse_from(words.into_iter().chain(line.split_whitespace()));
            let crate::args::Command::Rollback(rollback) = parsed.command else { panic!("another command") };
            let nodes = [node("a", "1.3", Some("1.1")), node("b", "1.3", None)];
            let seen = forecast(&nodes.iter().collect::<Vec<_>>(), Some(&Version::parse("1.1").unwrap()));
            rollback.sentence(&policy(budget), &seen)
        };
        let zones = serde_json::json!({"maxUnavailable": 4, "perDomain": {"topologyKey": "topology.kubernetes.io/zone", "maxDomains": 1}});
        let shown = [
            ("", says("", zones.clone())),
            (" --ignore-budgets --no-block", says("--ignore-budgets --no-block", zones)),
            (" --respect-windows", says("--respect-windows", serde_json::json!({"maxUnavailable": "10%"}))),
        ];
        let shown: String =
            shown.iter().map(|(line, says)| format!("$ bascule rollback workers{line}\n{says}")).collect();
        insta::assert_snapshot!("rollback", shown);
    }

    #[test]
    fn a_freeze_that_will_hold_it_is_found() {
        let nodes = ["a".to_owned(), "b".to_owned()];
        let now = api::Time::new(chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        let policy = policy(serde_json::json!({}));
        let held = |spec: serde_json::Value, minutes: u64| {
            let mut whole = serde_json::json!({"reason": "incident", "duration": "2h"});
            whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let freeze: api::Freeze = serde_json::from_value(serde_json::json!({
                "apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "spec": whole,
                "metadata": {"name": "f", "creationTimestamp": now},
            }))
            .unwrap();
            holds(&freeze, &policy, &nodes, now.after(api::Duration::from_minutes(minutes)))
        };
        for spec in [
            serde_json::json!({}),
            serde_json::json!({"policies": ["workers"]}),
            serde_json::json!({"nodes": ["b"]}),
            serde_json::json!({"policySelector": {"matchLabels": {"tier": "web"}}}),
        ] {
            assert!(held(spec.clone(), 5) && !held(spec.clone(), 121), "{spec}");
        }
        for spec in [
            serde_json::json!({"policies": ["control"]}),
            serde_json::json!({"nodes": ["c"]}),
            serde_json::json!({"endedBy": "bob"}),
        ] {
            assert!(!held(spec.clone(), 5), "{spec}");
        }
    }

    #[test]
    fn sees_who_needs_a_download() {
        let nodes = [node("a", "1.3", Some("1.1")), node("b", "1.3", None), node("c", "1.1", Some("1.3"))];
        let nodes: Vec<_> = nodes.iter().collect();
        let previous = forecast(&nodes, None);
        assert_eq!((previous.without_download, previous.with_download, previous.already_there), (1, 0, 2));
        let named = forecast(&nodes, Some(&Version::parse("1.1").unwrap()));
        assert_eq!((named.without_download, named.with_download, named.already_there), (1, 1, 1));
        assert_eq!(versions(&named.from), "1.3");
    }
}
