//! What the pages tell people to type is typed: each command that a page shows, as it stands, into a shell, against a real API server
//! with what docs/install.md installs and a real operator. What can't be run here stands in [`NOT_RUN`], with why.
//!
//! Each line of a block is run, and each command within a sentence that is a whole one. Words that stand for a name are filled in, and
//! what asks whether to go on is told `--yes`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests and their helpers, and how long each line took is worth reading"
)]

use bascule_operator::{clock::Clock, run::run, settings::Settings};
use bascule_tests::bascule;
use bascule_tests::control_plane::{ControlPlane, Options};
use bascule_tests::page::{self, Page};
use clap::Parser as _;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::AsyncBufReadExt as _;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// The exit code of what may work when it is typed again.
const TRY_AGAIN: i32 = 4;

/// The pages; `docs/runbooks/` comes to them. What docs/agent.md says of `bascule-agent` is typed by `bascule-agent run`.
const PAGES: [&str; 14] = [
    "README.md",
    "docs/agent.md",
    "docs/cli.md",
    "docs/cookbook.md",
    "docs/dashboard.md",
    "docs/drain.md",
    "docs/faq.md",
    "docs/migration.md",
    "docs/on-call.md",
    "docs/operator.md",
    "docs/policies.md",
    "docs/quickstart.md",
    "docs/reasons.md",
    "docs/security.md",
];

/// Pages whose blocks are typed elsewhere, each with where.
const ELSEWHERE: [(&str, &str); 4] = [
    ("docs/install.md", "`bascule-tests install` follows it"),
    ("docs/publishing.md", "`bascule release::guide` follows it"),
    ("docs/os-image.md", "`bascule release::guide` makes its disks"),
    ("docs/sandbox.md", "shows what the sandbox types, which its own tests start"),
];

/// Pages whose sentences have commands too, which are typed here as those of the others.
const SENTENCES: [&str; 7] = [
    "docs/api.md",
    "docs/comparison.md",
    "docs/glossary.md",
    "docs/install.md",
    "docs/os-image.md",
    "docs/publishing.md",
    "docs/sandbox.md",
];

/// Commands that are not run, each with why.
const NOT_RUN: [(&str, &str); 13] = [
    ("bascule release ", "the vendor's half: `bascule release::guide` follows docs/publishing.md"),
    ("kubectl bascule …", "stands for every command, where the program lies under the name of a plug-in"),
    ("bascule dashboard", "never ends; `oncall` types it"),
    ("bascule sandbox ", "what the sandbox prints"),
    ("--wait 30m", "needs machines that boot; `cargo xtask sandbox` has them"),
    (
        "rollout status deployment/bascule-operator",
        "needs machines that run pods; `cargo xtask boot --only install` has them",
    ),
    (" logs ", "needs machines that run pods"),
    ("port-forward", "needs machines that run pods"),
    ("| jq ", "needs jq, which a machine need not have; the command before it is typed elsewhere"),
    ("zoneinfo", "needs a time zone database on this machine; `bascule-operator zones` reads such a ConfigMap"),
    ("kubectl krew", "the name of a program"),
    ("bascule COMMAND", "stands for every command; `documented` asks each for its help"),
    ("kubectl delete -k", "takes out what the others need; `bascule-tests install` types it"),
];

/// What stands for a name, and what it is here.
const FILLED: [(&str, &str); 8] = [
    ("NODE", "n1"),
    ("POLICY", "workers"),
    ("VERSION", "1.1"),
    ("NAMESPACE", "default"),
    ("NAME", "announce"),
    ("FILE", "workers.yaml"),
    ("TEXT", "\"as a test\""),
    ("…", "\"as a test\""),
];

/// When something is typed: what others need goes first, what changes much last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Install,
    Policy,
    Repository,
    Go,
    Look,
    Retry,
    Rollback,
    Order,
}

#[derive(Debug, Clone)]
struct Typed {
    page: String,
    line: String,
    /// In a block of its own; else within a sentence, where it may be no more than a name.
    whole: bool,
}

impl Typed {
    fn turn(&self) -> Turn {
        let begins = |words: &str| self.line.starts_with(words);
        match () {
            () if begins("kubectl apply --server-side") => Turn::Install,
            () if begins("kubectl apply -f") => Turn::Policy,
            () if begins("kubectl wait --for=condition=RepositoryHealthy") => Turn::Repository,
            () if begins("kubectl patch") && self.line.contains("paused") => Turn::Go,
            // Before it goes back: a node that is under way has nothing to try again.
            () if begins("bascule retry") => Turn::Retry,
            () if begins("bascule rollback") => Turn::Rollback,
            () => {
                let orders = ["freeze", "unfreeze", "pause", "resume", "hold", "abort", "unblock"];
                let of_bascule = orders.iter().any(|order| begins(&format!("bascule {order}")));
                let of_kubectl = ["patch", "delete", "create", "uncordon"]
                    .iter()
                    .any(|verb| self.line.starts_with("kubectl") && self.line.split(' ').any(|word| word == *verb));
                if of_bascule || of_kubectl { Turn::Order } else { Turn::Look }
            }
        }
    }

    /// Whether it goes on until somebody stops it.
    fn watches(&self) -> bool {
        self.line.starts_with("bascule status") && self.line.split(' ').any(|word| ["-w", "--watch"].contains(&word))
    }

    /// The codes with which it may end.
    fn codes(&self) -> &'static [i32] {
        // It ends with 1 when something is wrong, and it is the doctor who says so.
        if self.line.starts_with("bascule doctor") { &[0, 1] } else { &[0] }
    }
}

/// The commands of a page, as somebody would type them.
fn commands(page: &str, text: &str) -> Vec<Typed> {
    let mut found = Vec::new();
    let mut push = |line: &str, whole: bool| {
        let line = line.strip_prefix("$ ").unwrap_or(line);
        // The README says behind each what it does.
        let line = if page == "README.md" { line.split("  ").next().unwrap_or_default() } else { line };
        let line = line.split(" # ").next().unwrap_or_default().trim();
        if ["bascule ", "kubectl ", "sed "].iter().any(|program| line.starts_with(program)) {
            found.push(Typed { page: page.to_owned(), line: line.to_owned(), whole });
        }
    };
    for (index, part) in text.split("```").enumerate() {
        if index % 2 == 1 {
            part.replace("\\\n", "").lines().skip(1).for_each(|line| push(line.trim(), true));
        } else {
            part.split('`').skip(1).step_by(2).for_each(|span| push(span.trim(), false));
        }
    }
    found
}

fn filled(line: &str) -> String {
    let fill = |word: &str| {
        let known = FILLED
            .iter()
            .find(|(name, _)| word.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('/')));
        known.map_or_else(|| word.to_owned(), |(name, value)| format!("{}{value}", word.trim_end_matches(name)))
    };
    // Behind it "…" stands for a time, and elsewhere for a reason.
    let line = line.replace("--for …", "--for 2h");
    let mut line = line.split(' ').map(fill).collect::<Vec<_>>().join(" ");
    let asks =
        ["rollback", "unblock", "retry", "abort"].iter().any(|word| line.starts_with(&format!("bascule {word}")));
    if asks && !line.contains("--yes") {
        line.push_str(" --yes");
    }
    line
}

/// Two lines that differ by a reason alone are one.
fn without_reason(line: &str) -> String {
    match line.split_once("--reason \"") {
        Some((before, rest)) => format!("{before}{}", rest.split_once('"').map_or("", |(_, after)| after)),
        None => line.to_owned(),
    }
}

fn all_commands() -> Vec<Typed> {
    let mut pages: Vec<String> = PAGES.iter().map(|page| (*page).to_owned()).collect();
    for entry in std::fs::read_dir(page::tree().join("docs/runbooks")).unwrap() {
        pages.push(format!("docs/runbooks/{}", entry.unwrap().file_name().into_string().unwrap()));
    }
    pages.sort();
    let read = |page: &String| commands(page, &std::fs::read_to_string(page::tree().join(page)).unwrap());
    let mut all: Vec<Typed> = pages.iter().flat_map(read).collect();
    let sentences = SENTENCES.map(str::to_owned);
    all.extend(sentences.iter().flat_map(read).filter(|typed| !typed.whole));
    // In a sentence a list of options is how a command is written, and nothing to type.
    all.retain(|typed| typed.whole || !typed.line.contains('['));
    // What a block shows is to be typed as it stands: of two that are the same it counts.
    all.sort_by_key(|typed| !typed.whole);
    all
}

struct Desk {
    control_plane: ControlPlane,
    folder: tempfile::TempDir,
}

impl Desk {
    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// What a shell ends with, and what it printed.
    async fn types(&self, line: &str) -> (i32, String) {
        let programs = PathBuf::from(env!("CARGO_BIN_EXE_bascule")).parent().unwrap().to_owned();
        let shell = page::shell(&self.control_plane, line, self.path(), &[programs]);
        let mut shell = tokio::process::Command::from(shell);
        shell.stdin(std::process::Stdio::null()).env_remove("BASCULE_NAMESPACE").kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, shell.output()).await;
        let output = output.unwrap_or_else(|_| panic!("{line}: it does not end")).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), format!("{}{}", text(&output.stdout), text(&output.stderr)))
    }

    /// Starts a command that goes on, reads what it shows until it has shown a policy twice, and stops it: 0 where it did, and what it
    /// showed.
    async fn watches(&self, line: &str) -> (i32, String) {
        let programs = PathBuf::from(env!("CARGO_BIN_EXE_bascule")).parent().unwrap().to_owned();
        // The shell becomes the program, so that it ends with it.
        let shell = page::shell(&self.control_plane, &format!("exec {line}"), self.path(), &[programs]);
        let mut shell = tokio::process::Command::from(shell);
        shell.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).env_remove("BASCULE_NAMESPACE");
        let mut child = shell.kill_on_drop(true).spawn().unwrap();
        let mut shown = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = String::new();
        let frames = async {
            let mut frames = 0;
            while frames < 2 {
                let Some(line) = shown.next_line().await.unwrap() else { return false };
                // A policy's line is the only one that begins with its name.
                frames += usize::from(line.starts_with("workers "));
                said.push_str(&line);
                said.push('\n');
            }
            true
        };
        let seen = tokio::time::timeout(PATIENCE, frames).await.unwrap_or(false);
        let code = if seen { 0 } else { child.try_wait().unwrap().and_then(|status| status.code()).unwrap_or(-1) };
        let _ = child.kill().await;
        (code, said)
    }

    async fn must(&self, line: &str) {
        let (code, said) = self.types(line).await;
        assert_eq!(code, 0, "{line}: {said}");
    }

    /// Until a command says so.
    async fn sees(&self, line: &str, part: &str) {
        let begun = Instant::now();
        loop {
            let (_, said) = self.types(line).await;
            if said.contains(part) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{line} never said {part:?}: {said}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Nodes as a kubelet would have made them.
fn machine(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            "nodeInfo": {"architecture": "amd64", "bootID": format!("boot-{name}"), "containerRuntimeVersion": "x",
                "kernelVersion": "x", "kubeProxyVersion": "", "kubeletVersion": "v1.36.0", "machineID": name,
                "operatingSystem": "linux", "osImage": "x", "systemUUID": name},
        },
    })
}

const NODES: [&str; 3] = ["n1", "n2", "node-b2"];

/// What agents report that have updated their nodes, and one that has a complaint.
async fn report(client: &Client) {
    let updates: Api<bascule_api::NodeUpdate> = Api::all(client.clone());
    for name in NODES {
        let mut status = json!({
            "bootID": format!("boot-{name}"),
            "agentVersion": env!("CARGO_PKG_VERSION"),
            "bootControl": {"backend": "SystemdBoot", "counting": "Works"},
            "booted": {"slot": "B", "version": "1.1", "rootHash": "b".repeat(64), "committedAt": "2026-01-02T00:00:00Z"},
            "slots": {"a": {"state": "Good", "version": "1.0"}, "b": {"state": "Good", "version": "1.1"}},
        });
        if name == "n1" {
            status["lastError"] =
                json!({"category": "Network", "message": "no route", "attempts": 1, "at": "2026-01-02T00:00:00Z"});
        }
        let patch = Patch::Merge(json!({"status": status}));
        updates.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
    }
}

#[test]
fn no_page_is_forgotten() {
    let folder = page::tree().join("docs");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let pages = names.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    let mut with_commands = 0;
    for page in pages.chain(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(str::to_owned)) {
        let text = std::fs::read_to_string(page::tree().join(&page)).unwrap();
        if commands(&page, &text).iter().any(|typed| typed.whole) {
            with_commands += 1;
            let known = PAGES.contains(&page.as_str()) || ELSEWHERE.iter().any(|(name, _)| *name == page);
            assert!(known, "{page} has commands to type, and no test types them");
        }
    }
    assert!(with_commands > 10, "{with_commands}");
}

#[test]
fn what_stands_for_a_name_is_filled_in() {
    for (shown, typed) in [
        ("bascule explain NODE", "bascule explain n1"),
        ("bascule rollback POLICY --reason …", "bascule rollback workers --reason \"as a test\" --yes"),
        ("kubectl -n NAMESPACE delete job NAME", "kubectl -n default delete job announce"),
        ("kubectl -n NAMESPACE logs job/NAME", "kubectl -n default logs job/announce"),
        ("kubectl get nodeupdates", "kubectl get nodeupdates"),
        ("bascule hold NODE --for …", "bascule hold n1 --for 2h"),
    ] {
        assert_eq!(filled(shown), typed);
    }
    let page = "`bascule status` and `a`\n```sh\n$ bascule explain n1\nn1 waits\nkubectl get \\\n  nodes\n```\n";
    let lines: Vec<_> = commands("x", page).into_iter().map(|typed| (typed.line, typed.whole)).collect();
    let wanted = [("bascule status", false), ("bascule explain n1", true), ("kubectl get   nodes", true)];
    assert_eq!(lines, wanted.map(|(line, whole)| (line.to_owned(), whole)));
    for (said, lacks) in [
        ("error: the following required arguments were not provided:\n  --reason <REASON>\n", true),
        ("Usage: bascule release [OPTIONS] <COMMAND>\n\nCommands:\n  keygen\n", true),
        ("error: unexpected argument '--nope' found\n\nUsage: bascule explain <NODE|POLICY>\n", false),
        ("error: unrecognized subcommand 'x'\n\nUsage: bascule [OPTIONS] <COMMAND>\n", false),
        ("error: invalid value 'x' for '--for <DURATION>'\n", false),
    ] {
        assert_eq!(lacks_words(said), lacks, "{said}");
    }
    assert_eq!(without_reason("bascule hold n1 --reason \"x y\" --for 2h"), "bascule hold n1  --for 2h");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_that_a_page_shows_is_typed() {
    bascule_tests::install_tls_provider();
    let mut unused: BTreeSet<&str> = NOT_RUN.iter().map(|(part, _)| *part).collect();
    let mut turns: BTreeMap<Turn, Vec<Typed>> = BTreeMap::new();
    let mut known = BTreeSet::new();
    for typed in all_commands() {
        if let Some((part, _)) = NOT_RUN.iter().find(|(part, _)| typed.line.contains(part)) {
            unused.remove(part);
            continue;
        }
        let typed = Typed { line: filled(&typed.line), ..typed };
        if known.insert(without_reason(&typed.line)) {
            turns.entry(typed.turn()).or_default().push(typed);
        }
    }
    assert!(unused.is_empty(), "no page shows what is said not to be run: {unused:?}");
    let typed = |turn: Turn| turns.get(&turn).map_or(&[][..], Vec::as_slice);
    let whole = turns.values().flatten().filter(|typed| typed.whole).count();
    assert!(whole > 20 && turns.values().flatten().count() > 40, "{whole}: {turns:#?}");

    // A folder as docs/install.md describes it, with a repository that is there.
    let (vendor, server) = bascule::repository().await;
    let folder = tempfile::tempdir().unwrap();
    let page = Page::read().with(&[("https://images.example.com/acme-os", &server.url())]);
    let root = String::from_utf8(vendor.trust_root()).unwrap();
    page.lay_out(folder.path(), &page::tree().join("manifests"), &root);
    std::fs::copy(folder.path().join("workers.yaml"), folder.path().join("policy.yaml")).unwrap();
    std::fs::write(folder.path().join("token"), "t").unwrap();
    let grace = Duration::from_secs(3_600);
    let options = Options { node_monitor_grace: grace, audit: false, ..Options::default() };
    let desk = Desk { control_plane: ControlPlane::start(options).await.unwrap(), folder };
    let client = desk.control_plane.client().await.unwrap();
    let mut failed = Vec::new();
    for turn in
        [Turn::Install, Turn::Policy, Turn::Repository, Turn::Go, Turn::Look, Turn::Retry, Turn::Rollback, Turn::Order]
    {
        assert!(!typed(turn).is_empty(), "{turn:?}: {turns:#?}");
    }

    run_all(&desk, typed(Turn::Install), &mut failed).await;
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    for name in NODES {
        desk.control_plane.apply(&machine(name).to_string()).await.unwrap();
        let status = Patch::Merge(json!({"status": machine(name)["status"]}));
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(client.clone());
        nodes.patch_status(name, &PatchParams::default(), &status).await.unwrap();
    }
    let launch = bascule::launch(&desk.control_plane, &server, desk.path(), "operator-0", None).await;
    let arguments = ["bascule-operator", "--lease-seconds=15"].into_iter().map(str::to_owned).chain(launch.arguments);
    let settings = Settings::parse_from(arguments);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let operator = tokio::spawn(async move {
        run(settings, Clock::system(), async { drop(stopped.await) }).await.unwrap();
    });
    bascule::operator_pod(&client, "operator-0", &launch.listen).await;

    run_all(&desk, typed(Turn::Policy), &mut failed).await;
    run_all(&desk, typed(Turn::Repository), &mut failed).await;
    run_all(&desk, typed(Turn::Go), &mut failed).await;
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    for name in NODES {
        desk.sees(&format!("kubectl get nodeupdate {name} -o name --ignore-not-found"), name).await;
    }
    report(&client).await;
    // What pages speak of, and of which there is none yet.
    desk.must("kubectl label updatepolicy workers closing=yes").await;
    let control = std::fs::read_to_string(desk.path().join("workers.yaml")).unwrap();
    let control = control.replace("name: workers", "name: control-plane").replace("DoesNotExist", "Exists");
    desk.control_plane.apply(&control).await.unwrap();
    desk.must("kubectl create job announce --image=registry.example.com/none --dry-run=client -o json > job.json")
        .await;
    desk.must("kubectl apply -f job.json").await;
    desk.sees("kubectl get updatepolicy workers -o jsonpath={.status.columns.updated}", "3/3").await;

    run_all(&desk, typed(Turn::Look), &mut failed).await;
    run_all(&desk, typed(Turn::Retry), &mut failed).await;
    run_all(&desk, typed(Turn::Rollback), &mut failed).await;
    desk.sees("kubectl get updatepolicy workers -o jsonpath={.status.blocked}", "1.1").await;
    run_all(&desk, typed(Turn::Order), &mut failed).await;
    let _ = stop.send(());
    operator.await.unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

async fn run_all(desk: &Desk, all: &[Typed], failed: &mut Vec<String>) {
    for typed in all {
        let begun = Instant::now();
        let (mut code, mut said) =
            if typed.watches() { desk.watches(&typed.line).await } else { desk.types(&typed.line).await };
        // As the pages say of this code: somebody changed the object in between, and the operator often does.
        while code == TRY_AGAIN && begun.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(200)).await;
            (code, said) = desk.types(&typed.line).await;
        }
        println!("{} took {} ms and ended with {code}", typed.line, begun.elapsed().as_millis());
        let name = !typed.whole
            && ((code == 2 && lacks_words(&said)) || (typed.line.starts_with("kubectl") && is_a_name(&typed.line)));
        if !name && !typed.codes().contains(&code) {
            failed.push(format!("{}: {} ended with {code}: {said}", typed.page, typed.line));
        }
    }
}

/// `bascule freeze`, `bascule release`: a name in a sentence, of which bascule says that words are missing, or which words there are. A
/// wrong option or value ends with the same code.
fn lacks_words(said: &str) -> bool {
    said.contains("required arguments were not provided") || (said.contains("<COMMAND>") && !said.contains("error:"))
}

/// `kubectl drain`: a program and a command of its, and nothing that it is to be done to.
fn is_a_name(line: &str) -> bool {
    line.split_whitespace().count() <= 2 || line == "kubectl delete freeze" || line == "kubectl delete node"
}
