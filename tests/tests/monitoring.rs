//! What manifests/components/alerts gives to Prometheus and Grafana: rules that Debian's promtool takes and that fire
//! when they should, a page for each alert, and no metric that the operator does not have.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

use bascule_tests::control_plane::Binaries;
use bascule_tests::files::copy_folder;
use bascule_tests::page::Page;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `cargo xtask generate` makes of the rules.
const CHART: &str = "charts/bascule/templates/components-alerts-rules.yaml";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn rules() -> Value {
    serde_saphyr::from_str(&read("manifests/components/alerts/rules.yaml")).unwrap()
}

fn alerts(rules: &Value) -> Vec<&Value> {
    let groups = rules["spec"]["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap()).collect()
}

fn promtool(folder: &Path, arguments: &[&str]) {
    let output = Command::new("promtool").args(arguments).current_dir(folder).output();
    let output = output.unwrap_or_else(|error| panic!("promtool (Debian's package prometheus): {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}:\n{said}");
}

#[test]
fn promtool_takes_the_rules_and_each_alert_fires_when_it_should() {
    let rules = rules();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("rules.yml"), serde_json::to_string(&rules["spec"]).unwrap()).unwrap();
    let cases = include_str!("monitoring/rules_test.yml");
    std::fs::write(folder.path().join("cases.yml"), cases).unwrap();
    promtool(folder.path(), &["check", "rules", "rules.yml"]);
    promtool(folder.path(), &["test", "rules", "cases.yml"]);
    for alert in alerts(&rules) {
        let name = alert["alert"].as_str().unwrap();
        let tried = cases.split("exp_samples:\n").zip(cases.split("exp_samples:\n").skip(1));
        let fires = tried.filter(|(before, _)| {
            before.rsplit("- expr:").next().is_some_and(|ask| ask.contains(&format!("\"{name}\"")))
        });
        assert!(fires.count() > 0, "no case in which {name} fires");
    }
}

#[test]
fn what_scrapes_the_operator_finds_its_pods_and_their_port() {
    let parse = |path: &str| -> Value { serde_saphyr::from_str(&read(path)).unwrap() };
    let deployment = parse("manifests/operator/deployment.yaml");
    let pods = &deployment["spec"]["template"];
    let ports = pods["spec"]["containers"].as_array().unwrap().iter();
    let ports: Vec<_> = ports.flat_map(|one| one["ports"].as_array().into_iter().flatten()).collect();
    let has = |port: &Value| {
        let port_named = ports.iter().any(|one| one["name"] == *port);
        port_named || (port.is_number() && ports.iter().any(|one| one["containerPort"] == *port))
    };
    let selects = |labels: &Value| {
        let labels = labels.as_object().unwrap();
        !labels.is_empty() && labels.iter().all(|(key, value)| pods["metadata"]["labels"][key] == *value)
    };

    let monitor = parse("manifests/components/prometheus/pod-monitor.yaml");
    assert!(selects(&monitor["spec"]["selector"]["matchLabels"]), "{monitor}");
    let endpoints = monitor["spec"]["podMetricsEndpoints"].as_array().unwrap();
    assert!(!endpoints.is_empty() && endpoints.iter().all(|one| has(&one["port"])), "{monitor}, {ports:?}");

    let service = parse("manifests/components/prometheus/service.yaml");
    assert!(selects(&service["spec"]["selector"]), "{service}");
    let targets = service["spec"]["ports"].as_array().unwrap();
    assert!(!targets.is_empty() && targets.iter().all(|one| has(&one["targetPort"])), "{service}, {ports:?}");
    for one in [&monitor, &service] {
        assert_eq!(one["metadata"]["namespace"], deployment["metadata"]["namespace"], "{one}");
    }
}

#[test]
fn each_alert_has_a_page_that_starts_with_the_command_to_type() {
    let rules = rules();
    let mut pages = BTreeSet::new();
    for alert in alerts(&rules) {
        let name = alert["alert"].as_str().unwrap();
        let page = alert["annotations"]["runbook"].as_str().unwrap();
        let text = read(page);
        assert!(text.starts_with(&format!("# {name}\n\n```\nbascule ")), "{page} does not start with a command");
        let told = alert["annotations"]["command"].as_str().unwrap();
        let typed = text.lines().nth(3).unwrap();
        assert_eq!(told.split(' ').nth(1), typed.split(' ').nth(1), "{name}: alert and page say different commands");
        assert!(["critical", "warning"].contains(&alert["labels"]["severity"].as_str().unwrap()));
        pages.insert(page.rsplit('/').next().unwrap().to_owned());
    }
    let files = std::fs::read_dir(root().join("docs/runbooks")).unwrap();
    let files: BTreeSet<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, pages, "pages without an alert, or alerts without a page");
}

/// `bascule_…` in a text, without the suffixes of histograms.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words
        .filter(|word| word.starts_with("bascule_") && !word.starts_with("bascule_agent_") && !word.contains("::"));
    ours.map(|word| {
        ["_bucket", "_sum", "_count"].iter().fold(word, |w, end| w.strip_suffix(end).unwrap_or(w)).to_owned()
    })
    .collect()
}

#[test]
fn rules_and_dashboard_know_only_metrics_that_are_documented() {
    let documented = metrics(&read("docs/operator.md"));
    for path in ["manifests/components/alerts/rules.yaml", "manifests/components/alerts/dashboard.json"] {
        let unknown: Vec<_> = metrics(&read(path)).difference(&documented).cloned().collect();
        assert_eq!(unknown, Vec::<String>::new(), "{path}");
    }
    // So do the pages for users, but for the agent's own, which are in a page of theirs, and old names in the glossary.
    let pages = ["docs", "docs/runbooks"].map(|folder| std::fs::read_dir(root().join(folder)).unwrap());
    let of_users = |path: &std::path::PathBuf| {
        path.is_file() && !["glossary.md", "invariants.md"].iter().any(|page| path.ends_with(page))
    };
    for page in pages.into_iter().flatten().map(|page| page.unwrap().path()).filter(of_users) {
        let text = std::fs::read_to_string(&page).unwrap();
        let quoted = text.split('`').skip(1).step_by(2);
        let ours = quoted.filter(|word| word.starts_with("bascule_") && !word.starts_with("bascule_agent_"));
        for name in ours.flat_map(metrics) {
            assert!(documented.contains(&name), "{}: there is no metric {name}", page.display());
        }
    }
    let dashboard: Value = serde_json::from_str(&read("manifests/components/alerts/dashboard.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    // Every query of the dashboard, with its variables filled in, as a recording rule that promtool parses.
    let queries = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries: Vec<_> = queries
        .enumerate()
        .map(|(index, target)| {
            let query = target["expr"].as_str().unwrap().replace("$policy", ".*");
            serde_json::json!({"record": format!("query:{index}"), "expr": query})
        })
        .collect();
    assert!(queries.len() > 10);
    let rules = serde_json::json!({"groups": [{"name": "dashboard", "rules": queries}]});
    std::fs::write(folder.path().join("rules.yml"), rules.to_string()).unwrap();
    promtool(folder.path(), &["check", "rules", "rules.yml"]);
}

#[test]
fn what_is_typed_for_links_to_runbooks_gives_each_alert_one() {
    let (page, folder) = (Page::read(), tempfile::tempdir().unwrap());
    let before = alerts(&rules()).len();
    for (path, line) in [
        ("manifests/components/alerts/rules.yaml", page.block("runbooks")),
        (CHART, page.block("runbooks").replace("manifests/components/alerts/rules.yaml", CHART)),
    ] {
        let copy = folder.path().join(path);
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::write(&copy, read(path)).unwrap();
        let typed = Command::new("sh").args(["-eu", "-c", &line]).current_dir(folder.path()).output().unwrap();
        assert!(typed.status.success(), "{line}: {}", String::from_utf8_lossy(&typed.stderr));
        let written = std::fs::read_to_string(&copy).unwrap();
        let links: Vec<_> = written.lines().filter_map(|at| at.trim().strip_prefix("runbook_url: ")).collect();
        assert_eq!(links.len(), before, "{path}: {links:?}");
        for link in links {
            let (address, name) = link.split_once("/docs/").unwrap();
            assert!(address.starts_with("https://") && read(&format!("docs/{name}")).starts_with("# "), "{link}");
        }
    }
}

#[test]
fn the_component_can_be_built() {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&root().join("manifests"), &folder.path().join("manifests")).unwrap();
    let overlay = "resources: [manifests]\ncomponents: [manifests/components/alerts]\n";
    std::fs::write(folder.path().join("kustomization.yaml"), overlay).unwrap();
    let kubectl = Binaries::locate(&|_| {}).unwrap().path("kubectl");
    let output = Command::new(kubectl).arg("kustomize").arg(folder.path()).output().unwrap();
    let built = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["kind: PrometheusRule", "grafana_dashboard: \"1\"", "\"uid\": \"bascule\""] {
        assert!(built.contains(part), "{part} is missing");
    }
}
