//! Object gates against an API server that counts what it is asked, and that falls silent or refuses when a test says so.

use super::{
    GateAnswer,
    held::{Asks, MOST_OBJECTS, Pace},
    object::ObjectAsker,
};
use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use bascule_api::ObjectGate;
use futures::{StreamExt as _, stream};
use kube::{Client, Config};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::watch;

/// Far longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the API server has, does and has done.
#[derive(Debug)]
struct Cluster {
    version: u64,
    pods: BTreeMap<String, Value>,
    /// How many of them it lists at once.
    page: usize,
    /// The one that fails before the next page that is not the first.
    fails_between: Option<&'static str>,
    /// The plural by which it calls them; `None`: it does not know of any.
    plural: Option<&'static str>,
    /// It does not say what kinds it knows.
    mute: bool,
    /// What watches tell, each with the version that they come to by it.
    told: Vec<(u64, Value)>,
    /// Watches tell nothing, though they stay open.
    silent: bool,
    /// Nobody may read pods any more.
    refused: bool,
    may_watch: bool,
    /// What lists and probes say instead of their version.
    claims: Option<&'static str>,
    /// How long a watch is kept open.
    lasts: Duration,
    lists: usize,
    probes: usize,
    watches: usize,
    open: usize,
}

#[derive(Clone)]
struct Server {
    cluster: Arc<Mutex<Cluster>>,
    news: watch::Sender<usize>,
}

/// A watch that is open.
struct Open(Server);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.cluster().open -= 1;
    }
}

impl Server {
    fn new(lasts: Duration) -> Self {
        let cluster = Cluster {
            version: 1,
            pods: BTreeMap::new(),
            page: 250,
            fails_between: None,
            plural: Some("pods"),
            mute: false,
            told: Vec::new(),
            silent: false,
            refused: false,
            may_watch: true,
            claims: None,
            lasts,
            lists: 0,
            probes: 0,
            watches: 0,
            open: 0,
        };
        let server = Self { cluster: Arc::new(Mutex::new(cluster)), news: watch::Sender::new(0) };
        server.put("a", "Running");
        server.put("b", "Running");
        server
    }

    fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    fn tell(&self, event: impl FnOnce(&mut Cluster, &str) -> Value) {
        let mut cluster = self.cluster();
        cluster.version += 1;
        let version = cluster.version;
        let event = event(&mut cluster, &version.to_string());
        cluster.told.push((version, event));
        drop(cluster);
        self.news.send_modify(|count| *count += 1);
    }

    fn put(&self, name: &str, phase: &str) {
        self.tell(|cluster, version| {
            let metadata = json!({"name": name, "namespace": "shop", "resourceVersion": version});
            let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": {"phase": phase}});
            cluster.pods.insert(name.to_owned(), pod.clone());
            json!({"type": "MODIFIED", "object": pod})
        });
    }

    fn delete(&self, name: &str) {
        self.tell(|cluster, version| {
            let mut pod = cluster.pods.remove(name).unwrap();
            pod["metadata"]["resourceVersion"] = json!(version);
            json!({"type": "DELETED", "object": pod})
        });
    }

    /// All watches are too old.
    fn expire(&self) {
        self.tell(|_, _| {
            json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
                "reason": "Expired", "message": "too old resource version"}})
        });
    }

    async fn client(&self) -> Client {
        bascule_tests::install_tls_provider();
        let kinds = async |State(server): State<Self>| server.kinds();
        let review = async |State(server): State<Self>, Json(mut review): Json<Value>| {
            let verb = review["spec"]["resourceAttributes"]["verb"].clone();
            review["status"] = json!({"allowed": verb != "watch" || server.cluster().may_watch});
            (StatusCode::CREATED, Json(review))
        };
        let pods = async |State(server): State<Self>,
                          Path(plural): Path<String>,
                          Query(query): Query<HashMap<String, String>>| {
            let is_known = server.cluster().plural == Some(plural.as_str());
            if is_known { server.pods(&query) } else { StatusCode::NOT_FOUND.into_response() }
        };
        let router = Router::new()
            .route("/api/v1", get(kinds))
            .route("/api/v1/{plural}", get(pods))
            .route("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", post(review))
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    fn kinds(&self) -> Response {
        let cluster = self.cluster();
        if cluster.mute {
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
        let pods = cluster.plural.map(|plural| {
            json!({"name": plural, "singularName": "pod", "namespaced": true, "kind": "Pod",
                "verbs": ["get", "list", "watch"]})
        });
        let resources: Vec<Value> = pods.into_iter().collect();
        Json(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": resources}))
            .into_response()
    }

    fn pods(&self, query: &HashMap<String, String>) -> Response {
        if self.cluster().refused {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                "reason": "Forbidden", "message": "pods is forbidden"});
            return (StatusCode::FORBIDDEN, Json(status)).into_response();
        }
        if query.contains_key("watch") {
            return self.watch(query["resourceVersion"].parse().unwrap());
        }
        let list = |kind: &str, api: &str, version: u64, items: Vec<Value>, next: String| {
            let version = self.cluster().claims.map_or_else(|| version.to_string(), str::to_owned);
            let metadata = json!({"resourceVersion": version, "continue": next});
            Json(json!({"kind": kind, "apiVersion": api, "metadata": metadata, "items": items})).into_response()
        };
        if query.get("limit").is_some_and(|limit| limit == "1") {
            // Others write too, and a watch comes to that by a bookmark.
            let bookmark = |version: &str| {
                let metadata = json!({"resourceVersion": version, "creationTimestamp": null});
                json!({"type": "BOOKMARK", "object": {"kind": "Pod", "apiVersion": "v1", "metadata": metadata}})
            };
            self.tell(|cluster, version| {
                cluster.probes += 1;
                bookmark(version)
            });
            let version = self.cluster().version;
            return list("PartialObjectMetadataList", "meta.k8s.io/v1", version, Vec::new(), String::new());
        }
        let from = query.get("continue").map_or(0, |token| token.parse::<usize>().unwrap());
        let fails = if from > 0 { self.cluster().fails_between.take() } else { None };
        if let Some(name) = fails {
            self.put(name, "Failed");
        }
        let mut cluster = self.cluster();
        cluster.lists += usize::from(from == 0);
        let limit = query.get("limit").map_or(usize::MAX, |limit| limit.parse().unwrap());
        let page: Vec<Value> = cluster.pods.values().skip(from).take(cluster.page.min(limit)).cloned().collect();
        let to = from + page.len();
        let next = if to < cluster.pods.len() { to.to_string() } else { String::new() };
        let version = cluster.version;
        drop(cluster);
        list("PodList", "v1", version, page, next)
    }

    fn watch(&self, since: u64) -> Response {
        let mut cluster = self.cluster();
        cluster.watches += 1;
        cluster.open += 1;
        let lasts = cluster.lasts;
        drop(cluster);
        let begun = (Open(self.clone()), self.news.subscribe(), since);
        let lines = stream::unfold(begun, |(open, mut news, since)| async move {
            loop {
                let next = {
                    let cluster = open.0.cluster();
                    let next = cluster.told.iter().find(|(version, _)| *version > since).cloned();
                    next.filter(|_| !cluster.silent)
                };
                if let Some((version, event)) = next {
                    return Some((Ok::<_, Infallible>(format!("{event}\n")), (open, news, version)));
                }
                news.changed().await.ok()?;
            }
        });
        Body::from_stream(lines.take_until(tokio::time::sleep(lasts))).into_response()
    }

    async fn until(&self, what: &str, holds: impl Fn(&Cluster) -> bool) {
        until(what, async || holds(&self.cluster())).await;
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let asking = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, asking).await.is_ok(), "it never came to this: {what}");
}

fn pace() -> Pace {
    let millis = Duration::from_millis;
    Pace { shared: millis(100), probe: millis(50), between: millis(10), grace: PATIENCE, ..Pace::default() }
}

async fn ask(asker: &ObjectAsker) -> GateAnswer {
    ask_as(Asks::Plan, asker).await
}

async fn ask_as(asks: Asks, asker: &ObjectAsker) -> GateAnswer {
    let gate: ObjectGate =
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "cel": "object.status.phase == 'Running'"}))
            .unwrap();
    asker.ask(asks, &gate, None).await.answer
}

/// Asks until the objects were listed three times, as where nothing watches them.
async fn is_listed_thrice(server: &Server, asks: Asks, asker: &ObjectAsker) {
    let read_thrice = async || {
        assert_eq!(ask_as(asks, asker).await, GateAnswer::Passed);
        server.cluster().lists > 2
    };
    until("it is read again", read_thrice).await;
}

/// Asks once, and waits until a watch tells what changes from then on.
async fn followed(server: &Server, pace: Pace) -> ObjectAsker {
    let asker = ObjectAsker::at(server.client().await, pace);
    assert_eq!(ask(&asker).await, GateAnswer::Passed);
    // Only in a watch that has begun the server is asked how far it is.
    server.until("it is watched", |cluster| cluster.probes > 0).await;
    asker
}

#[tokio::test]
async fn questions_are_answered_from_one_reading_and_from_what_changes_then() {
    let server = Server::new(Duration::from_millis(300));
    let asker = followed(&server, pace()).await;
    for _ in 0..20 {
        assert_eq!(ask(&asker).await, GateAnswer::Passed);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.put("a", "Failed");
    let fails = async || matches!(ask(&asker).await, GateAnswer::Failed(why) if why.contains("shop/a does not"));
    until("a change is heard", fails).await;
    server.delete("a");
    until("a deletion is heard", async || ask(&asker).await.passed()).await;
    let cluster = server.cluster();
    assert!(cluster.lists == 1 && cluster.watches > 1, "{cluster:?}");
}

#[tokio::test]
async fn what_changes_between_two_pages_is_heard() {
    let server = Server::new(PATIENCE);
    {
        let mut cluster = server.cluster();
        (cluster.page, cluster.fails_between) = (1, Some("a"));
    }
    let asker = followed(&server, pace()).await;
    until("what was read before it changed is heard", async || !ask(&asker).await.passed()).await;
    assert_eq!(server.cluster().lists, 1);
}

#[tokio::test]
async fn large_objects_are_read_a_few_at_a_time_and_what_is_too_large_is_told() {
    let server = Server::new(PATIENCE);
    let grow = |bytes: usize| {
        let mut cluster = server.cluster();
        let mut pod = cluster.pods["a"].clone();
        pod["metadata"]["annotations"] = json!({"text": "x".repeat(bytes)});
        for name in ["a", "b", "c"] {
            pod["metadata"]["name"] = json!(name);
            cluster.pods.insert(name.to_owned(), pod.clone());
        }
    };
    grow(3 << 20);
    let asker = ObjectAsker::at(server.client().await, pace());
    assert_eq!(ask(&asker).await, GateAnswer::Passed);
    assert_eq!(server.cluster().lists, 5, "250, 62, 15 and 3 are too many, 2 are not");
    grow(5 << 20);
    let asker = ObjectAsker::at(server.client().await, pace());
    let answer = ask(&asker).await;
    assert!(matches!(&answer, GateAnswer::Unknown(why) if why.contains("more than 4 MiB")), "{answer:?}");
}

#[tokio::test]
async fn that_there_are_too_many_objects_is_not_found_out_every_few_seconds() {
    let server = Server::new(PATIENCE);
    let pod = server.cluster().pods["a"].clone();
    for number in 0..=MOST_OBJECTS {
        let mut pod = pod.clone();
        pod["metadata"]["name"] = json!(format!("p{number}"));
        server.cluster().pods.insert(format!("p{number}"), pod);
    }
    let asker = ObjectAsker::at(server.client().await, pace());
    for _ in 0..20 {
        assert!(matches!(ask(&asker).await, GateAnswer::Unknown(why) if why.contains("narrow the gate")));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.cluster().lists, 1);

    let asker = ObjectAsker::at(server.client().await, Pace { fresh: Duration::from_millis(300), ..pace() });
    assert!(!ask(&asker).await.passed());
    server.cluster().pods.retain(|name, _| name == "a");
    until("it is found out again", async || ask(&asker).await.passed()).await;
}

#[tokio::test]
async fn objects_of_which_too_much_is_looked_at_are_not_kept_and_not_read_every_few_seconds() {
    let server = Server::new(PATIENCE);
    {
        let mut cluster = server.cluster();
        cluster.page = 1;
        cluster.pods.get_mut("a").unwrap()["status"]["phase"] = json!("x".repeat(2_000));
    }
    let asker = ObjectAsker::at(server.client().await, pace()).with_room(2_000);
    for _ in 0..20 {
        let answer = ask(&asker).await;
        assert!(matches!(&answer, GateAnswer::Unknown(why) if why.contains("too much to look at")), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(server.cluster().lists, 1);
    // It is a matter of what is looked at.
    server.put("a", "Running");
    let asker = ObjectAsker::at(server.client().await, pace()).with_room(2_000);
    assert_eq!(ask(&asker).await, GateAnswer::Passed);
}

#[tokio::test]
async fn a_kind_that_has_another_plural_by_now_is_found_again() {
    let server = Server::new(Duration::from_millis(300));
    let asker = followed(&server, Pace { kind: Duration::from_millis(200), ..pace() }).await;
    let says = async |part: &str| matches!(ask(&asker).await, GateAnswer::Unknown(why) if why.contains(part));
    server.cluster().plural = None;
    until("it is gone", async || says("the cluster has no v1 Pod").await).await;
    server.cluster().plural = Some("peas");
    until("it is found", async || ask(&asker).await.passed()).await;
    // Who does not say that a kind is gone says nothing against what is known of it.
    server.cluster().mute = true;
    let lists = server.cluster().lists;
    let read_again = async || {
        assert!(ask(&asker).await.passed());
        server.cluster().lists > lists
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.expire();
    until("it is read again", read_again).await;
}

#[tokio::test]
async fn a_watch_that_falls_silent_opens_no_gate() {
    let server = Server::new(PATIENCE);
    server.cluster().silent = true;
    let pace = Pace { fresh: Duration::from_millis(300), ..pace() };
    let asker = followed(&server, pace).await;
    server.put("a", "Failed");
    until("what the watch keeps to itself is read", async || !ask(&asker).await.passed()).await;
    for _ in 0..20 {
        assert!(matches!(ask(&asker).await, GateAnswer::Failed(_)));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(server.cluster().lists > 2, "{:?}", server.cluster());
}

#[tokio::test]
async fn a_right_that_is_taken_away_closes_the_gate_though_the_watch_goes_on() {
    // The API server looks at rights when a watch begins and not after that.
    let server = Server::new(Duration::from_millis(300));
    let asker = followed(&server, pace()).await;
    server.cluster().refused = true;
    let refused = async || match ask(&asker).await {
        GateAnswer::Unknown(why) => why.starts_with("Pod can't be read: ") && why.contains("pods is forbidden"),
        _ => false,
    };
    until("it is refused", async || refused().await).await;
    for _ in 0..10 {
        assert!(refused().await, "a gate was answered from what may not be read any more");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    server.cluster().refused = false;
    until("it is allowed again", async || ask(&asker).await.passed()).await;
}

#[tokio::test]
async fn who_may_list_and_not_watch_lists_and_tries_nothing_else() {
    let server = Server::new(PATIENCE);
    server.cluster().may_watch = false;
    let asker = ObjectAsker::at(server.client().await, Pace { right: Duration::from_secs(1), ..pace() });
    is_listed_thrice(&server, Asks::Plan, &asker).await;
    server.put("a", "Failed");
    until("a change is read", async || !ask(&asker).await.passed()).await;
    {
        let mut cluster = server.cluster();
        assert_eq!((cluster.watches, cluster.probes), (0, 0), "{cluster:?}");
        cluster.may_watch = true;
    }
    let watched = async || {
        let _ = ask(&asker).await;
        server.cluster().watches > 0
    };
    until("a right that is given later is used", watched).await;
}

/// Of which there are 32 at once, each for gates that nodes wait for.
#[tokio::test]
async fn what_people_ask_opens_no_watch_and_is_answered_from_one_that_is_open() {
    let server = Server::new(PATIENCE);
    let asker = ObjectAsker::at(server.client().await, pace());
    is_listed_thrice(&server, Asks::People, &asker).await;
    assert_eq!(server.cluster().watches, 0);
    let watched = async || {
        assert_eq!(ask(&asker).await, GateAnswer::Passed);
        server.cluster().probes > 0
    };
    until("it is watched for the plan", watched).await;
    let lists = server.cluster().lists;
    for _ in 0..5 {
        assert_eq!(ask_as(Asks::People, &asker).await, GateAnswer::Passed);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.cluster().lists, lists);
}

#[tokio::test]
async fn versions_that_went_back_end_a_watch() {
    // etcd was restored: what was watched is no state of the objects any more, and each lower version would prove it.
    let server = Server::new(Duration::from_millis(300));
    let asker = followed(&server, pace()).await;
    server.cluster().claims = Some("1");
    let read_again = async || {
        let _ = ask(&asker).await;
        server.cluster().lists > 1
    };
    until("it is read again", read_again).await;
}

#[tokio::test]
async fn a_list_that_says_no_version_is_not_followed() {
    let server = Server::new(PATIENCE);
    server.cluster().claims = Some("0");
    let asker = ObjectAsker::at(server.client().await, pace());
    is_listed_thrice(&server, Asks::Plan, &asker).await;
    server.put("a", "Failed");
    until("a change is read", async || !ask(&asker).await.passed()).await;
    assert_eq!(server.cluster().watches, 0);
}

#[tokio::test]
async fn a_watch_that_is_cut_at_once_is_opened_ever_more_seldom() {
    let server = Server::new(Duration::ZERO);
    let between = Duration::from_millis(300);
    let asker = ObjectAsker::at(server.client().await, Pace { between, ..pace() });
    assert_eq!(ask(&asker).await, GateAnswer::Passed);
    tokio::time::sleep(between * 16).await;
    // After 2, 4 and 8 times that, which makes four; after once that each time there were sixteen.
    let watches = server.cluster().watches;
    assert!((1..=8).contains(&watches), "{watches} times");
}

#[tokio::test]
async fn a_watch_that_is_too_old_is_begun_anew() {
    let server = Server::new(PATIENCE);
    let asker = followed(&server, pace()).await;
    server.expire();
    let again = async || {
        assert_eq!(ask(&asker).await, GateAnswer::Passed);
        let cluster = server.cluster();
        cluster.lists > 1 && cluster.watches > 1
    };
    until("it is read and watched again", again).await;
}

#[tokio::test]
async fn a_watch_ends_when_nobody_asks_and_with_whoever_asked() {
    let server = Server::new(Duration::from_millis(300));
    let asker = followed(&server, Pace { idle: Duration::from_secs(2), ..pace() }).await;
    let ended = async || {
        let before = server.cluster().watches;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let cluster = server.cluster();
        cluster.watches == before && cluster.open == 0
    };
    until("it ends", ended).await;
    assert_eq!(ask(&asker).await, GateAnswer::Passed);
    assert_eq!(server.cluster().lists, 2);

    let server = Server::new(PATIENCE);
    let asker = followed(&server, pace()).await;
    assert_eq!(server.cluster().open, 1);
    drop(asker);
    server.until("it ends with the asker", |cluster| cluster.open == 0).await;
}
