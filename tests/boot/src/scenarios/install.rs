//! Bascule as an admin installs it, on two machines with containerd and a real kubelet: images from a registry, what
//! docs/install.md shows typed word for word, operators as pods on these machines, the agent once as a pod and once as a
//! service of the host. Then an update goes through both, the operators' own nodes among them. Catches whatever is tested in
//! another way than it is installed.
//!
//! `upgrade` is the same with what the previous commit had, its images included; in the middle of the update today's come.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bascule_api::{AUTOSCALER_ANNOTATIONS, NodeUpdate, WaitReason};
use bascule_facts::{Fact as _, PodFact};
use bascule_planner::snapshot::agent_pod_trouble;
use bascule_sim::layout::Slot;
use bascule_tests::control_plane::apply;
use futures::future::{select_ok, try_join_all};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;
use kube::runtime::wait::await_condition;
use serde_json::json;

use super::kubelet::{MEMORY_MIB, ready, symptoms};
use super::{BOOT, STAGE, TRIAL, committed};
use crate::container_os;
use crate::lab::{Lab, Setup};
use crate::machine::VirtualMachine;
use crate::offline;
use crate::older::Older;
use crate::release::Release;
use crate::say;
use crate::site::{AgentIs, Site, Version};
use crate::vendor::ReferenceVendor;

/// The channel of the page's first policy.
const CHANNEL: &str = "stable";
/// From the first policy to the agents' first word: an image is pulled, and a service has waited for its Role.
const ENROLLED: Duration = Duration::from_secs(600);
/// The tag of what is installed before an upgrade.
const BEFORE: &str = "0.0.9";

/// What both scenarios need.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// Images and folders.
    pub lab: &'a Lab,
    /// Where everything of the cluster is kept.
    pub folder: &'a Path,
    /// The repository.
    pub vendor: &'a ReferenceVendor,
    /// What the machines run.
    pub old: &'a Release,
    /// What they are to run.
    pub new: &'a Release,
}

/// Runs it with what this tree has.
///
/// # Errors
/// When something is not as it should be, with what both machines say.
pub async fn run(scene: Scene<'_>) -> anyhow::Result<()> {
    on_machines(scene, Version::today(), ["i1", "i2"], async |_, _| Ok(())).await
}

/// Runs it with what an earlier commit had, until the first node is disrupted.
///
/// # Errors
/// As [`run`].
pub async fn upgrade(scene: Scene<'_>, older: &Older) -> anyhow::Result<()> {
    let before = Version { tree: older.tree(), tag: BEFORE };
    on_machines(scene, before, ["u1", "u2"], async |site, names| {
        let granted = names.map(|name| {
            let disrupted = |update: &NodeUpdate| update.spec.disruption.is_some();
            Box::pin(until(site, name, "it is disrupted, and a newer version comes", STAGE, disrupted))
        });
        select_ok(granted).await?;
        site.has(Version::today()).await?;
        site.follows("apply").await?;
        site.types("kubectl -n bascule-agents rollout status daemonset/bascule-agent").await?;
        Ok(())
    })
    .await
}

async fn on_machines<'a>(
    scene: Scene<'a>,
    version: Version<'a>,
    names: [&'static str; 2],
    meanwhile: impl AsyncFnOnce(&Site, [&'static str; 2]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Scene { lab, folder, vendor, old, new } = scene;
    vendor.publish(CHANNEL, new, &[old]).await?;
    let site = Site::start(folder, vendor, version).await?;
    let mut machines = Vec::new();
    for (name, agent) in names.into_iter().zip([AgentIs::Pod, AgentIs::Service]) {
        let setup = Setup { memory_mib: MEMORY_MIB, ..Setup::default() };
        let mut machine = lab.host_of(name, old, &site.state_of(name, agent)?, site.ports(), &setup)?;
        machine.power_on()?;
        machines.push(machine);
    }
    if let Err(error) = play(&site, &machines, names, new, meanwhile(&site, names)).await {
        let cluster = site.types(SYMPTOMS).await.unwrap_or_else(|error| format!("{error:#}"));
        let machines = symptoms(&machines.iter().collect::<Vec<_>>()).await;
        return Err(error.context(format!("{machines}\n{cluster}")));
    }
    for mut machine in machines {
        machine.shut_down(BOOT).await?;
        offline::judge(machine.disk().path(), &[(Slot::A, old), (Slot::B, new)])?;
        machine.discard();
    }
    Ok(())
}

/// What somebody would look at first.
const SYMPTOMS: &str = "kubectl get nodes,nodeupdates,updatepolicies,pods -A -o wide; kubectl get events -A; \
                        kubectl describe pods -A";

async fn play(
    site: &Site,
    machines: &[VirtualMachine],
    names: [&'static str; 2],
    new: &Release,
    meanwhile: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let boots = try_join_all(machines.iter().map(|machine| ready(site.client(), machine, 0))).await?;
    site.types("kubectl get nodes -o wide").await?;
    let [first, serves] = names;
    site.types(&format!("kubectl label node {serves} bascule.dev/agent=service")).await?;

    words_of_a_program_for_another_machine(site, first).await?;

    let first_command = Instant::now();
    site.follows("apply").await?;
    site.follows("look").await?;
    for name in names {
        let paused = |update: &NodeUpdate| {
            let status = update.status.as_ref();
            let reason = status.and_then(|status| status.rollout.as_ref()).map(|rollout| rollout.reason);
            status.is_some_and(|status| status.boot_id.is_some()) && reason == Some(WaitReason::Paused)
        };
        until(site, name, "its agent has reported, and it is on hold", ENROLLED, paused).await?;
    }
    site.types("kubectl -n bascule-system get pods -o wide; kubectl -n bascule-agents get pods -o wide").await?;
    site.types("bascule status").await?;

    // What is wrong already is not to be found out after an update.
    for machine in machines {
        ensure!(logs_without_error(machine).await? > 1, "the pods on {} said nothing", machine.name());
    }

    let before: Vec<usize> = machines.iter().map(VirtualMachine::now).collect();
    site.follows("go").await?;
    let updated = async |name: &str| -> anyhow::Result<u64> {
        let for_good = |update: &NodeUpdate| update.status.as_ref().is_some_and(|status| committed(status, new));
        until(site, name, "the new release is committed", STAGE + TRIAL * 2, for_good).await?;
        let seconds = first_command.elapsed().as_secs();
        site.types("kubectl get nodeupdates; kubectl -n bascule-system get pods -o wide").await?;
        Ok(seconds)
    };
    let (seconds, ()) = futures::future::try_join(try_join_all(names.map(updated)), meanwhile).await?;
    let first = seconds.iter().min().context("no node")?;
    say(&format!("from the first command to the first updated node: {first} s; to both: {seconds:?}"));

    for ((machine, boot), from) in machines.iter().zip(&boots).zip(before) {
        let now = ready(site.client(), machine, from).await?;
        ensure!(now != *boot, "{} has not restarted", machine.name());
        is_open(site, machine.name()).await?;
    }
    site.types("kubectl -n bascule-system rollout status deployment/bascule-operator").await?;
    site.types("kubectl get nodes -o wide; kubectl get nodeupdates; kubectl get pods -A -o wide").await?;
    site.types("bascule status").await?;
    let mut lines = 0;
    for machine in machines {
        lines += logs_without_error(machine).await?;
    }
    ensure!(lines > 1, "the pods said nothing");
    is_taken_out(site).await
}

/// Takes everything out again as the page has it, and looks whether something is left in the cluster or on its Nodes. What an admin labelled
/// is the admin's.
async fn is_taken_out(site: &Site) -> anyhow::Result<()> {
    site.follows("stop").await?;
    site.types("kubectl delete -k .").await?;
    let left = site.types("kubectl get -k . --ignore-not-found -o name").await?;
    ensure!(left.trim().is_empty(), "this is left: {left}");
    site.follows("give-back").await?;
    for node in Api::<Node>::all(site.client().clone()).list(&ListParams::default()).await? {
        let mut keys: Vec<String> = node.metadata.annotations.unwrap_or_default().into_keys().collect();
        let spec = node.spec.unwrap_or_default();
        ensure!(spec.unschedulable != Some(true), "{:?} is cordoned", node.metadata.name);
        keys.extend(spec.taints.unwrap_or_default().into_iter().map(|taint| taint.key));
        let ours = |key: &String| key.contains("bascule") || AUTOSCALER_ANNOTATIONS.contains(&key.as_str());
        let ours: Vec<String> = keys.into_iter().filter(ours).collect();
        ensure!(ours.is_empty(), "{:?} still bears {ours:?}", node.metadata.name);
    }
    Ok(())
}

/// Waits until pods are taken again, and looks whether one disruption was enough.
async fn is_open(site: &Site, name: &str) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(site.client().clone());
    let open = |node: Option<&Node>| {
        node.is_some_and(|node| !node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false))
    };
    let opened = tokio::time::timeout(TRIAL, await_condition(nodes, name, open)).await;
    opened.with_context(|| format!("{name} is committed and still cordoned"))??;
    let update = Api::<NodeUpdate>::all(site.client().clone()).get(name).await?;
    let grant = update.spec.grant.map(|grant| grant.generation);
    ensure!(grant == Some(1), "{name} was to be disrupted once, and its last grant is {grant:?}");
    Ok(())
}

/// What is no program for this machine's processor ends with the same error as a program for another one (`ENOEXEC`). Checks that
/// a kubelet tells it in the words that the operator looks for, with the `terminationMessagePolicy` of the manifests.
async fn words_of_a_program_for_another_machine(site: &Site, node: &str) -> anyhow::Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "elsewhere", "namespace": "default", "labels": {"app.kubernetes.io/name": "bascule-agent"}},
        "spec": {
            "nodeName": node, "automountServiceAccountToken": false, "dnsPolicy": "Default",
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "agent", "image": container_os::SHOP, "imagePullPolicy": "Never", "command": ["/host/no-program"],
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [{"name": "host", "mountPath": "/host"}],
            }],
            "volumes": [{"name": "host", "hostPath": {"path": "/var/lib/bascule-test"}}],
        },
    });
    apply(site.client().clone(), &pod.to_string()).await.context("writing a pod")?;
    let pods: Api<Pod> = Api::namespaced(site.client().clone(), "default");
    let said = |pod: Option<&Pod>| {
        let facts = pod.map(PodFact::of);
        agent_pod_trouble(&facts, None).filter(|said| said.contains("another architecture"))
    };
    let named = |pod: Option<&Pod>| said(pod).is_some();
    let waited = tokio::time::timeout(ENROLLED, await_condition(pods.clone(), "elsewhere", named)).await;
    let last = pods.get("elsewhere").await?;
    ensure!(waited.is_ok(), "the kubelet tells it otherwise: {}", serde_json::to_string(&last.status)?);
    say(&format!("{node}: {}", said(Some(&last)).unwrap_or_default()));
    site.types("kubectl delete pod elsewhere").await?;
    Ok(())
}

/// Reads what the pods of Bascule said that are or were on a machine, from the installation on: one that is evicted takes its log along,
/// and another name of it is kept (`bascule-test-logs.service`). Returns how many lines.
async fn logs_without_error(machine: &VirtualMachine) -> anyhow::Result<usize> {
    const READ: &str = "cat /var/log/bascule-test-pods/bascule-*/*/*.log 2>/dev/null || true";
    let said = machine.run(READ, BOOT).await?;
    let bad = |line: &&str| line.contains("ERROR") || line.contains("panicked");
    let errors: Vec<&str> = said.lines().filter(bad).collect();
    ensure!(errors.is_empty(), "{}: {READ}\n{}", machine.name(), errors.join("\n"));
    say(&format!("{}: no error in {} lines of the pods' logs", machine.name(), said.lines().count()));
    Ok(said.lines().count())
}

/// Waits for a node's NodeUpdate.
async fn until(
    site: &Site,
    node: &str,
    what: &str,
    patience: Duration,
    wanted: impl Fn(&NodeUpdate) -> bool,
) -> anyhow::Result<()> {
    let began = Instant::now();
    let updates: Api<NodeUpdate> = Api::all(site.client().clone());
    let holds = |update: Option<&NodeUpdate>| update.is_some_and(&wanted);
    let waited = tokio::time::timeout(patience, await_condition(updates.clone(), node, holds)).await;
    if !matches!(waited, Ok(Ok(_))) {
        let last = serde_json::to_string(&updates.get_opt(node).await?)?;
        anyhow::bail!("{node}: {what} was not so within {} s; it says {last}", patience.as_secs());
    }
    say(&format!("{node}: {what}, after {} s", began.elapsed().as_secs()));
    Ok(())
}
