//! Machines of a cluster: a kubelet without containers, and an agent that stands in for the shipped one, with habits of their own.

use bascule_api::{AGENT_MANAGER, Goal, NodeUpdate, Version};
use bascule_tests::agent::{StandIn, says_more};
use bascule_tests::kubelet::{Health, Kubelet, KubeletHost, NoContainers};
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

/// How long a slow machine takes to boot: long enough for somebody to do something meanwhile.
const SLOW_BOOT: std::time::Duration = std::time::Duration::from_secs(8);

/// How long the self test of a very slow machine takes: longer than the node lifecycle controller needs to notice (20 s here),
/// and than a node has from then on.
const SELF_TEST: std::time::Duration = std::time::Duration::from_secs(100);

/// How long after its agent the kubelet of such a machine takes: long enough for a plan in between.
const LATE_KUBELET: std::time::Duration = std::time::Duration::from_secs(3);

/// What the clock of a machine shows.
const CLOCK: &str = "2026-11-21T12:00:00Z";
const AHEAD: &str = "2036-11-21T12:00:00Z";

/// Runs a node: kubelet and agent, until it is dropped.
pub async fn run(kubelet: Client, agent: Client, mut machine: KubeletHost, version: &str, habit: Habit) {
    let name = machine.node.clone();
    let first: Version = version.parse().unwrap();
    let installed = if habit == Habit::ClockAhead { AHEAD } else { "2026-01-01T00:00:00Z" };
    let mut stand_in = StandIn::installed(first.clone(), machine.boot_id.clone(), installed);
    stand_in.clock = if habit == Habit::ClockAhead { AHEAD } else { CLOCK }.to_owned();
    let start = |machine: &KubeletHost, runs: &Version| {
        let crashes = habit == Habit::PodsCrash && *runs != first;
        let health = if crashes { Health::CrashLoop } else { Health::Good };
        Kubelet::start(kubelet.clone(), machine.clone(), health, Arc::new(NoContainers))
    };
    let mut running = Some(start(&machine, stand_in.running()));
    let updates: Api<NodeUpdate> = Api::all(agent);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher(updates.clone(), config).default_backoff().applied_objects());
    while let Some(event) = events.next().await {
        let Ok(update) = event else { continue };
        let spec = &update.spec;
        if stand_in.must_reboot(spec) {
            if let Some(kubelet) = running.take() {
                kubelet.stop().await;
            }
            machine.boot_id = uuid::Uuid::new_v4().to_string();
            if habit == Habit::SlowPods {
                machine.pods_after = SLOW_BOOT;
            }
            let comes_up = habit != Habit::Fails || spec.goal != Goal::Booted;
            stand_in.reboot(spec, machine.boot_id.clone(), comes_up);
            match habit {
                Habit::SlowBoot => tokio::time::sleep(SLOW_BOOT).await,
                Habit::SlowSelfTest => tokio::time::sleep(SELF_TEST).await,
                _ => {}
            }
            if habit != Habit::SlowSelfTest {
                running = Some(start(&machine, stand_in.running()));
            }
        }
        stand_in.follow(spec);
        let status = stand_in.status(update.metadata.generation);
        let document = json!({
            "apiVersion": "bascule.dev/v1alpha1", "kind": "NodeUpdate", "metadata": {"name": name}, "status": status,
        });
        let before = serde_json::to_value(update.status.clone().unwrap_or_default()).unwrap();
        if says_more(&status, &before) {
            let params = PatchParams::apply(AGENT_MANAGER).force();
            let _ = updates.patch_status(&name, &params, &Patch::Apply(&document)).await;
        }
        if running.is_none() {
            tokio::time::sleep(LATE_KUBELET).await;
            running = Some(start(&machine, stand_in.running()));
        }
    }
}
