//! What the docs tell people to type at `kubectl`, typed.

use crate::agent::Habit;
use crate::world::Cluster;
use serde_json::json;
use std::io::Write as _;
use std::path::Path;
use std::process::{Output, Stdio};

/// Kinds that no API server knows: files for `kubectl` itself.
const LOCAL: [&str; 2] = ["kind: Kustomization", "kind: Component"];

/// The manifests that the pages show whole, with where.
fn manifests() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut pages = vec![root.join("README.md")];
    for folder in ["docs", "docs/runbooks"] {
        pages.extend(std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    pages.sort();
    let mut found = Vec::new();
    for page in pages.iter().filter(|page| page.extension().is_some_and(|ending| ending == "md")) {
        let text = std::fs::read_to_string(page).unwrap();
        let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("\n```").next());
        let whole =
            blocks.filter(|block| block.contains("apiVersion:") && !LOCAL.iter().any(|kind| block.contains(kind)));
        found.extend(whole.map(|block| (page.display().to_string(), format!("{block}\n"))));
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_takes_each_manifest_of_the_docs_and_waits_for_a_policy() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let manifests = manifests();
    assert!(manifests.len() >= 8, "{manifests:?}");
    for (page, manifest) in manifests {
        let output = piped(&world, &["apply", "--dry-run=server", "-f", "-"], &manifest);
        assert!(output.status.success(), "{page}: {}\n{manifest}", String::from_utf8_lossy(&output.stderr));
    }

    // docs/on-call.md: kubectl wait --for=condition=UpToDate updatepolicy/workers
    world.policy("workers", json!({"health": {"nodeSoak": "1s"}})).await;
    let wait = |timeout: &str| {
        let mut kubectl = world.control_plane.kubectl();
        kubectl.args(["wait", "--for=condition=UpToDate", "updatepolicy/workers", timeout]);
        kubectl
    };
    let early = wait("--timeout=1s").output().unwrap();
    assert!(!early.status.success(), "nobody has updated anything yet");
    let mut waiting = wait("--timeout=110s").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _operator = world.operator("first").await;
    world.until_current("n1", "1.1").await;
    let ended = tokio::task::spawn_blocking(move || waiting.wait().unwrap()).await.unwrap();
    assert!(ended.success(), "{}", world.story().await);

    // What answers the first question alone: columns, and events on the policy and on the NodeUpdate. They come a moment later.
    for (arguments, parts) in [
        (&["get", "updatepolicies"][..], &["NEXT WINDOW", "1.1", "1/1"][..]),
        (&["describe", "updatepolicy", "workers"], &["RolloutStarted", "RolloutEnded"]),
        (&["describe", "nodeupdate", "n1"], &["Granted", "Updated"]),
    ] {
        let shown = async || {
            let output = world.control_plane.kubectl().args(arguments).output().unwrap();
            let shown = String::from_utf8(output.stdout).unwrap();
            parts.iter().all(|part| shown.contains(part))
        };
        world.eventually(&format!("kubectl {arguments:?} shows {parts:?}"), shown).await;
    }
}

fn piped(world: &Cluster, arguments: &[&str], input: &str) -> Output {
    let mut kubectl = world.control_plane.kubectl();
    let mut child =
        kubectl.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}
