//! The stop switches, which all write a Freeze: `freeze` for everything or by label, `pause` for a policy, `hold` for a
//! node, `abort` to undo drains too. How they end: `unfreeze`.

use super::{Connection, generated_name, live::Seen, picture, problem, problem::Role, view, whoami};
use crate::{clock, exit::Exit, output};
use bascule_api as api;
use bascule_api::{FreezeSpec, LiveNode, RolloutState, Selector};
use clap::Args;
use kube::{Api, Client, ResourceExt as _, api::PostParams};
use std::collections::BTreeSet;

/// How many labels are named to somebody who gave one that no policy has.
const LABELS: usize = 12;

/// Stop new disruptions, everywhere or for some policies, until the time is over.
///
/// Nodes in progress are finished. To undo running drains as well: `bascule abort`.
#[derive(Debug, Args)]
pub(crate) struct Freeze {
    /// How long, e.g. 90m or 2h.
    #[arg(long = "for", value_name = "DURATION", value_parser = long_enough)]
    duration: api::Duration,
    /// Why. Everybody who waits will read it.
    #[arg(long)]
    reason: String,
    /// Only policies with this label (repeat for several, all must match).
    #[arg(long = "policy-label", value_name = "KEY=VALUE", value_parser = label)]
    policy_labels: Vec<(String, String)>,
    /// Freeze though no policy has these labels yet: one that gets them is frozen too.
    #[arg(long, short, requires = "policy_labels")]
    yes: bool,
}

/// A stop that is over before anybody has looked was meant to be another.
fn long_enough(text: &str) -> Result<api::Duration, String> {
    let duration: api::Duration = text.parse().map_err(|error| format!("{error}"))?;
    if duration < api::Duration::from_minutes(1) {
        return Err("that is over at once: write 1m or more".to_owned());
    }
    Ok(duration)
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

impl Freeze {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let policy_selector = (!self.policy_labels.is_empty())
            .then(|| Selector { match_labels: self.policy_labels.into_iter().collect(), ..Selector::default() });
        let place = match &policy_selector {
            None => "everywhere".to_owned(),
            Some(selector) => match super::list::<api::UpdatePolicy>(&client, "UpdatePolicies").await {
                Ok(policies) => labelled(selector, &policies, self.yes)?,
                Err(error) => {
                    output::say(&format!("which policies have these labels can't be read: {error:#}"));
                    "for the policies with these labels".to_owned()
                }
            },
        };
        let spec = FreezeSpec { policy_selector: policy_selector.clone(), ..spec(self.reason, self.duration) };
        let name = create(&client, "freeze", spec).await?;
        // It is written: whatever can't be read now, the stop holds and is to be told with its name.
        let finish = match moving(&client, connection, policy_selector.as_ref()).await {
            Ok(moving) => finishing(moving),
            Err(error) => {
                output::say(&format!("how many nodes are in progress can't be read: {error:#}"));
                "Nodes in progress finish".to_owned()
            }
        };
        said(&place, self.duration, &finish, &connection.line(&format!("bascule unfreeze {name}")))
    }
}

/// The policies that a Freeze by label is for, in words. With a label that no policy has nobody would be stopped, and told so.
fn labelled(selector: &Selector, policies: &[api::UpdatePolicy], later: bool) -> anyhow::Result<String> {
    let held: Vec<String> =
        policies.iter().filter(|policy| selector.matches(policy.labels())).map(|policy| policy.name_any()).collect();
    if held.is_empty() && !later {
        let known: BTreeSet<String> = policies
            .iter()
            .flat_map(|policy| policy.labels().iter().map(|(key, value)| format!("{key}={value}")))
            .collect();
        let known: Vec<String> = known.into_iter().take(LABELS).collect();
        let known =
            if known.is_empty() { "they have none".to_owned() } else { format!("theirs are {}", known.join(", ")) };
        anyhow::bail!(
            "no UpdatePolicy has these labels, and nothing is frozen; {known}. For policies that get them later: --yes"
        );
    }
    let names = if held.is_empty() { "none yet".to_owned() } else { held.join(", ") };
    Ok(format!("for the policies with these labels ({names})"))
}

/// How many nodes are in progress, of all policies or of those that are selected.
async fn moving(client: &Client, connection: &Connection, selector: Option<&Selector>) -> anyhow::Result<usize> {
    let seen = view::seen_by_an_asker(client, connection).await?;
    let Some(selector) = selector else { return Ok(seen.report.nodes.iter().filter(|node| in_motion(node)).count()) };
    let policies = super::list::<api::UpdatePolicy>(client, "UpdatePolicies").await?;
    let selected = policies.iter().filter(|policy| selector.matches(policy.labels()));
    let indexes = selected.filter_map(|policy| Some(seen.policy(&policy.name_any())?.0));
    Ok(indexes.map(|index| seen.report.nodes_of(index).filter(|node| in_motion(node)).count()).sum())
}

fn spec(reason: String, duration: api::Duration) -> FreezeSpec {
    FreezeSpec {
        reason,
        duration,
        policy_selector: None,
        policies: Vec::new(),
        nodes: Vec::new(),
        undo_drains: false,
        requested_by: None,
        ended_by: None,
    }
}

async fn create(client: &Client, prefix: &str, spec: FreezeSpec) -> anyhow::Result<String> {
    let spec = FreezeSpec { requested_by: whoami(client).await?, ..spec };
    let freeze = api::Freeze { metadata: generated_name(prefix), spec, status: None };
    let api: Api<api::Freeze> = Api::all(client.clone());
    let freeze = api.create(&PostParams::default(), &freeze).await;
    Ok(freeze.map_err(|error| problem::told(error, "create", "Freezes", Role::OnCall))?.name_any())
}

fn said(place: &str, duration: api::Duration, moving: &str, undo: &str) -> anyhow::Result<Exit> {
    let now = clock::now();
    let end = picture::moment_with_zone(now + duration.to_chrono(), now, &chrono::Local);
    output::print(&frozen(place, &end, moving, undo))?;
    Ok(Exit::Success)
}

fn frozen(place: &str, end: &str, moving: &str, undo: &str) -> String {
    format!("Frozen {place} until {end}. {moving}; nothing new starts. Undo: {undo}\n")
}

fn finishing(moving: usize) -> String {
    if moving == 1 {
        "1 node in progress finishes".to_owned()
    } else {
        format!("{} in progress finish", picture::count(moving, "node"))
    }
}

/// Whether a node has a grant and is on its way.
fn in_motion(node: &LiveNode) -> bool {
    matches!(
        node.state,
        RolloutState::Draining | RolloutState::Rebooting | RolloutState::Trial | RolloutState::Reverting
    )
}

/// Start nothing new for a policy, until it is resumed.
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// The policy.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::policies))]
    policy: String,
    /// Why. Everybody who waits will read it.
    #[arg(long)]
    reason: String,
    /// The longest it lasts, if nobody resumes it.
    #[arg(long = "for", value_name = "DURATION", default_value = "7d", value_parser = long_enough)]
    duration: api::Duration,
}

impl Pause {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let seen = view::seen_by_an_asker(&client, connection).await?;
        let index = policy_index(&seen, &self.policy)?;
        let moving = seen.report.nodes_of(index).filter(|node| in_motion(node)).count();
        let spec = FreezeSpec { policies: vec![self.policy.clone()], ..spec(self.reason, self.duration) };
        create(&client, "pause", spec).await?;
        let place = format!("for policy {}", self.policy);
        said(&place, self.duration, &finishing(moving), &connection.line(&format!("bascule resume {}", self.policy)))
    }
}

fn policy_index(seen: &Seen, name: &str) -> anyhow::Result<usize> {
    match seen.policy(name) {
        Some((index, _)) => Ok(index),
        None => anyhow::bail!("there is no UpdatePolicy {name}{}", problem::hint(name, seen.policy_names())),
    }
}

/// A name that is neither a policy's nor a node's is a slip of the pen.
pub(super) fn named(seen: &Seen, name: &str) -> anyhow::Result<()> {
    let names = seen.report.nodes.iter().map(|node| node.name.as_str()).chain(seen.policy_names());
    if names.clone().all(|known| known != name) {
        anyhow::bail!("there is no UpdatePolicy and no node {name}{}", problem::hint(name, names));
    }
    Ok(())
}

/// Hold a node as it is: it is not disrupted until the time is over.
#[derive(Debug, Args)]
pub(crate) struct Hold {
    /// The node.
    #[arg(add = clap_complete::ArgValueCandidates::new(crate::completion::nodes))]
    node: String,
    /// How long, e.g. 90m or 2h.
    #[arg(long = "for", value_name = "DURATION", value_parser = long_enough)]
    duration: api::Duration,
    /// Why. Everybody who waits will read it.
    #[arg(long)]
    reason: String,
}

impl Hold {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let seen = view::seen_by_an_asker(&client, connection).await?;
        let Some(node) = seen.report.nodes.iter().find(|node| node.name == self.node) else {
            let names = seen.report.nodes.iter().map(|node| node.name.as_str());
            anyhow::bail!("there is no node {}{}", self.node, problem::hint(&self.node, names));
        };
        let moves = usize::from(in_motion(node));
        let spec = FreezeSpec { nodes: vec![self.node.clone()], ..spec(self.reason, self.duration) };
        create(&client, "hold", spec).await?;
        let place = format!("for node {}", self.node);
        said(&place, self.duration, &finishing(moves), &connection.line(&format!("bascule resume {}", self.node)))
    }
}

/// Stop a policy or a node and undo running drains.
///
/// Nodes that are being drained take work again, on their old release. A node that reboots already is finished: taking its power
/// would help nobody. Nothing new starts until the time is over or somebody resumes it.
#[derive(Debug, Args)]
pub(crate) struct Abort {
    /// The policy or the node.
    #[arg(value_name = "POLICY|NODE", add = clap_complete::ArgValueCandidates::new(crate::completion::nodes_and_policies))]
    name: String,
    /// Why. Everybody who waits will read it.
    #[arg(long)]
    reason: String,
    /// How long nothing new starts.
    #[arg(long = "for", value_name = "DURATION", default_value = "4h", value_parser = long_enough)]
    duration: api::Duration,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

impl Abort {
    pub(crate) async fn run(self, connection: &Connection) -> anyhow::Result<Exit> {
        let client = connection.client().await?;
        let seen = view::seen_by_an_asker(&client, connection).await?;
        let base = FreezeSpec { undo_drains: true, ..spec(self.reason.clone(), self.duration) };
        let node = seen.report.nodes.iter().find(|node| node.name == self.name);
        let (spec, nodes, place): (_, Vec<&LiveNode>, _) = match (seen.policy(&self.name), node) {
            (Some((index, _)), _) => {
                let spec = FreezeSpec { policies: vec![self.name.clone()], ..base };
                (spec, seen.report.nodes_of(index).collect(), format!("for policy {}", self.name))
            }
            (None, Some(node)) => {
                let spec = FreezeSpec { nodes: vec![self.name.clone()], ..base };
                (spec, vec![node], format!("for node {}", self.name))
            }
            (None, None) => {
                named(&seen, &self.name)?;
                anyhow::bail!("there is no UpdatePolicy and no node {}", self.name);
            }
        };
        let does = consequences(&nodes);
        output::say(&announced(&does, &place, self.duration));
        if !output::confirmed("Continue", self.yes)? {
            output::print("Nothing was changed.\n")?;
            return Ok(Exit::Failed);
        }
        create(&client, "abort", spec).await?;
        said(&place, self.duration, &does, &connection.line(&format!("bascule resume {}", self.name)))
    }
}

fn announced(does: &str, place: &str, duration: api::Duration) -> String {
    format!("{does}, and nothing new starts {place} for {duration}.")
}

/// What an abort does to nodes in progress.
fn consequences(nodes: &[&LiveNode]) -> String {
    let draining = nodes.iter().filter(|node| node.state == RolloutState::Draining).count();
    let moving = nodes.iter().filter(|node| in_motion(node)).count() - draining;
    let undone = if draining == 1 {
        "1 drain is undone".to_owned()
    } else {
        format!("{} are undone", picture::count(draining, "drain"))
    };
    if moving == 0 {
        undone
    } else {
        let past = if moving == 1 { "past its drain" } else { "past their drain" };
        format!("{undone}, {}", finishing(moving).replace("in progress", past))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::fixture;

    #[test]
    fn an_abort_says_what_it_does_before_it_does_it() {
        let seen = fixture::seen();
        let nodes: Vec<_> = seen.report.nodes.iter().collect();
        assert_eq!(consequences(&nodes), "1 drain is undone, 1 node past its drain finishes");
        assert_eq!(consequences(&[]), "0 drains are undone");
    }

    /// What each of them says, as people read it.
    #[test]
    fn the_stop_switches_say_what_they_did_and_how_it_is_undone() {
        let seen = fixture::seen();
        let nodes: Vec<_> = seen.report.nodes.iter().collect();
        let moving = nodes.iter().filter(|node| in_motion(node)).count();
        let four_hours = api::Duration::from_minutes(240);
        let says = [
            ("freeze --for 2h", frozen("everywhere", "00:00 UTC", &finishing(moving), "bascule unfreeze freeze-x7k2")),
            ("pause workers", frozen("for policy workers", "Mon 22:00 UTC", &finishing(1), "bascule resume workers")),
            ("hold node-b4 --for 1h", frozen("for node node-b4", "23:00 UTC", &finishing(1), "bascule resume node-b4")),
            ("abort workers, asking", announced(&consequences(&nodes), "for policy workers", four_hours) + "\n"),
            (
                "abort workers",
                frozen("for policy workers", "02:00 UTC", &consequences(&nodes), "bascule resume workers"),
            ),
        ];
        let shown: String = says.iter().map(|(line, says)| format!("$ bascule {line}\n{says}")).collect();
        insta::assert_snapshot!("stop-commands", shown);
    }

    #[test]
    fn the_sandboxs_transcript_is_what_is_said_today() {
        let read = fixture::sandbox_read("freeze");
        let (end, rest) = read.split_once(" until ").unwrap().1.split_once(". ").unwrap();
        let moving = rest.split(' ').next().unwrap().parse().unwrap();
        let undo = read.split_once("Undo: ").unwrap().1;
        assert!(undo.starts_with("bascule unfreeze freeze-"), "{undo}");
        assert_eq!(read, frozen("everywhere", end, &finishing(moving), undo).trim_end());
    }

    #[test]
    fn a_label_that_no_policy_has_stops_nobody_and_is_told() {
        let policy = |name: &str, labels: serde_json::Value| -> api::UpdatePolicy {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "bascule.dev/v1alpha1", "kind": "UpdatePolicy", "metadata": {"name": name, "labels": labels},
                "spec": {"nodeSelector": {}, "source": {"repository": "https://a.example/os", "channel": "stable"}},
            }))
            .unwrap()
        };
        let policies = [
            policy("workers", serde_json::json!({"tier": "web"})),
            policy("edge", serde_json::json!({"tier": "web", "site": "edge"})),
            policy("control", serde_json::json!({})),
        ];
        let tier = |value: &str| Selector {
            match_labels: [("tier".to_owned(), value.to_owned())].into(),
            ..Selector::default()
        };
        let held = labelled(&tier("web"), &policies, false).unwrap();
        assert_eq!(held, "for the policies with these labels (workers, edge)");
        let nobody = labelled(&tier("wbe"), &policies, false).unwrap_err().to_string();
        assert!(nobody.contains("nothing is frozen; theirs are site=edge, tier=web."), "{nobody}");
        assert_eq!(labelled(&tier("wbe"), &policies, true).unwrap(), "for the policies with these labels (none yet)");
        assert!(labelled(&tier("wbe"), &policies[2..], false).unwrap_err().to_string().contains("they have none"));
        for (text, fine) in [("1m", true), ("2h", true), ("0s", false), ("59s", false), ("0m", false), ("soon", false)]
        {
            assert_eq!(long_enough(text).is_ok(), fine, "{text}");
        }
    }

    #[test]
    fn a_name_that_nobody_has_is_told_from_one_that_nothing_holds() {
        let seen = fixture::seen();
        assert!(named(&seen, "workers").is_ok() && named(&seen, "node-a1").is_ok());
        let said = named(&seen, "wrokers").unwrap_err().to_string();
        assert!(said.contains("no UpdatePolicy and no node wrokers; did you mean workers?"), "{said}");
    }
}
