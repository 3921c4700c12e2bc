//! The sandbox as its users meet it: what it refuses, that it leaves nothing behind, and that the story ends the same
//! when operators and agents are killed in the middle of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are not `#[test]` functions themselves")]

#[path = "sandbox/prometheus.rs"]
mod prometheus;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bascule_tests::control_plane::{ControlPlane, Options as ControlPlaneOptions};
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt};
use prometheus::{Prometheus, operators_of};
use serde_json::Value;

/// Any seed must end the same; each kills some thirty times, at moments of its own.
const SEED: &str = "7";

fn sandbox(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["sandbox", "--plain", "--folder"]).arg(folder).stdin(Stdio::null());
    command
}

fn refused(mut command: Command, sentence: &str) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains(sentence), "said instead: {said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error:")).count(), 1, "{said}");
    output
}

#[test]
fn bad_input_is_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let with = |arguments: &[&str]| {
        let mut command = sandbox(folder.path());
        command.args(arguments);
        command
    };
    let unknown = refused(with(&["--colour"]), "unexpected argument '--colour'");
    assert_eq!(unknown.status.code(), Some(2));
    refused(with(&["--nodes", "2"]), "3..=60");
    for number in ["0", "2", "4", "x", "5"] {
        refused(with(&["--control-planes", number]), "the story is told of three control planes: give 3");
    }
    refused(with(&["--control-planes", "1"]), "there is no API while it reboots");
    refused(with(&["--control-planes", "3", "--nodes", "5"]), "cannot be used with");
    refused(with(&["--control-planes", "3", "--until", "4"]), "this story has 3 acts");
    refused(with(&["--kubeconfig", "/does/not/exist"]), "cannot read the kubeconfig /does/not/exist");

    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(with(&["--port", &port]), "choose another --port");

    refused(sandbox(Path::new("/dev/null/folder")), "cannot make the folder /dev/null/folder");

    let mut bare = with(&[]);
    bare.env("PATH", folder.path()).env_remove("KUBEBUILDER_ASSETS");
    refused(bare, "install Go 1.26 or newer");
}

#[test]
fn a_control_plane_that_does_not_come_up_is_one_sentence() {
    let (folder, assets) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for program in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"] {
        std::os::unix::fs::symlink("/bin/false", assets.path().join(program)).unwrap();
    }
    let mut command = sandbox(folder.path());
    command.env("KUBEBUILDER_ASSETS", assets.path());
    refused(command, "etcd");
    assert!(!folder.path().join("run").exists());
    assert_eq!(processes_of(folder.path()), Vec::<String>::new());
}

/// A cluster of somebody else: the sandbox refuses to share names with it, and leaves it as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_exists_is_left_as_it_was() {
    let cluster = ControlPlane::start(ControlPlaneOptions::default()).await.unwrap();
    let client = cluster.client().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let play = || {
        let mut command = sandbox(folder.path());
        command.args(["--until", "1", "--nodes", "3", "--kubeconfig"]).arg(cluster.admin_kubeconfig());
        command
    };
    let namespaces = Api::<Namespace>::all(client.clone());
    let shop = Namespace {
        metadata: ObjectMeta { name: Some("shop".to_owned()), ..ObjectMeta::default() },
        ..Namespace::default()
    };
    namespaces.create(&PostParams::default(), &shop).await.unwrap();
    let command = play();
    tokio::task::spawn_blocking(|| refused(command, "has a namespace shop that is not the sandbox's")).await.unwrap();
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    await_condition(namespaces.clone(), "shop", is_gone).await.unwrap();

    let mut command = play();
    let code = tokio::task::spawn_blocking(move || {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        // By now everything is installed and machines are being switched on.
        assert!(lines.any(|line| line.contains("act 1/5")), "no act began");
        interrupt(&child);
        child.wait().unwrap().code()
    });
    assert_eq!(code.await.unwrap(), Some(130));
    nothing_is_left(&cluster).await;

    let mut command = play();
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let story = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{story}\n{}", String::from_utf8_lossy(&output.stderr));
    nothing_is_left(&cluster).await;
}

async fn nothing_is_left(cluster: &ControlPlane) {
    let client = cluster.client().await.unwrap();
    let namespaces = Api::<Namespace>::all(client.clone());
    for name in ["shop", "bascule-system", "bascule-agents"] {
        await_condition(namespaces.clone(), name, is_gone).await.unwrap();
    }
    for name in
        ["updatepolicies.bascule.dev", "nodeupdates.bascule.dev", "freezes.bascule.dev", "rollbacks.bascule.dev"]
    {
        let definitions = Api::<CustomResourceDefinition>::all(client.clone());
        await_condition(definitions, name, is_gone).await.unwrap();
    }
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.unwrap();
    assert_eq!(nodes.items.len(), 0);
    let roles = Api::<ClusterRole>::all(client).list_metadata(&ListParams::default()).await.unwrap();
    let left: Vec<String> =
        roles.items.iter().map(ResourceExt::name_any).filter(|name| name.contains("bascule")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape of a condition")]
fn is_gone<K>(object: Option<&K>) -> bool {
    object.is_none()
}

#[test]
fn a_second_sandbox_is_refused_and_ctrl_c_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = sandbox(folder.path()).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(first.stdout.take().unwrap()).lines();
    // By now processes run: the control plane, and soon more.
    let mut lines = lines.map(Result::unwrap).skip_while(|line| !line.contains("is ready"));
    assert!(lines.next().is_some(), "the sandbox never got its control plane");
    refused(sandbox(folder.path()), "another sandbox runs in");

    interrupt(&first);
    let ended = first.wait().unwrap();
    assert_eq!(ended.code(), Some(130));
    assert!(!folder.path().join("run").exists(), "the sandbox left its disks behind");
    let left = processes_of(folder.path());
    assert!(left.is_empty(), "still running: {left:?}");
}

#[tokio::test]
async fn ctrl_c_leaves_nothing_of_machines_that_carry_the_control_plane() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = sandbox(folder.path());
    // What the control planes keep is told apart from that of other tests.
    command.args(["--control-planes", "3"]).env("TMPDIR", folder.path()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("waiting for etcd and the API servers")), "no machine was switched on");
    // Nobody tells when a process appears.
    let deadline = Instant::now() + Duration::from_secs(120);
    while !processes_of(folder.path()).iter().any(|command| command.contains("kube-apiserver")) {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "no API server was started");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    nothing_runs_in(folder.path());
}

/// Nothing of control planes that machines carried, with `folder` as their temporary folder.
fn nothing_runs_in(folder: &Path) {
    assert_eq!(processes_of(folder), Vec::<String>::new());
    let left = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("control-plane")).collect();
    assert!(left.is_empty() && !folder.join("run").exists(), "left behind: {left:?}");
}

/// The machines carry the cluster that they are nodes of. Nothing moves while a member of etcd is broken, and then all of
/// them reboot.
#[test]
fn the_api_stays_while_every_machine_that_carries_it_reboots() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = sandbox(folder.path());
    command.args(["--control-planes", "3"]).env("TMPDIR", folder.path());
    let output = command.output().unwrap();
    let story = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{story}\n{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&std::fs::read(folder.path().join("report.json")).unwrap()).unwrap();
    let seen = &report["controlPlane"];
    // One at a time went, and each really went: members of etcd and API servers say so themselves.
    assert_eq!((seen["fewestMembers"].as_u64(), seen["fewestServers"].as_u64()), (Some(2), Some(2)), "{seen}");
    let all = serde_json::json!(["n1", "n2", "n3"]);
    assert_eq!((&seen["membersAway"], &seen["serversAway"]), (&all, &all), "{seen}");
    assert!(seen["reads"]["sent"].as_u64().unwrap() > 50, "{seen}");
    let reboots: Vec<u64> =
        report["reboots"].as_object().unwrap().values().map(|times| times.as_u64().unwrap()).collect();
    assert_eq!(reboots, [1, 1, 1]);
    assert_eq!(report["acts"].as_array().unwrap().len(), 3);
    nothing_runs_in(folder.path());
}

/// A sandbox that goes on after its story; it ends with the test.
struct Kept(Child);

impl Drop for Kept {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            interrupt(&self.0);
            let _ = self.0.wait();
        }
    }
}

/// Reads on until a line has this text. What else was said goes into the message where none has.
fn read_until(lines: &mut impl Iterator<Item = String>, text: &str) {
    let mut said = Vec::new();
    for line in lines {
        let found = line.contains(text);
        said.push(line);
        if found {
            return;
        }
    }
    panic!("the sandbox never said \"{text}\":\n{}", said.join("\n"));
}

/// Nothing of the rules is changed here: of the release that fails in act 3 they tell at once, and for an hour.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prometheus_scrapes_the_sandbox_and_its_bad_release_fires_an_alert() {
    bascule_tests::install_tls_provider();
    let (folder, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = sandbox(folder.path());
    command.args(["--until", "3", "--keep"]).stdout(Stdio::piped());
    let mut playing = Kept(command.spawn().unwrap());
    let mut lines = BufReader::new(playing.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    read_until(&mut lines, "act 2/5");
    // Act 2 drains each operator off its node, and its pod has another address then: Prometheus is told, as it is by a PodMonitor.
    let prometheus = Prometheus::start(kept.path(), folder.path());
    prometheus.until("an operator is scraped that leads", "sum(bascule_leader) == 1").await;
    let fires = "ALERTS{alertname=\"BasculeReleaseFails\", alertstate=\"firing\"}";
    assert_eq!(prometheus.gives(fires).await, Vec::<Value>::new(), "before any release fails");
    read_until(&mut lines, "everything is still running");

    let fired = prometheus.until("the alert fires", fires).await;
    assert_eq!(fired[0]["metric"]["severity"], "warning", "{fired:?}");
    let replicas = operators_of(folder.path()).len();
    assert!(replicas > 1, "the sandbox runs operators that take over from each other, not {replicas}");
    prometheus.until("each replica is read", &format!("count(up == 1) == {replicas}")).await;
    prometheus.until("one leads", "sum(bascule_leader) == 1").await;
    let headless = "ALERTS{alertname=\"BasculeNoLeader\", alertstate=\"firing\"}";
    assert_eq!(prometheus.gives(headless).await, Vec::<Value>::new(), "one leads");
    interrupt(&playing.0);
    // What else it prints is read, so that it does not wait for a full pipe.
    let rest: Vec<String> = lines.collect();
    assert!(playing.0.wait().unwrap().success(), "an invariant did not hold: {rest:?}");
}

fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
}

/// Command lines of processes that work in a folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let name = folder.to_string_lossy().into_owned();
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let commands = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    commands.filter(|command| command.contains(&name)).map(|command| command.replace('\0', " ")).collect()
}

#[test]
fn the_end_is_the_same_whoever_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let output = sandbox(folder.path()).args(["--until", "4", "--kill", SEED]).output().unwrap();
    let story = String::from_utf8_lossy(&output.stdout).into_owned();
    // What did not hold comes last, where the story is long: whoever reads only an end has it.
    let broken: Vec<&str> = story.lines().filter(|line| line.contains('✗')).collect();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "it ends otherwise:\n{story}\n{said}\n{}", broken.join("\n"));
    let report: Value = serde_json::from_slice(&std::fs::read(folder.path().join("report.json")).unwrap()).unwrap();
    let kills = report["kills"].as_array().unwrap();
    let of = |what: &str| kills.iter().filter(|kill| kill.as_str().unwrap().contains(what)).count();
    assert!(of("agent of") > 2 && of("bascule-operator") > 2, "killed only {kills:?}");
    let acts: Vec<u64> = report["acts"].as_array().unwrap().iter().map(|act| act["number"].as_u64().unwrap()).collect();
    assert_eq!(acts, [1, 2, 3, 4]);
}
