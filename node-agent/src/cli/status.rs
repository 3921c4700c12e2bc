//! `bascule-agent status`: what a person on the node wants to see first.

use std::fmt::Write as _;

use bascule_agent::agent::Agent;
use bascule_agent::core::{Event, status};
use bascule_agent::engine::Engine;
use bascule_agent::linux;
use bascule_agent::settings::{Listen, Settings};
use bascule_api::{NodeUpdateStatus, SlotName};
use tokio::runtime::Handle;

use super::manual::{AskError, ask_status};
use super::{Exit, complain, node_name, print};

/// Every setting with its origin.
pub(super) fn settings(settings: &Settings) -> Exit {
    let width = settings.origins.iter().map(|(key, ..)| key.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (key, value, origin) in &settings.origins {
        let value = if value.is_empty() { "-" } else { value };
        let _ = writeln!(text, "{key:width$}  {value:28}  {origin}");
    }
    print(&text);
    Exit::Done
}

/// The status: the running agent's, or a look of our own that changes nothing.
pub(super) async fn show(settings: &Settings, runtime: &Handle, json: bool) -> Exit {
    let asked = match &settings.listen {
        Listen::Unix(path) => ask_status(path).await,
        Listen::Off | Listen::Tcp(_) => Err(AskError::Nobody("a socket".to_owned())),
    };
    let status = match asked {
        Ok(status) => status,
        Err(AskError::Nobody(_)) => match look(settings.clone(), runtime.clone()).await {
            Ok(status) => status,
            Err(exit) => return exit,
        },
        Err(error) => {
            complain(&error);
            return Exit::Refused;
        }
    };
    if json {
        match serde_json::to_string_pretty(&status) {
            Ok(text) => print(&format!("{text}\n")),
            Err(error) => {
                complain(&error);
                return Exit::Internal;
            }
        }
    } else {
        print(&table(&status));
    }
    Exit::Done
}

async fn look(settings: Settings, runtime: Handle) -> Result<NodeUpdateStatus, Exit> {
    let looking = move || {
        let host = linux::open(&settings, &runtime).map_err(|error| {
            complain(&error);
            Exit::Host
        })?;
        let engine = Engine::new(host, settings.look_settings(), settings.stage.clone());
        let mut agent = Agent::new(engine, settings.config(&node_name(&settings)));
        // Only a look: what would follow from it is not carried out.
        let effects = agent.step(Event::Tick);
        for event in agent.perform(&effects) {
            agent.step(event);
        }
        Ok(status(agent.state(), agent.now()))
    };
    tokio::task::spawn_blocking(looking).await.unwrap_or(Err(Exit::Internal))
}

/// For people.
pub(super) fn table(status: &NodeUpdateStatus) -> String {
    let mut text = String::new();
    let none = || "-".to_owned();
    for name in [SlotName::A, SlotName::B] {
        let Some(slot) = status.slots.as_ref().map(|slots| slots.get(name)) else { continue };
        let version = slot.version.as_ref().map_or_else(none, ToString::to_string);
        let runs = status.booted.as_ref().is_some_and(|booted| booted.slot == name);
        let _ = writeln!(text, "slot {name}  {version:12}  {:?}{}", slot.state, if runs { ", runs" } else { "" });
    }
    if let Some(used) = status.state_version {
        let made_for =
            |slot: SlotName| status.slots.as_ref().and_then(|slots| slots.get(slot).state_version).unwrap_or(0);
        let _ = writeln!(
            text,
            "state   version {used}; slot A is made for {}, B for {}",
            made_for(SlotName::A),
            made_for(SlotName::B)
        );
    }
    if let Some(trial) = &status.trial {
        let until = trial.deadline.map_or_else(none, |time| time.to_string());
        let _ = writeln!(text, "trial   {} has {} tries left; reverts at {until}", trial.version, trial.tries_left);
    }
    if let Some(transfer) = &status.transfer {
        let rests = transfer.paused.as_ref().map(|why| format!(", rests: {why}")).unwrap_or_default();
        let _ = writeln!(text, "stages  {} {} %{rests}", transfer.version, transfer.percent);
    }
    if let Some(control) = &status.boot_control {
        let _ = writeln!(text, "boots   by {:?}, counting {:?}", control.backend, control.counting);
    }
    for failed in &status.failed_releases {
        let _ = writeln!(text, "failed  {} at {}: {}", failed.version, failed.at, failed.message);
    }
    for action in &status.manual_actions {
        let user = action.user.as_deref().map(|user| format!(" by {user}")).unwrap_or_default();
        let _ = writeln!(text, "by hand {} at {}{user}", action.action, action.at);
    }
    if let Some(error) = &status.last_error {
        let next = error.next_try.map(|time| format!(", next try {time}")).unwrap_or_default();
        let _ =
            writeln!(text, "problem {} ({}, {} times{next})", error.message, error.category.as_str(), error.attempts);
    }
    if text.is_empty() {
        text.push_str("nothing is known yet\n");
    }
    text
}
