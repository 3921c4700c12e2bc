//! A node agent as the operator sees one: it reports, stages, reboots and commits as it is told, at once. (The real one
//! runs in the whole-system tests and the sandbox.)

use bascule_api::{AGENT_MANAGER, Goal, NodeUpdate, NodeUpdateSpec};
use bascule_tests::kubelet::{Health, Kubelet, Machine, NoContainers};
use futures::StreamExt as _;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use serde_json::json;
use std::pin::pin;
use std::sync::Arc;

/// What the agent does with a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// It comes up.
    Good,
    /// The trial fails: the node comes back on its old release.
    Fails,
    /// It comes up, and no container of the new release does.
    PodsCrash,
    /// It comes up, and the kubelet comes to its pods only some seconds after the node is Ready.
    SlowPods,
    /// It comes up, some seconds later.
    SlowBoot,
    /// It comes up, after a power-on self test of [`SELF_TEST`], and its agent before its kubelet.
    SlowSelfTest,
    /// It comes up, on a machine whose clock is ten years ahead.
    ClockAhead,
}

#[derive(Debug)]
struct State {
    machine: Machine,
    booted: String,
    other: Option<(String, String)>,
    /// Whether the other slot holds a release that ran here, and not one that is staged.
    way_back: bool,
    trial: Option<String>,
    committed_at: String,
    failed: Vec<serde_json::Value>,
    retried: Option<bascule_api::Time>,
    used_grant: i64,
    habit: Habit,
}

/// How long a slow machine takes to boot: long enough for somebody to do something meanwhile.
const SLOW_BOOT: std::time::Duration = std::time::Duration::from_secs(8);

/// How long the self test of a very slow machine takes: longer than the node lifecycle controller needs to notice (20 s here),
/// and than a node has from then on.
const SELF_TEST: std::time::Duration = std::time::Duration::from_secs(100);

/// How long after its agent the kubelet of such a machine takes: long enough for a plan in between.
const LATE_KUBELET: std::time::Duration = std::time::Duration::from_secs(3);

const AHEAD: &str = "2036-11-21T12:00:00Z";

/// Runs a node: kubelet and agent, until it is dropped.
pub async fn run(kubelet: Client, agent: Client, machine: Machine, version: &str, habit: Habit) {
    let name = machine.node.clone();
    let mut state = State {
        machine,
        booted: version.to_owned(),
        other: None,
        way_back: false,
        trial: None,
        committed_at: if habit == Habit::ClockAhead { AHEAD } else { "2026-01-01T00:00:00Z" }.to_owned(),
        failed: Vec::new(),
        retried: None,
        used_grant: 0,
        habit,
    };
    let start = |state: &State| {
        let crashes = habit == Habit::PodsCrash && state.booted != version;
        let health = if crashes { Health::CrashLoop } else { Health::Good };
        Kubelet::start(kubelet.clone(), state.machine.clone(), health, Arc::new(NoContainers))
    };
    let mut running = Some(start(&state));
    let updates: Api<NodeUpdate> = Api::all(agent);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(updates.clone(), config).default_backoff().applied_objects());
    while let Some(event) = events.next().await {
        let Ok(update) = event else { continue };
        let spec = &update.spec;
        if state.must_reboot(spec) {
            if let Some(kubelet) = running.take() {
                kubelet.stop().await;
            }
            state.reboot(spec);
            match state.habit {
                Habit::SlowBoot => tokio::time::sleep(SLOW_BOOT).await,
                Habit::SlowSelfTest => tokio::time::sleep(SELF_TEST).await,
                _ => {}
            }
            if state.habit != Habit::SlowSelfTest {
                running = Some(start(&state));
            }
        }
        if spec.retry.is_some() && spec.retry != state.retried {
            state.retried = spec.retry;
            state.failed.clear();
        }
        state.follow(spec);
        let status = state.status(update.metadata.generation);
        let document = json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": name}, "status": status,
        });
        // Only what changed is written; an event of our own write ends here.
        let before = serde_json::to_value(update.status.clone().unwrap_or_default()).unwrap();
        let news = status.as_object().unwrap().iter().any(|(key, value)| before.get(key) != Some(value));
        if news {
            let params = PatchParams::apply(AGENT_MANAGER).force();
            let _ = updates.patch_status(&name, &params, &Patch::Apply(&document)).await;
        }
        if running.is_none() {
            tokio::time::sleep(LATE_KUBELET).await;
            running = Some(start(&state));
        }
    }
}

impl State {
    fn must_reboot(&self, spec: &NodeUpdateSpec) -> bool {
        let Some(release) = &spec.release else { return false };
        let granted = spec
            .grant
            .as_ref()
            .is_some_and(|grant| grant.boot_id == self.machine.boot_id && grant.generation > self.used_grant);
        let version = release.version.as_str();
        match spec.goal {
            Goal::Booted => granted && self.booted != version && self.other.as_ref().is_some_and(|(v, _)| v == version),
            Goal::Reverted => self.booted == version && (self.trial.is_some() || granted),
            _ => false,
        }
    }

    fn reboot(&mut self, spec: &NodeUpdateSpec) {
        self.used_grant = spec.grant.as_ref().map_or(self.used_grant, |grant| grant.generation);
        self.machine.boot_id = uuid::Uuid::new_v4().to_string();
        if self.habit == Habit::SlowPods {
            self.machine.pods_after = SLOW_BOOT;
        }
        let release = spec.release.as_ref().unwrap();
        if spec.goal == Goal::Booted && self.habit == Habit::Fails {
            self.failed.push(json!({
                "version": release.version, "digest": release.digest, "at": "2026-11-21T12:00:00Z",
                "category": "TrialFailed", "message": "kubelet was not Ready in time",
            }));
            return;
        }
        if spec.goal == Goal::Reverted && self.trial.is_some() {
            self.failed.push(json!({
                "version": release.version, "digest": release.digest, "at": "2026-11-21T12:00:00Z",
                "category": "TrialFailed", "message": "the operator took the trial back",
            }));
        }
        let back = (self.booted.clone(), format!("sha256:{}", "0".repeat(64)));
        if let Some((version, _)) = self.other.replace(back) {
            self.booted = version;
            self.way_back = true;
        }
        self.trial = (spec.goal == Goal::Booted).then(|| self.booted.clone());
    }

    fn follow(&mut self, spec: &NodeUpdateSpec) {
        let Some(release) = &spec.release else { return };
        let version = release.version.as_str().to_owned();
        match spec.goal {
            Goal::Staged if self.booted != version => {
                self.other = Some((version, release.digest.as_str().to_owned()));
                self.way_back = false;
            }
            Goal::Committed if self.booted == version && self.trial.take().is_some() => {
                let ahead = self.habit == Habit::ClockAhead;
                self.committed_at = if ahead { AHEAD } else { "2026-11-21T12:00:00Z" }.to_owned();
            }
            _ => {}
        }
    }

    fn status(&self, generation: Option<i64>) -> serde_json::Value {
        let root_hash = "a".repeat(64);
        let mut status = json!({
            "observedGeneration": generation,
            "bootID": self.machine.boot_id,
            "agentVersion": "0.1.0",
            "architecture": "x86-64",
            "booted": {"slot": "A", "version": self.booted, "rootHash": root_hash},
            "slots": {
                "a": {"state": if self.trial.is_some() { "Trial" } else { "Good" }, "version": self.booted,
                      "rootHash": root_hash},
                "b": {"state": "Empty"},
            },
            "bootControl": {"backend": "SystemdBoot", "counting": "Works"},
            "lastGrant": self.used_grant,
        });
        if self.trial.is_none() {
            status["booted"]["committedAt"] = json!(self.committed_at);
        }
        if let Some((version, digest)) = &self.other {
            let state = if self.way_back { "Good" } else { "Staged" };
            status["slots"]["b"] = json!({"state": state, "version": version, "rootHash": "b".repeat(64)});
            if !self.way_back {
                status["staged"] = json!({"version": version, "digest": digest});
            }
        }
        if let Some(version) = &self.trial {
            status["trial"] = json!({"version": version, "triesLeft": 2});
        }
        if !self.failed.is_empty() {
            status["failedReleases"] = json!(self.failed);
        }
        if let Some(at) = &self.retried {
            status["retried"] = json!(at);
        }
        status
    }
}
