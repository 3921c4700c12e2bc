//! `bascule` as somebody on call types it: the real program, a real API server with the manifests' rights, a real operator.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests and their helpers")]

use bascule_operator::{clock::Clock, run::run, settings::Settings};
use bascule_tests::bascule;
use bascule_tests::control_plane::{ControlPlane, Credentials, Options, free_port};
use clap::Parser as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Somebody at a terminal that is none: what a script sees.
struct Person {
    kubeconfig: PathBuf,
}

/// What a command ended with.
#[derive(Debug)]
struct Said {
    code: i32,
    out: String,
    err: String,
    took: Duration,
}

impl Person {
    fn new(folder: &Path, name: &str, credentials: &Credentials) -> Self {
        let kubeconfig = folder.join(format!("{name}.kubeconfig"));
        credentials.write_to(&kubeconfig).unwrap();
        Self { kubeconfig }
    }

    async fn types(&self, line: &str) -> Said {
        let mut words = Vec::new();
        // Words in quotes are one.
        for (index, part) in line.split('"').enumerate() {
            if index % 2 == 1 {
                words.push(part.to_owned())
            } else {
                words.extend(part.split_whitespace().map(str::to_owned))
            }
        }
        let begun = Instant::now();
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_bascule"))
            .args(words)
            .env("KUBECONFIG", &self.kubeconfig)
            .env_remove("BASCULE_NAMESPACE")
            .env_remove("BASCULE_UNICODE")
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .unwrap();
        let said = Said {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            took: begun.elapsed(),
        };
        // Whatever happens: sentences, and no library's inner names.
        for bad in ["Error {", "ErrorResponse", "Some(", "panicked", "stack backtrace", "\u{1b}[", "ERROR ", "Output {"]
        {
            assert!(!said.err.contains(bad) && !said.out.contains(bad), "{line}: {said:?}");
        }
        said
    }

    /// A command that goes on; it ends when it is dropped.
    async fn starts(&self, line: &str) -> Started {
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_bascule"))
            .args(line.split_whitespace())
            .env("KUBECONFIG", &self.kubeconfig)
            .env_remove("BASCULE_NAMESPACE")
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let out = tokio::io::BufReader::new(child.stdout.take().unwrap());
        Started { _child: child, out }
    }

    async fn sees(&self, line: &str, part: &str) -> Said {
        let begun = Instant::now();
        loop {
            let said = self.types(line).await;
            if said.out.contains(part) {
                return said;
            }
            assert!(begun.elapsed() < PATIENCE, "{line} never said {part:?}: {said:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

struct Started {
    _child: tokio::process::Child,
    out: tokio::io::BufReader<tokio::process::ChildStdout>,
}

impl Started {
    async fn first_line(&mut self) -> String {
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, self.out.read_line(&mut line)).await.unwrap().unwrap();
        line.trim_end().to_owned()
    }
}

/// What a server answers, up to this text.
async fn get(host: &str, path: &str, end: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(host).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await.unwrap();
    let (mut said, mut buffer) = (String::new(), vec![0; 65_536]);
    while !said.contains(end) {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert!(read > 0, "{path}: {said}");
        said.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    said
}

async fn create<K>(client: &Client, namespace: Option<&str>, object: Value)
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let kind = kube::api::ApiResource::erase::<K>(&());
    let mut object = object;
    (object["apiVersion"], object["kind"]) = (json!(kind.api_version), json!(kind.kind));
    let dynamic: kube::api::DynamicObject = serde_json::from_value(object).unwrap();
    let api: Api<kube::api::DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    api.create(&PostParams::default(), &dynamic).await.unwrap();
}

/// The line of docs/cli.md, typed into bash, and then a part of a word and the key that completes it.
fn bash_completes() {
    const TYPED: &str = "source <(bascule completion bash)";
    assert!(include_str!("../../docs/cli.md").contains(&format!("`{TYPED}`")));
    let script = format!(
        r#"{TYPED}
        COMP_WORDS=(bascule expl) COMP_CWORD=1 COMP_TYPE=9
        "$(complete -p bascule | sed 's/.* -F \([^ ]*\) .*/\1/')" bascule expl bascule
        printf '%s\n' "${{COMPREPLY[@]}}""#
    );
    let own = Path::new(env!("CARGO_BIN_EXE_bascule")).parent().unwrap().to_owned();
    let usual = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&usual))).unwrap();
    let output =
        std::process::Command::new("bash").args(["--norc", "-euc", &script]).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let words = String::from_utf8(output.stdout).unwrap();
    assert_eq!(words.split_whitespace().collect::<Vec<_>>(), ["explain"]);
}

/// `kubectl bascule`: the program by the names that kubectl looks for, which asks it for the words to complete too.
async fn kubectl_finds_it(control_plane: &ControlPlane, folder: &Path) {
    let plugins = folder.join("plugins");
    std::fs::create_dir(&plugins).unwrap();
    for name in ["kubectl-bascule", "kubectl_complete-bascule"] {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_bascule"), plugins.join(name)).unwrap();
    }
    let usual = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(plugins).chain(std::env::split_paths(&usual))).unwrap();
    let kubectl = |arguments: &[&str]| {
        let output = control_plane.kubectl().args(arguments).env("PATH", &path).output().unwrap();
        assert!(output.status.success(), "kubectl {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = kubectl(&["bascule", "version", "--client"]);
    assert!(said.starts_with(&format!("bascule     {}", env!("CARGO_PKG_VERSION"))), "{said}");
    let words = kubectl(&["__complete", "bascule", "expl"]);
    assert!(words.starts_with("explain\t") && words.contains("\n:4\n"), "{words}");
    // Names are asked for, and not waited for when that takes long.
    let begun = Instant::now();
    loop {
        let names = kubectl(&["__complete", "bascule", "explain", "node-b"]);
        if ["node-b1", "node-b2"].iter().all(|name| names.lines().any(|line| line.split('\t').next() == Some(*name))) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "no names to complete: {names}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn bind(client: &Client) {
    use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding};
    let subjects = json!([{"kind": "User", "name": "alice", "apiGroup": "rbac.authorization.k8s.io"}]);
    let role = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    let all =
        json!({"metadata": {"name": "alice"}, "subjects": subjects, "roleRef": role("ClusterRole", "bascule-on-call")});
    create::<ClusterRoleBinding>(client, None, all).await;
    let there =
        json!({"metadata": {"name": "alice"}, "subjects": subjects, "roleRef": role("Role", "bascule-live-report")});
    create::<RoleBinding>(client, Some("bascule-system"), there).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_left_alone_with_a_cluster_that_does_not_answer() {
    bascule_tests::install_tls_provider();
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().unwrap();
    let kubeconfig = folder.path().join("nowhere");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": format!("https://127.0.0.1:{port}")}}],
        "users": [{"name": "c", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let nobody = Person { kubeconfig };
    for line in ["status", "explain n1", "history", "doctor", "forecast"] {
        let said = nobody.types(line).await;
        assert_eq!(said.code, 4, "{line}: {said:?}");
        assert!(said.err.contains("the API server does not answer"), "{line}: {said:?}");
    }

    // One that takes the connection and says nothing: what is waited for is told, and it has an end.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config;
    config["clusters"][0]["cluster"]["server"] = json!(format!("http://{}", silent.local_addr().unwrap()));
    let kubeconfig = folder.path().join("silent");
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let waiting = Person { kubeconfig };
    let said = waiting.types("--request-timeout 3s status").await;
    assert_eq!(said.code, 4, "{said:?}");
    for part in ["waiting for the API server", "the API server does not answer"] {
        assert!(said.err.contains(part), "{said:?}");
    }
    assert!(said.took < Duration::from_secs(30), "{said:?}");
    drop(silent);

    let lost = Person { kubeconfig: folder.path().join("none") };
    let said = lost.types("status").await;
    assert!(said.code == 1 && said.err.starts_with("bascule: no cluster is configured: give --kubeconfig"), "{said:?}");
    // What stands in the way on this side is not the API server's silence.
    let broken = folder.path().join("broken");
    std::fs::write(&broken, "clusters: [").unwrap();
    let said = Person { kubeconfig: broken }.types("status").await;
    assert!(said.code == 1 && said.err.contains("it is no YAML of the form that kubectl takes"), "{said:?}");
    let said = nobody.types("--context d status").await;
    assert!(said.code == 1 && said.err.contains("it has no context d; there are: c"), "{said:?}");
    config["users"][0]["user"] = json!({"exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "interactiveMode": "Never",
        "args": ["-c", "echo a-token; echo not logged in >&2; exit 3"],
    }});
    let kubeconfig = folder.path().join("stranger");
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let said = Person { kubeconfig }.types("status").await;
    assert!(said.code == 1 && said.err.contains("failed (exit status: 3): not logged in"), "{said:?}");
    assert!(!said.err.contains("a-token") && !said.err.contains("no answer"), "{said:?}");
    assert_eq!(lost.types("version --client").await.code, 0);
    assert_eq!(lost.types("completion bash").await.code, 0);
    bash_completes();
    // What is wrong with the words themselves is told before anybody is asked, with what would be right.
    for (line, part) in [
        ("freeze --for soon --reason x", "like 1h30m or 14d"),
        ("freeze --for 5s --reason x", "write 1m or more"),
        ("freeze --for 2h", "--reason <REASON>"),
        ("hold n1 --for 2h", "--reason <REASON>"),
        ("rollback workers", "--reason <REASON>"),
        ("forecast --until someday", "someday is no time: write a day"),
        ("status --nodes", "unexpected argument '--nodes'"),
    ] {
        let said = nobody.types(line).await;
        assert!(said.code == 2 && said.err.contains(part), "{line}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_questions_and_everything_that_may_be_missing() {
    bascule_tests::install_tls_provider();
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(Options::default()).await.unwrap();
    let client = control_plane.client().await.unwrap();
    let admin = Person::new(folder.path(), "admin", control_plane.admin());
    let alice = Person::new(folder.path(), "alice", &control_plane.user("alice", &[]).unwrap());

    // Nothing is installed, and a person without rights.
    let said = admin.types("status").await;
    assert!(said.code == 1 && said.err.contains("Bascule is not installed"), "{said:?}");
    let said = admin.types("doctor").await;
    assert!(said.code == 1 && said.out.contains("does not serve bascule.dev/v1alpha1"), "{said:?}");
    bascule::install(&control_plane, bascule::MANIFESTS).await.unwrap();
    bascule::install(&control_plane, &["roles/people.yaml", "admission/on-call.yaml"]).await.unwrap();
    let said = alice.types("status").await;
    assert!(
        said.code == 1 && said.err.contains("you may not list") && said.err.contains("bascule-on-call"),
        "{said:?}"
    );
    // What is missing is told by the doctor too, all of it, though it may not look at much.
    let said = alice.types("doctor").await;
    assert!(said.code == 1 && said.out.contains("you may not list updatepolicies"), "{said:?}");
    assert!(said.out.contains("you may not create freezes"), "{said:?}");
    bind(&client).await;

    // No operator ever ran.
    let said = alice.sees("status", "no operator ever ran there").await;
    assert!(said.code == 0 && said.out.contains("There is no UpdatePolicy"), "{said:?}");

    // Now one does, over three nodes whose agents do not report.
    let (vendor, server) = bascule::repository().await;
    bascule::trust(&client, &vendor).await;
    for name in ["node-b1", "node-b2", "node-c1"] {
        let node = json!({"metadata": {"name": name, "labels": {"role": "worker"}}});
        create::<k8s_openapi::api::core::v1::Node>(&client, None, node).await;
    }
    let launch = bascule::launch(&control_plane, &server, folder.path(), "operator-0", None).await;
    let arguments = ["bascule-operator", "--lease-seconds=15"].into_iter().map(str::to_owned).chain(launch.arguments);
    let settings = Settings::parse_from(arguments);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let operator = tokio::spawn(async move {
        run(settings, Clock::system(), async { drop(stopped.await) }).await.unwrap();
    });
    // Its pod is not there: the objects are read, and why is said.
    create::<bascule_api::UpdatePolicy>(
        &client,
        None,
        json!({
            "metadata": {"name": "workers"},
            "spec": {"nodeSelector": {"matchLabels": {"role": "worker"}},
                "source": {"repository": server.url(), "channel": "stable", "pollInterval": "10s"}},
        }),
    )
    .await;
    alice.sees("status", "operator-0, is no pod of namespace bascule-system").await;
    bascule::operator_pod(&client, "operator-0", &launch.listen).await;

    // What, and why. Live answers say so by saying nothing of it.
    let said = alice.sees("status", "3 AgentNotReporting").await;
    println!("status took {} ms", said.took.as_millis());
    let said = alice.sees("status -o json", "\"leader\"").await;
    let answer: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(answer["policies"][0]["nodes"].as_array().unwrap().len(), 3);
    // Until the NodeUpdates are created, that is what there is to say of a node, and no gate is asked.
    alice.sees("explain node-b2", "gates").await;
    for (line, part) in [
        ("explain node-b2", "! Agent"),
        ("explain workers", "3 nodes: AgentNotReporting"),
        ("status -o wide", "node-c1"),
        ("status -o yaml", "policies:"),
        ("history", "Nothing has happened yet"),
        ("version", "operator    0.1.0"),
        ("forecast --until 14d", "workers"),
    ] {
        let said = alice.types(line).await;
        println!("{line} took {} ms", said.took.as_millis());
        let shown = said.out.replace("!Agent", "! Agent");
        assert!(said.code == 0 && shown.contains(part) && !said.out.contains("not live"), "{line}: {said:?}");
    }
    kubectl_finds_it(&control_plane, folder.path()).await;
    let said = alice.types("explain node-b22").await;
    assert!(said.code == 1 && said.err.contains("did you mean node-b2"), "{said:?}");
    let said = alice.types("status worker").await;
    assert!(said.code == 1 && said.err.contains("did you mean workers?"), "{said:?}");
    let asked = |what: &str| {
        let requests = control_plane.requests().unwrap();
        requests.iter().filter(|one| one.user == "alice" && one.resource == what).count()
    };
    let (before, reviews) = (asked("selfsubjectaccessreviews"), asked("selfsubjectrulesreviews"));
    let said = alice.types("doctor").await;
    println!("doctor took {} ms", said.took.as_millis());
    assert!(said.out.contains("you may do what an engineer on call has to"), "{said:?}");
    // Not right by right: each question takes a connection.
    assert_eq!((asked("selfsubjectaccessreviews") - before, asked("selfsubjectrulesreviews") - reviews), (0, 2));
    assert!(said.code == 1 && said.out.contains("without a report from the present boot"), "{said:?}");
    assert!(said.out.contains("is served, with every field"), "{said:?}");
    assert!(said.out.contains("operator-0 is ready: nothing is missing of definitions"), "{said:?}");

    // The dashboard on this machine, for who knows its address.
    let mut served = alice.starts("dashboard").await;
    let address = served.first_line().await;
    let (host, path) = address.trim_start_matches("http://").split_once('/').unwrap();
    assert!(host.starts_with("127.0.0.1:") && path.len() > 30, "{address}");
    let events = get(host, &format!("/{path}events"), "}\n\n").await;
    assert!(
        events.contains("event: whole") && events.contains("node-b2") && events.contains("AgentNotReporting"),
        "{events}"
    );
    assert!(get(host, &format!("/{path}"), "</html>").await.contains("content-security-policy"));
    assert!(get(host, "/events", "\r\n\r\n").await.starts_with("HTTP/1.1 404"));
    drop(served);

    // Stop it, and let it go on.
    let freezes: Api<bascule_api::Freeze> = Api::all(client.clone());
    let said = alice.types(r#"freeze --for 2h --reason "checkout incident""#).await;
    assert!(said.code == 0 && said.out.contains("Frozen everywhere until"), "{said:?}");
    alice.sees("status", "FROZEN everywhere until").await;
    alice.sees("history", "checkout incident").await;
    // Two end it at once, and a third comes later: it was ended once, by the first, and stays on record.
    let listed = freezes.list(&kube::api::ListParams::default()).await.unwrap();
    let name = listed.items[0].metadata.name.clone().unwrap();
    assert_eq!(alice.types("unfreeze --all --yes").await.out, "1 freeze ended\n");
    let said = admin.types(&format!("unfreeze {name}")).await;
    assert!(said.code == 0 && said.out == format!("{name} was ended by alice already\n"), "{said:?}");
    assert_eq!(alice.types("unfreeze --all --yes").await.out, "0 freezes ended\n");
    alice.sees("history", "ended by alice").await;
    let begun = Instant::now();
    while alice.types("status").await.out.contains("FROZEN") {
        assert!(begun.elapsed() < PATIENCE, "the plan still has the freeze");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let ended = freezes.get(&name).await.unwrap();
    assert_eq!(ended.spec.ended_by.as_deref(), Some("alice"));
    let said = alice.sees("history -o json", "endedAt").await;
    let answer: Value = serde_json::from_str(&said.out).unwrap();
    let entry = answer["entries"].as_array().unwrap().iter().find(|entry| entry["object"]["name"] == name).unwrap();
    assert!(entry["endedAt"].is_string() && entry["by"] == "alice", "{entry}");
    for (stop, what) in [
        (r#"pause workers --reason "not now""#, "workers"),
        (r#"hold node-b1 --for 1h --reason "not this one""#, "node-b1"),
        (r#"abort workers --reason "not at all" --yes"#, "workers"),
    ] {
        let said = alice.types(stop).await;
        assert!(said.code == 0 && said.out.contains(&format!("bascule resume {what}")), "{said:?}");
        let said = alice.types(&format!("resume {what}")).await;
        assert!(said.code == 0 && said.out.contains("may go on"), "{said:?}");
    }
    let said = alice.types(r#"abort workers --reason "asks""#).await;
    assert!(said.code == 1 && said.err.contains("say --yes"), "{said:?}");
    let said = alice.types("unblock workers 1.1 --yes").await;
    assert!(said.code == 1 && said.err.contains("is not blocked"), "{said:?}");
    let said = alice.types(r#"rollback workers --reason "back" --yes"#).await;
    assert!(said.code == 1 && said.err.contains("anything to go back to"), "{said:?}");
    let said = alice.types("wait workers --timeout 1s").await;
    assert_eq!(said.code, 4, "{said:?}");

    // A policy before it is written: everything wrong with it, and what it would do.
    let file = folder.path().join("policy.yaml");
    let policy = "apiVersion: bascule.dev/v1alpha1\nkind: UpdatePolicy\nmetadata: {name: all}\nspec:\n  nodeSelector: {}\n  source: {repository: 'https://a.example/os', channel: stable}\n";
    std::fs::write(&file, policy).unwrap();
    let said = alice.types(&format!("plan -f {}", file.display())).await;
    assert!(said.code == 0 && said.out.contains("is selected by policy workers too"), "{said:?}");
    std::fs::write(&file, format!("{policy}  maintenanceWindow: []\n")).unwrap();
    let said = alice.types(&format!("plan -f {}", file.display())).await;
    assert!(said.code == 1 && said.err.contains("did you mean maintenanceWindows?"), "{said:?}");

    // Without the Role, and without an operator: the objects, and why.
    let bindings: Api<k8s_openapi::api::rbac::v1::RoleBinding> = Api::namespaced(client.clone(), "bascule-system");
    bindings.delete("alice", &DeleteParams::default()).await.unwrap();
    alice.sees("status", "bascule-live-report there").await;
    let _ = stop.send(());
    operator.await.unwrap();
    admin.sees("status", "no operator leads").await;

    // Whoever asks for something then is told that nobody does it, whatever it is that was asked.
    let failed = json!({"status": {"lastError": {"category": "Network", "message": "no route", "attempts": 1, "at": "2026-01-01T00:00:00Z"}}});
    let updates: Api<bascule_api::NodeUpdate> = Api::all(client.clone());
    updates.patch_status("node-b1", &PatchParams::default(), &Patch::Merge(&failed)).await.unwrap();
    let blocked = json!({"status": {"blocked": [{"version": "1.1", "at": "2026-01-01T00:00:00Z", "by": "FailureThreshold", "reason": "it failed"}]}});
    let policies: Api<bascule_api::UpdatePolicy> = Api::all(client.clone());
    policies.patch_status("workers", &PatchParams::default(), &Patch::Merge(&blocked)).await.unwrap();
    for (line, code) in [
        (r#"freeze --for 2h --reason "nobody leads""#, 0),
        ("unfreeze --all --yes", 0),
        (r#"pause workers --reason "nobody leads""#, 0),
        ("resume workers", 0),
        (r#"hold node-b1 --for 1h --reason "nobody leads""#, 0),
        ("resume node-b1", 0),
        (r#"abort workers --reason "nobody leads" --yes"#, 0),
        (r#"rollback workers --reason "nobody leads" --yes"#, 1),
        (r#"retry node-b1 --reason "nobody leads" --yes"#, 0),
        ("unblock workers 1.1 --yes", 0),
        ("wait workers --timeout 1s", 4),
    ] {
        let said = admin.types(line).await;
        assert!(said.code == code && said.err.contains("no operator leads"), "{line}: {said:?}");
    }

    // Another version of Bascule: its kinds are there, and not in the form that this program knows.
    let crds = ["updatepolicies", "nodeupdates", "freezes", "rollbacks"].map(|kind| format!("{kind}.bascule.dev"));
    let removed = control_plane.kubectl().args(["delete", "crd", "--wait=true"]).args(&crds).output().unwrap();
    assert!(removed.status.success(), "{removed:?}");
    for kind in ["updatepolicies", "nodeupdates", "freezes", "rollbacks"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../manifests/crds/{kind}.yaml"));
        let older = std::fs::read_to_string(file).unwrap().replace("v1alpha1", "v1alpha0");
        control_plane.apply(&older).await.unwrap();
    }
    for line in ["status", "explain node-b2", "history", "forecast"] {
        let said = admin.types(line).await;
        assert_eq!(said.code, 1, "{line}: {said:?}");
        assert!(said.err.contains("not installed there, or in another version"), "{line}: {said:?}");
    }
    let said = admin.types("doctor").await;
    assert!(said.code == 1 && said.out.contains("v1alpha1"), "{said:?}");
}
