//! The sandbox as its users meet it: what it refuses, that it leaves nothing behind, and that the story ends the same
//! when operators and agents are killed in the middle of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are not `#[test]` functions themselves")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// Seeds whose kills hit different moments; any other must end the same.
const SEEDS: [&str; 2] = ["7", "4711"];

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
    refused(with(&["--kubeconfig", "/does/not/exist"]), "cannot read the kubeconfig /does/not/exist");

    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    refused(with(&["--port", &port]), "choose another --port");

    refused(sandbox(Path::new("/dev/null/folder")), "cannot make the folder /dev/null/folder");
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
    for seed in SEEDS {
        let folder = tempfile::tempdir().unwrap();
        let output = sandbox(folder.path()).args(["--until", "4", "--kill", seed]).output().unwrap();
        let story = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "seed {seed} ends otherwise:\n{story}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let report: Value = serde_json::from_slice(&std::fs::read(folder.path().join("report.json")).unwrap()).unwrap();
        let kills = report["kills"].as_array().unwrap();
        let of = |what: &str| kills.iter().filter(|kill| kill.as_str().unwrap().contains(what)).count();
        assert!(of("agent of") > 0 && of("bascule-operator") > 0, "seed {seed} killed only {kills:?}");
        let acts: Vec<u64> =
            report["acts"].as_array().unwrap().iter().map(|act| act["number"].as_u64().unwrap()).collect();
        assert_eq!(acts, [1, 2, 3, 4]);
    }
}
