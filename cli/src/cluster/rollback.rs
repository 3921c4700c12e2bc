//! `bascule rollback`: the way back, with a look at what it will cost before it starts.

use super::{
    Connection,
    facts::{Objects, snapshot},
    generated_name, picture,
    problem::{self, Role},
    view, watched, whoami,
};
use crate::{clock, exit::Exit, output};
use anyhow::bail;
use bascule_api as api;
use bascule_api::{Version, conditions};
use clap::Args;
use kube::{
    Api, ResourceExt as _,
    api::{ObjectMeta, PostParams},
};
use std::time::Duration;

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
    /// Go back also where the older release is made for an older state of the machine than the machine was used with. It is up to you
    /// to know that it understands what is there.
    #[arg(long)]
    accept_state: bool,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
    /// Wait until every node is back, at most this long.
    #[arg(long, value_name = "DURATION")]
    wait: Option<api::Duration>,
}

/// What a rollback will do, as the operator's own planner says it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Preview {
    /// Where most of its nodes go.
    to: Version,
    /// The releases that are left, those that nodes are on their way to included.
    from: Vec<Version>,
    without_download: usize,
    with_download: usize,
    /// Nodes that it speaks of, and that run nothing of what is left.
    stay: usize,
    /// Nodes that have not said what they run.
    silent: usize,
    /// Nodes that are to go back and will not, because their state was used with a newer state version.
    refused: usize,
}

/// Puts the Rollback among the objects and asks what becomes of it. `None` where there is nothing to leave, or nowhere to go.
fn preview(objects: &mut Objects, spec: &api::RollbackSpec, now: api::Time) -> Option<Preview> {
    let metadata = ObjectMeta {
        name: Some("preview".to_owned()),
        creation_timestamp: Some(now.to_kubernetes()),
        ..ObjectMeta::default()
    };
    objects.rollbacks.push(api::Rollback { metadata, spec: spec.clone(), status: None });
    let spoken_of = objects.updates.iter().filter(|update| {
        update.spec.policy == spec.policy && (spec.nodes.is_empty() || spec.nodes.contains(&update.name_any()))
    });
    let booted = |update: &api::NodeUpdate| update.status.as_ref().is_some_and(|status| status.booted.is_some());
    let (heard, silent): (Vec<_>, Vec<_>) = spoken_of.partition(|update| booted(update));
    let (_, report) = bascule_planner::plan(&snapshot(objects, 0, now));
    let said = report.rollbacks.last().filter(|said| !said.from.is_empty())?;
    let statuses = heard.iter().filter_map(|update| update.status.as_ref());
    let refused = statuses.filter(|status| !spec.accept_state && is_refused(status, spec, &said.from)).count();
    let count = |nodes: u32| usize::try_from(nodes).unwrap_or(usize::MAX);
    let (without_download, with_download) = (count(said.without_download), count(said.with_download));
    Some(Preview {
        to: said.to.clone()?,
        from: said.from.clone(),
        without_download,
        with_download,
        stay: heard.len().saturating_sub(without_download + with_download),
        silent: silent.len(),
        refused,
    })
}

/// Whether a node that holds what it would go back to was used with a newer state version than that is made for. Of what it would
/// have to fetch nothing is known here.
fn is_refused(status: &api::NodeUpdateStatus, spec: &api::RollbackSpec, from: &[Version]) -> bool {
    let (Some(used), Some(booted), Some(slots)) = (status.state_version, &status.booted, &status.slots) else {
        return false;
    };
    let other = slots.get(booted.slot.other());
    let goes_there = match (&spec.version, &other.version) {
        (Some(named), Some(held)) => named == held,
        (None, Some(held)) => *held < booted.version && !from.contains(held),
        (_, None) => false,
    };
    from.contains(&booted.version) && goes_there && other.state_version.unwrap_or(0) < used
}

fn versions(all: &[Version]) -> String {
    all.iter().map(Version::to_string).collect::<Vec<_>>().join(", ")
}

impl Rollback {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let mut objects = Objects::read(&client).await?;
        let policy = super::named(&objects.policies, "UpdatePolicy", &self.policy)?.clone();
        let members = objects.updates.iter().filter(|update| update.spec.policy == self.policy);
        let mut nodes: Vec<String> = members.map(|update| update.name_any()).collect();
        if let Some(unknown) = self.nodes.iter().find(|name| !nodes.contains(name)) {
            let hint = problem::hint(unknown, nodes.iter().map(String::as_str));
            bail!("node {unknown} does not belong to policy {}{hint}", self.policy);
        }
        if !self.nodes.is_empty() {
            nodes.retain(|node| self.nodes.contains(node));
        }
        let spec = api::RollbackSpec {
            reason: self.reason.clone(),
            policy: self.policy.clone(),
            nodes: self.nodes.clone(),
            version: self.to.clone(),
            block: !self.no_block,
            respect_windows: self.respect_windows,
            ignore_budgets: self.ignore_budgets,
            accept_state: self.accept_state,
            requested_by: whoami(&client).await?,
        };
        let now = api::Time::new(clock::now());
        view::tell_if_nobody_leads(&client, connection).await;
        let Some(seen) = preview(&mut objects, &spec, now) else {
            bail!("no node of {} has anything to go back to", self.policy);
        };
        let mut text = self.sentence(&policy, &seen);
        for freeze in objects.freezes.iter().filter(|freeze| holds(freeze, &policy, &nodes, now)) {
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
        let rollback = api::Rollback { metadata: generated_name("rollback"), spec, status: None };
        let api: Api<api::Rollback> = Api::all(client);
        let rollback = api
            .create(&PostParams::default(), &rollback)
            .await
            .map_err(|error| problem::told(error, "create", "Rollbacks", Role::OnCall))?;
        let name = rollback.name_any();
        output::print(&written(&name))?;
        match self.wait {
            Some(limit) => wait(&api, &name, limit.to_std()).await,
            None => Ok(Exit::Success),
        }
    }

    fn sentence(&self, policy: &api::UpdatePolicy, seen: &Preview) -> String {
        let mut text = format!(
            "{} goes back to {}: {} in the other slot (no download), {} must fetch it.",
            self.policy,
            seen.to,
            if seen.without_download == 1 {
                "1 node holds it".to_owned()
            } else {
                format!("{} hold it", picture::count(seen.without_download, "node"))
            },
            seen.with_download,
        );
        let left = versions(&seen.from);
        if seen.stay > 0 {
            text.push_str(&format!(" {} without {left}: not touched.", picture::count(seen.stay, "node")));
        }
        if seen.silent > 0 {
            let silent = picture::count(seen.silent, "node");
            text.push_str(&format!(" {silent} not heard of yet: back too where it runs {left}."));
        }
        text.push('\n');
        if seen.refused > 0 {
            let nodes = picture::count(seen.refused, "node");
            text.push_str(&format!(
                "{nodes} will wait: their state was used with a newer state version than {} is made for (--accept-state goes back all \
                 the same).\n",
                seen.to
            ));
        }
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
            text.push_str(&format!(" {left} will be blocked for this policy."));
        }
        text.push('\n');
        text
    }
}

fn written(name: &str) -> String {
    format!("Rollback {name} is written; follow it with: kubectl get rollback {name} --watch\n")
}

/// Whether a Freeze holds nodes of a policy now: a rollback waits for its end too.
fn holds(freeze: &api::Freeze, policy: &api::UpdatePolicy, nodes: &[String], now: api::Time) -> bool {
    freeze.is_active(now)
        && (freeze.spec.is_for_policy(&policy.name_any(), policy.labels())
            || nodes.iter().any(|node| freeze.spec.is_for_node(node)))
}

async fn wait(api: &Api<api::Rollback>, name: &str, limit: Duration) -> anyhow::Result<Exit> {
    let mut shown = String::new();
    let finished = watched::until(api.clone(), "Rollback", name, |rollback: &api::Rollback| {
        let status = rollback.status.clone().unwrap_or_default();
        let accepted = conditions::get(&status.conditions, conditions::ACCEPTED);
        if let Some(refused) = accepted.filter(|one| one.status == "False") {
            bail!("Rollback {name} is not accepted: {}", refused.message);
        }
        let progress = status.progress.unwrap_or_default();
        if progress != shown {
            output::print(&format!("{progress} nodes are back\n"))?;
            shown = progress;
        }
        Ok(conditions::is_true(&status.conditions, conditions::COMPLETE).then_some(()))
    });
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
    use serde_json::json;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    /// Nodes of the policy with what they run and what their other slot holds.
    fn fleet(nodes: &[(&str, &str, &str)]) -> Objects {
        let digest = format!("sha256:{}", "3".repeat(64));
        let release = |version: &str| json!({"version": version, "digest": digest, "severity": "Low", "publishedAt": "2026-01-01T00:00:00Z"});
        let mut workers = policy(json!({}));
        workers.status = serde_json::from_value(json!({"target": release("1.3"), "previous": release("1.2")})).unwrap();
        let mut objects = Objects { policies: vec![workers], ..Objects::default() };
        for (name, booted, other) in nodes {
            let other =
                if other.is_empty() { json!({"state": "Empty"}) } else { json!({"state": "Good", "version": other}) };
            let booted =
                (!booted.is_empty()).then(|| json!({"slot": "A", "version": booted, "rootHash": "a".repeat(64)}));
            let slots = json!({"a": {"state": "Good", "version": booted.as_ref().map(|one| one["version"].clone())}, "b": other});
            objects.nodes.push(serde_json::from_value(json!({"metadata": {"name": name, "uid": name}})).unwrap());
            objects.updates.push(
                serde_json::from_value(json!({
                    "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": name},
                    "spec": {"policy": "workers"}, "status": {"bootID": name, "booted": booted, "slots": slots},
                }))
                .unwrap(),
            );
        }
        objects
    }

    fn asked(line: &str) -> Rollback {
        use clap::Parser as _;
        let words = ["bascule", "rollback", "workers", "--reason", "1.3 breaks the network"];
        let parsed = crate::args::Arguments::parse_from(words.into_iter().chain(line.split_whitespace()));
        let crate::args::Command::Rollback(rollback) = parsed.command else { panic!("another command") };
        rollback
    }

    fn seen(line: &str, mut objects: Objects) -> Option<Preview> {
        let asked = asked(line);
        let spec = json!({"policy": "workers", "reason": asked.reason, "nodes": asked.nodes, "version": asked.to,
            "acceptState": asked.accept_state});
        let now = api::Time::new(chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        preview(&mut objects, &serde_json::from_value(spec).unwrap(), now)
    }

    fn policy(budget: serde_json::Value) -> api::UpdatePolicy {
        serde_json::from_value(json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy",
            "metadata": {"name": "workers", "labels": {"tier": "web"}},
            "spec": {"nodeSelector": {}, "budget": budget,
                "source": {"repository": "https://a.example/os", "channel": "stable"}},
        }))
        .unwrap()
    }

    #[test]
    fn what_a_rollback_will_do_is_said_before_it_is_asked_for() {
        let says = |line: &str, budget: serde_json::Value| {
            let fleet = fleet(&[("a", "1.3", "1.1"), ("b", "1.3", ""), ("c", "1.2", "1.1"), ("d", "", "")]);
            asked(line).sentence(&policy(budget), &seen(line, fleet).unwrap())
        };
        let zones =
            json!({"maxUnavailable": 4, "perDomain": {"topologyKey": "topology.kubernetes.io/zone", "maxDomains": 1}});
        let shown = [
            ("", says("", zones.clone())),
            (" --ignore-budgets --no-block", says("--ignore-budgets --no-block", zones)),
            (" --respect-windows --to 1.1", says("--respect-windows --to 1.1", json!({"maxUnavailable": "10%"}))),
            (" --yes", written("rollback-9c7bj")),
        ];
        let shown: String =
            shown.iter().map(|(line, says)| format!("$ bascule rollback workers{line}\n{says}")).collect();
        insta::assert_snapshot!("rollback", shown);
    }

    #[test]
    fn in_the_middle_of_a_rollout_only_those_go_back_that_have_it() {
        let middle = || {
            fleet(&[
                ("a", "1.3", "1.2"),
                ("b", "1.3", "1.2"),
                ("c", "1.2", "1.1"),
                ("d", "1.2", "1.1"),
                ("e", "1.1", ""),
            ])
        };
        let left = |preview: &Preview| preview.from.iter().map(ToString::to_string).collect::<Vec<_>>();
        let previous = seen("", middle()).unwrap();
        assert_eq!((previous.to.clone(), left(&previous)), (version("1.2"), vec!["1.3".to_owned()]));
        assert_eq!((previous.without_download, previous.with_download, previous.stay), (2, 0, 3));
        // To a named one, those that run something older stay too.
        let named = seen("--to 1.2", middle()).unwrap();
        assert_eq!((left(&named), named.without_download, named.stay), (vec!["1.3".to_owned()], 2, 3));
        let some = seen("--nodes b,c", middle()).unwrap();
        assert_eq!((some.without_download, some.stay), (1, 1));
        // Who holds nothing older fetches what the policy had before.
        let fetches = seen("", fleet(&[("a", "1.3", "")])).unwrap();
        assert_eq!((fetches.to, fetches.without_download, fetches.with_download), (version("1.2"), 0, 1));
        // What a node is on its way to is left too, before anybody runs it.
        let mut on_the_way = fleet(&[("a", "1.2", "1.3"), ("b", "1.2", "1.1")]);
        let spec = &mut on_the_way.updates[0].spec;
        spec.goal = api::Goal::Booted;
        spec.release = serde_json::from_value(json!({"version": "1.3", "digest": format!("sha256:{}", "3".repeat(64)),
            "repository": "https://a.example/os", "channel": "stable"}))
        .unwrap();
        spec.disruption = serde_json::from_value(json!({"grantedAt": "2026-01-01T00:00:00Z", "wasCordoned": false,
            "cause": {"object": {"kind": "UpdatePolicy", "name": "workers"}}}))
        .unwrap();
        let stopped = seen("", on_the_way).unwrap();
        assert_eq!((left(&stopped), stopped.without_download + stopped.with_download), (vec!["1.3".to_owned()], 0));
        assert_eq!(seen("", fleet(&[("a", "", "")])), None);
    }

    #[test]
    fn who_would_go_back_over_a_state_version_is_counted_before_it_is_asked_for() {
        let used = || {
            let mut fleet = fleet(&[("a", "1.3", "1.1"), ("b", "1.3", "1.1"), ("c", "1.3", "1.2")]);
            for (at, made_for) in [(0, 1), (1, 2), (2, 2)] {
                let status = fleet.updates[at].status.as_mut().unwrap();
                status.state_version = Some(2);
                status.slots.as_mut().unwrap().b.state_version = Some(made_for);
            }
            fleet
        };
        let refused = seen("", used()).unwrap();
        assert_eq!(refused.refused, 1);
        let said = asked("").sentence(&policy(json!({})), &refused);
        assert!(said.contains("1 node will wait") && said.contains("--accept-state"), "{said}");
        let accepted = seen("--accept-state", used()).unwrap();
        assert_eq!(accepted.refused, 0);
    }

    #[test]
    fn the_sandboxs_transcript_is_what_is_said_today() {
        let read = crate::cluster::fixture::sandbox_read("rollback");
        let between = |from: &str, to: &str| read.split_once(from).unwrap().1.split_once(to).unwrap().0;
        let seen = Preview {
            to: version(between("goes back to ", ": ")),
            from: vec![version(between("ignored. ", " will be"))],
            without_download: between(": ", " node").parse().unwrap(),
            with_download: between("(no download), ", " must").parse().unwrap(),
            stay: 0,
            silent: 0,
            refused: 0,
        };
        // As the sandbox's policy has it.
        let zones = json!({"topologyKey": "topology.kubernetes.io/zone", "maxDomains": 1});
        let budget = json!({"maxUnavailable": 2, "perDomain": zones});
        let said = asked("").sentence(&policy(budget), &seen);
        let name = read.rsplit_once(' ').unwrap().0.rsplit_once(' ').unwrap().1;
        assert!(name.starts_with("rollback-"), "{name}");
        assert_eq!(read, format!("{said}{}", written(name)).trim_end());
    }

    #[test]
    fn a_freeze_that_will_hold_it_is_found() {
        let nodes = ["a".to_owned(), "b".to_owned()];
        let now = api::Time::new(chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        let policy = policy(json!({}));
        let held = |spec: serde_json::Value, minutes: u64| {
            let mut whole = json!({"reason": "incident", "duration": "2h"});
            whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let freeze: api::Freeze = serde_json::from_value(json!({
                "apiVersion": "bascule.dev/v1alpha1", "kind": "Freeze", "spec": whole,
                "metadata": {"name": "f", "creationTimestamp": now},
            }))
            .unwrap();
            holds(&freeze, &policy, &nodes, now.after(api::Duration::from_minutes(minutes)))
        };
        for spec in [
            json!({}),
            json!({"policies": ["workers"]}),
            json!({"nodes": ["b"]}),
            json!({"policySelector": {"matchLabels": {"tier": "web"}}}),
        ] {
            assert!(held(spec.clone(), 5) && !held(spec.clone(), 121), "{spec}");
        }
        for spec in [json!({"policies": ["control"]}), json!({"nodes": ["c"]}), json!({"endedBy": "bob"})] {
            assert!(!held(spec.clone(), 5), "{spec}");
        }
    }
}
