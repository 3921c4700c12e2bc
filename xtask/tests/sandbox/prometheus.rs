//! Debian's Prometheus with the rules as they are shipped, beside a sandbox that runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bascule_tests::control_plane::free_port;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// How long anything may take on a busy machine. What is waited for stays as it is for longer.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// How often operators are asked, and how long they may take to answer: no longer than that, as Prometheus would have it. A release
/// fails most of a minute after the operators that tell of it were started.
const SCRAPE: &str = "5s";

/// Ends with the test.
pub(super) struct Prometheus {
    process: Child,
    port: u16,
    client: reqwest::Client,
    following: JoinHandle<()>,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.following.abort();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Prometheus {
    /// One that works in `folder` and asks the operators of the sandbox in another one, whichever run there.
    pub(super) fn start(folder: &Path, sandbox: &Path) -> Self {
        let rules: Value =
            serde_saphyr::from_str(include_str!("../../../manifests/components/alerts/rules.yaml")).unwrap();
        std::fs::write(folder.join("rules.yml"), rules.pointer("/spec").unwrap().to_string()).unwrap();
        let targets = folder.join("targets.json");
        let settings = json!({
            "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": "1s"},
            "rule_files": ["rules.yml"],
            // Debian's has no discovery by Kubernetes.
            "scrape_configs": [{
                "job_name": "bascule", "file_sd_configs": [{"files": [targets], "refresh_interval": "1s"}],
            }],
        });
        std::fs::write(folder.join("prometheus.yml"), settings.to_string()).unwrap();
        let port = free_port().unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("Debian's package prometheus, which `cargo xtask test` installs: {error}"));
        let following = tokio::spawn(follow(sandbox.to_owned(), targets));
        // It is on this machine, whatever proxy the environment names.
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { process, port, client, following }
    }

    /// The series that an expression gives now; none while it can't be asked.
    pub(super) async fn gives(&self, expression: &str) -> Vec<Value> {
        let address = format!("http://127.0.0.1:{}/api/v1/query", self.port);
        let address = reqwest::Url::parse_with_params(&address, [("query", expression)]).unwrap();
        let Ok(answer) = self.client.get(address).send().await else { return Vec::new() };
        let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap_or_default()).unwrap_or_default();
        answer.pointer("/data/result").and_then(Value::as_array).cloned().unwrap_or_default()
    }

    /// What an expression gives once it gives anything.
    pub(super) async fn until(&self, what: &str, expression: &str) -> Vec<Value> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let series = self.gives(expression).await;
            if !series.is_empty() {
                return series;
            }
            if Instant::now() > deadline {
                let seen = self.gives("{__name__=~\"up|bascule_leader|bascule_node_failures_total|ALERTS\"}").await;
                panic!("{what}: {expression} gives nothing, with {seen:#?}");
            }
            sleep(LOOK).await;
        }
    }
}

/// Tells of the operators that run, for as long as it is not ended.
async fn follow(sandbox: PathBuf, targets: PathBuf) {
    let mut told = None;
    loop {
        let run = operators_of(&sandbox);
        if told.as_ref() != Some(&run) {
            // Put there as a whole: Prometheus looks when something changes.
            let half = targets.with_extension("half");
            std::fs::write(&half, json!([{"targets": run}]).to_string()).unwrap();
            std::fs::rename(&half, &targets).unwrap();
            told = Some(run);
        }
        sleep(LOOK).await;
    }
}

/// Where the operators of the sandbox in a folder listen, as the sandbox told them.
pub(super) fn operators_of(folder: &Path) -> BTreeSet<String> {
    let own = format!("KUBECONFIG={}/", folder.canonicalize().unwrap().display());
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let environments = entries.filter_map(|entry| std::fs::read(entry.path().join("environ")).ok());
    let listens = environments.filter_map(|environment| {
        let environment = String::from_utf8_lossy(&environment).into_owned();
        let is_own = environment.split('\0').any(|setting| setting.starts_with(&own));
        let mut settings = environment.split('\0').filter(|_| is_own);
        settings.find_map(|setting| setting.strip_prefix("BASCULE_LISTEN=")).map(str::to_owned)
    });
    listens.collect()
}
