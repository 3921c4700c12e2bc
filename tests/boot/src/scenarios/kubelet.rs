//! Two nodes with containerd and a real kubelet: one is updated, and the pod that runs there is evicted, ends, and comes back
//! on the other. Catches what a stand-in can't: a drain that a kubelet does not follow, a boot id or a Ready that mean
//! something else than Kubernetes' own, an image that has no room for containers below its read-only root.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bascule_api::NodeUpdateStatus;
use bascule_sim::layout::Slot;
use bascule_tests::control_plane::apply;
use bascule_tests::workload;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::json;

use super::counting::counted;
use super::life::{COUNTED_ENTRY, staged};
use super::pods::{self, Pods, Running};
use super::{BOOT, STAGE, Stage, TRIAL, committed, runs};
use crate::disk::Loss;
use crate::install::StateFile;
use crate::lab::Setup;
use crate::machine::VirtualMachine;
use crate::offline;
use crate::release::Release;
use crate::say;

/// The node that is updated, and its policy.
const NODE: &str = "k1";
/// Where its pod goes meanwhile.
const ELSEWHERE: &str = "k2";
/// The channel that the policy follows.
const CHANNEL: &str = "kubelet";
/// containerd, a kubelet and a few containers, with room.
pub(super) const MEMORY_MIB: u32 = 1536;
/// From power-on to a kubelet that is Ready: programs of 85 and 45 MB are read and translated first.
const READY: Duration = Duration::from_secs(900);
/// From a pod being bound, or told to end, to the kubelet's word that it is so.
const POD: Duration = Duration::from_secs(600);
/// Fewest and most pods of the shop here.
const REPLICAS: [usize; 2] = [2, 3];

/// Runs it on two machines.
///
/// # Errors
/// When something is not as it should be, with what both machines say.
pub async fn run<'a>(
    stage: Stage<'_>,
    old: &Release,
    new: impl Future<Output = anyhow::Result<&'a Release>>,
) -> anyhow::Result<()> {
    let (mut node, mut elsewhere) = (host(stage, NODE, old)?, host(stage, ELSEWHERE, old)?);
    let new = match play(stage, &node, &elsewhere, old, new).await {
        Ok(new) => new,
        Err(error) => return Err(error.context(symptoms(&[&node, &elsewhere]).await)),
    };
    node.shut_down(BOOT).await?;
    offline::judge(node.disk().path(), &[(Slot::A, old), (Slot::B, new)])?;
    elsewhere.power_off(Loss::Everything)?;
    node.discard();
    elsewhere.discard();
    Ok(())
}

/// Everything between the first boot and the last look.
async fn play<'a>(
    stage: Stage<'_>,
    node: &VirtualMachine,
    elsewhere: &VirtualMachine,
    old: &Release,
    new: impl Future<Output = anyhow::Result<&'a Release>>,
) -> anyhow::Result<&'a Release> {
    let client = stage.cluster.client();
    let (first_boot, _) = tokio::try_join!(ready(client, node, 0), ready(client, elsewhere, 0))?;
    show(stage, "both kubelets are Ready", &["get", "nodes", "-o", "wide"]).await?;

    apply(client.clone(), &shop()).await.context("writing the shop")?;
    let mut pods = Pods::watch(client, pods::SHOP_LABELS);
    let spread = pods.until("one pod is Ready on each node", POD, |running| {
        running.len() == 2
            && running.iter().any(|pod| pod.node == NODE)
            && running.iter().any(|pod| pod.node == ELSEWHERE)
    });
    let spread = spread.await?;
    let evicted = spread.iter().find(|pod| pod.node == NODE).context("no pod on the node")?.clone();
    has_processes(node, &[&evicted]).await?;
    // From here on one pod may be missing, and never two.
    let budgets: Api<PodDisruptionBudget> = Api::namespaced(client.clone(), "default");
    let allows = |budget: Option<&PodDisruptionBudget>| {
        let status = budget.and_then(|budget| budget.status.as_ref());
        status.is_some_and(|status| status.disruptions_allowed == Some(1))
    };
    let allowed = tokio::time::timeout(POD, await_condition(budgets, pods::SHOP, allows)).await;
    allowed.context("the budget allows no eviction, although both pods are Ready")??;
    let budget = workload::Guard::start(client);
    show(stage, "the shop runs on both", &["get", "pods", "-o", "wide"]).await?;

    stage.cluster.keep_patched(NODE, &stage.vendor.url_for(NODE)?, CHANNEL).await?;
    let of_this_boot = |status: &NodeUpdateStatus| status.boot_id.as_deref() == Some(first_boot.as_str());
    stage.until(node, "the agent reports the boot id that the kubelet reports", BOOT, of_this_boot).await?;
    let new = new.await?;
    stage.vendor.publish(CHANNEL, new, &[old]).await?;
    let before = node.now();
    let began = Instant::now();
    stage.until(node, "the release is staged", STAGE, |status| staged(status, new)).await?;
    say(&format!("{NODE}: {} is staged", new.version));

    let code = pods.until_ended(&evicted, STAGE).await?;
    ensure!(code == 0, "the evicted container was not ended as it should be: its exit code is {code}");
    say(&format!("{NODE}: the container of {} has ended as it was told to", evicted.name));
    let moved = pods.until("both pods are Ready elsewhere", POD, |running| {
        running.len() == 2 && running.iter().all(|pod| pod.node == ELSEWHERE)
    });
    let moved = moved.await?;
    ensure!(moved.iter().all(|pod| pod.uid != evicted.uid), "the evicted pod itself can't have moved");
    has_processes(elsewhere, &moved.iter().collect::<Vec<_>>()).await?;
    show(stage, "the evicted pod came back elsewhere", &["get", "pods", "-o", "wide"]).await?;

    let on_trial = |status: &NodeUpdateStatus| runs(status, new) && status.trial.is_some();
    stage.until(node, "the new release runs as a trial", TRIAL, on_trial).await?;
    node.wait_until_up(before, BOOT).await?;
    let trial = node.run(&format!("cat /proc/cmdline; tr -d '\\000' < {COUNTED_ENTRY}"), BOOT).await?;
    ensure!(trial.contains(&format!("roothash={}", new.root_hash)), "another root runs:\n{trial}");
    let entry = counted(&new.entry(), "+2-1")?;
    ensure!(trial.contains(&entry), "the boot loader did not boot {entry}:\n{trial}");
    say(&format!("{NODE}: rebooted into {entry} with roothash={}", new.root_hash));
    let boot = ready(client, node, before).await?;
    ensure!(boot != first_boot, "the node is Ready under the boot id that it had before");
    show(stage, "its kubelet is back", &["get", "nodes", "-o", "wide"]).await?;

    let for_good =
        |status: &NodeUpdateStatus| committed(status, new) && status.boot_id.as_deref() == Some(boot.as_str());
    stage.until(node, "the new release is committed under that boot id", TRIAL, for_good).await?;
    let entries = node.run("ls -1 /efi/EFI/Linux", BOOT).await?;
    ensure!(entries.lines().any(|line| line.trim() == new.entry()), "no entry without a counter:\n{entries}");
    say(&format!(
        "{NODE}: {} is committed, {} s after it was published; entries:\n{}",
        new.version,
        began.elapsed().as_secs(),
        entries.trim_end()
    ));
    let nodes: Api<Node> = Api::all(client.clone());
    let open = |node: Option<&Node>| {
        node.is_some_and(|node| !node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false))
    };
    let opened = tokio::time::timeout(POD, await_condition(nodes, NODE, open)).await;
    opened.with_context(|| format!("{NODE} is committed and still cordoned"))??;

    // The new system's containerd and kubelet, over what the old one's left on the state partition.
    let more = Patch::Merge(json!({ "spec": { "replicas": REPLICAS[1] } }));
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    deployments.patch(pods::SHOP, &PatchParams::default(), &more).await.context("asking for one pod more")?;
    let grown = pods.until("a third pod is Ready, on the updated node", POD, |running| {
        running.len() == REPLICAS[1] && running.iter().filter(|pod| pod.node == NODE).count() == 1
    });
    let grown = grown.await?;
    has_processes(node, &grown.iter().filter(|pod| pod.node == NODE).collect::<Vec<_>>()).await?;
    show(stage, "the updated node runs containers", &["get", "pods", "-o", "wide"]).await?;
    show(stage, "what Bascule says", &["get", "nodeupdates"]).await?;
    ensure!(!budget.was_broken(), "the shop's disruption budget was broken");
    Ok(new)
}

/// A host with the kubelet's settings on its state partition, switched on.
fn host(stage: Stage<'_>, name: &str, release: &Release) -> anyhow::Result<VirtualMachine> {
    let mut state = stage.cluster.state_of(name)?;
    let path = "lib/bascule-test/kubelet.env".to_owned();
    state.push(StateFile { path, content: format!("NODE={name}\n"), mode: 0o644 });
    let setup = Setup { memory_mib: MEMORY_MIB, ..Setup::default() };
    let mut machine = stage.lab.host_of(name, release, &state, stage.cluster.ports(), &setup)?;
    machine.power_on()?;
    Ok(machine)
}

/// Waits until the system that started after `from` is up and its kubelet says so, under the boot id that the kernel itself
/// gives. Returns that boot id.
pub(super) async fn ready(client: &Client, machine: &VirtualMachine, from: usize) -> anyhow::Result<String> {
    let began = Instant::now();
    machine.wait_until_up(from, BOOT).await?;
    let boot = machine.run("cat /proc/sys/kernel/random/boot_id", BOOT).await?.trim().to_owned();
    let nodes: Api<Node> = Api::all(client.clone());
    let wanted = |node: Option<&Node>| {
        let status = node.and_then(|node| node.status.as_ref());
        status.is_some_and(|status| {
            let conditions = status.conditions.iter().flatten();
            status.node_info.as_ref().is_some_and(|info| info.boot_id == boot)
                && conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
        })
    };
    let waited = tokio::time::timeout(READY, await_condition(nodes, machine.name(), wanted)).await;
    waited.with_context(|| format!("{} is not Ready under its boot id {boot}", machine.name()))??;
    say(&format!("{}: Ready under boot id {boot} after {} s", machine.name(), began.elapsed().as_secs()));
    Ok(boot)
}

/// Looks into a machine whether containerd runs exactly the containers that the API says are there.
async fn has_processes(machine: &VirtualMachine, pods: &[&Running]) -> anyhow::Result<()> {
    // The third column of containerd's list is the state; each pod has a second task, its sandbox.
    const LIST: &str = "ctr --namespace k8s.io task ls";
    let listed = machine.run(LIST, BOOT).await?;
    for pod in pods {
        let mut found = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let task = found.find(|columns| columns.first() == Some(&pod.container.as_str()));
        let task = task.with_context(|| format!("containerd has no task of {}:\n{listed}", pod.name))?;
        let [_, process, "RUNNING"] = task.as_slice() else {
            anyhow::bail!("the task of {} does not run:\n{listed}", pod.name);
        };
        let command = machine.run(&format!("tr '\\000' ' ' < /proc/{process}/cmdline"), BOOT).await?;
        ensure!(command.starts_with("/container "), "process {process} of {} is {command}", pod.name);
    }
    ensure!(listed.lines().count() == 1 + 2 * pods.len(), "other containers than those of the pods run:\n{listed}");
    say(&format!("{}: {LIST}\n{}", machine.name(), listed.trim_end()));
    Ok(())
}

/// The workload: one pod on each node if there is room, and never fewer than one.
fn shop() -> String {
    let [replicas, _] = REPLICAS;
    pods::shop(replicas) + &workload::budget(pods::SHOP, "minAvailable: 1")
}

/// Tells what `kubectl` says now.
async fn show(stage: Stage<'_>, what: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let said = stage.cluster.kubectl(arguments).await?;
    say(&format!("{what}: kubectl {}\n{}", arguments.join(" "), said.trim_end()));
    Ok(())
}

/// What somebody would look at first.
pub(super) async fn symptoms(machines: &[&VirtualMachine]) -> String {
    const LOOK: &str = "ctr --namespace k8s.io task ls; journalctl --boot --no-pager --lines 60 --output short-monotonic \
                        --unit kubelet --unit containerd --unit bascule-test-images; \
                        for log in /var/log/pods/bascule-*/*/*.log; do [ ! -e \"$log\" ] || { echo \"== $log\"; tail -n 40 \"$log\"; }; done";
    let mut all = String::new();
    for machine in machines {
        let runtime = machine.run(LOOK, BOOT).await.unwrap_or_else(|error| format!("{error:#}"));
        all.push_str(&format!("{}\n{runtime}\n", machine.symptoms().await));
    }
    all
}
