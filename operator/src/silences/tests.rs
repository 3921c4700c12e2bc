//! Against Debian's Alertmanager.

use super::*;
use serde_json::Value;
use std::process::{Child, Command, Stdio};

const PATIENCE: Duration = Duration::from_secs(60);

struct Running {
    child: Child,
    url: Url,
    _folder: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Running {
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("alertmanager.yml");
        std::fs::write(&config, "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n").unwrap();
        let port = {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            free.local_addr().unwrap().port()
        };
        let child = Command::new("prometheus-alertmanager")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--cluster.listen-address=")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Debian's package prometheus-alertmanager is installed by `cargo xtask test`");
        let running = Self { child, url: Url::parse(&format!("http://127.0.0.1:{port}")).unwrap(), _folder: folder };
        running.until(|_| true).await;
        running
    }

    async fn silences(&self) -> Option<Vec<Value>> {
        let answer = reqwest::get(self.url.join("/api/v2/silences").unwrap()).await.ok()?;
        serde_json::from_slice(&answer.bytes().await.ok()?).ok()
    }

    async fn until(&self, holds: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let asking = async {
            loop {
                match self.silences().await {
                    Some(all) if holds(&all) => return all,
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(all) => all,
            Err(_) => panic!("Alertmanager never had them: {:?}", self.silences().await),
        }
    }

    fn keeper(&self) -> Silences {
        let target = Target { url: self.url.clone(), token_file: None, label: "node".to_owned() };
        Silences::new(target, reqwest::Client::builder().no_proxy().build().unwrap(), Clock::system())
    }
}

fn active(all: &[Value]) -> Vec<&Value> {
    all.iter().filter(|one| one["status"]["state"] == "active").collect()
}

fn wanted(nodes: &[&str]) -> BTreeMap<String, String> {
    nodes.iter().map(|node| ((*node).to_owned(), format!("Bascule disrupts {node}"))).collect()
}

#[tokio::test]
async fn the_node_under_way_is_silenced_until_it_is_done_and_ours_never() {
    let running = Running::start().await;
    let (sender, expected) = watch::channel(wanted(&["n1"]));
    let keeper = tokio::spawn(running.keeper().run(expected));
    let all = running.until(|all| active(all).len() == 1).await;
    let silence = active(&all)[0];
    assert_eq!(silence["createdBy"], "bascule-operator");
    assert_eq!(silence["comment"], "Bascule disrupts n1");
    let matchers = silence["matchers"].to_string();
    for part in [r#""name":"node""#, r#""value":"n1""#, r#""value":"Bascule.*""#, r#""isEqual":false"#] {
        assert!(matchers.contains(part), "{part}: {matchers}");
    }
    // It is a lease: its end is near.
    let time = |field: &str| silence[field].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    let lasts = (time("endsAt") - time("startsAt")).num_seconds();
    assert!((280..=310).contains(&lasts), "{lasts} s");

    sender.send_replace(wanted(&["n2"]));
    let all = running.until(|all| active(all).len() == 1 && active(all)[0].to_string().contains("\"n2\"")).await;
    assert_eq!(all.len(), 2, "that of n1 was ended");

    // Whoever dies ends nothing: it lapses.
    drop(sender);
    keeper.await.unwrap();
    assert_eq!(active(&running.silences().await.unwrap()).len(), 1);
}

#[tokio::test]
async fn a_silence_is_renewed_and_one_that_is_gone_is_begun_anew() {
    let running = Running::start().await;
    let mut keeper = running.keeper();
    // Alertmanager keeps a silence that begins within the second it was told of: what is sent at the end of one begins in the next.
    while keeper.clock.now().timestamp_subsec_millis() > 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let nodes = wanted(&["n1"]);
    let next = keeper.follow(&nodes).await.unwrap();
    assert!(next > Instant::now() + Duration::from_secs(60), "nothing to do for a while");
    let first = active(&running.until(|all| active(all).len() == 1).await)[0].clone();

    keeper.held.get_mut("n1").unwrap().renew = Instant::now();
    keeper.follow(&nodes).await;
    let all = running.silences().await.unwrap();
    assert!(active(&all)[0]["endsAt"].as_str() >= first["endsAt"].as_str(), "{all:?}");
    assert_eq!(all.len(), 1, "and no second one: {all:?}");

    // Somebody ended it: the next renewal is refused or makes another, and the one after holds.
    keeper.alertmanager.end(&keeper.held["n1"].id).await.unwrap();
    for _ in 0..2 {
        if let Some(held) = keeper.held.get_mut("n1") {
            held.renew = Instant::now();
        }
        keeper.follow(&nodes).await;
    }
    assert_eq!(active(&running.silences().await.unwrap()).len(), 1);
}

#[tokio::test]
async fn an_alertmanager_that_is_away_is_asked_again_and_holds_nobody_up() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = Url::parse("http://127.0.0.1:9").unwrap();
    let target = Target { url, token_file: None, label: "node".to_owned() };
    let mut keeper = Silences::new(target, reqwest::Client::builder().no_proxy().build().unwrap(), Clock::system());
    let next = keeper.follow(&wanted(&["n1", "n2"])).await.unwrap();
    assert!(next <= Instant::now() + AGAIN && keeper.held.is_empty() && keeper.complained);
    assert_eq!(keeper.follow(&wanted(&[])).await, None, "nothing is left to do");
}
