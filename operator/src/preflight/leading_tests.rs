//! A leader that looks again whether what it rests on holds, against an API server of five kinds of objects.

use super::{admission::MANIFESTS, leading::no_longer_holds};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use kube::{Client, Config, ResourceExt as _};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;

const EVERY: Duration = Duration::from_millis(20);
/// Far longer than a few rounds take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the API server has and does.
#[derive(Clone)]
struct Server {
    /// By `resource/name`.
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
    /// Whether it enforces policies, or can't answer.
    answers: Arc<Mutex<StatusCode>>,
    /// How often it was asked to create a NodeUpdate.
    tried: watch::Sender<usize>,
}

impl Server {
    fn new() -> Self {
        let mut objects = BTreeMap::new();
        for (_, manifest) in MANIFESTS {
            for document in serde_saphyr::from_multiple::<Value>(manifest).unwrap() {
                let kind = document["kind"].as_str().unwrap().to_lowercase();
                let plural = if kind.ends_with('y') { kind.replace("policy", "policies") } else { format!("{kind}s") };
                objects.insert(format!("{plural}/{}", document["metadata"]["name"].as_str().unwrap()), document);
            }
        }
        for definition in bascule_api::custom_resource_definitions() {
            let key = format!("customresourcedefinitions/{}", definition.name_any());
            objects.insert(key, serde_json::to_value(&definition).unwrap());
        }
        let answers = Arc::new(Mutex::new(StatusCode::FORBIDDEN));
        Self { objects: Arc::new(Mutex::new(objects)), answers, tried: watch::Sender::new(0) }
    }

    async fn client(&self) -> Client {
        bascule_tests::install_tls_provider();
        let found = async |State(server): State<Self>, Path((_, path)): Path<(String, String)>| {
            let found = server.objects.lock().unwrap().get(&path).cloned();
            found.map_or_else(|| refusal(StatusCode::NOT_FOUND, "not found"), |found| Json(found).into_response())
        };
        let rights = async |Json(review): Json<Value>| {
            let status = json!({"incomplete": false, "resourceRules": [], "nonResourceRules": []});
            let mut answer = review;
            answer["status"] = status;
            (StatusCode::CREATED, Json(answer))
        };
        let create = async |State(server): State<Self>, Json(asked): Json<Value>| {
            let answer = *server.answers.lock().unwrap();
            server.tried.send_modify(|tried| *tried += 1);
            if answer == StatusCode::CREATED {
                return (answer, Json(asked)).into_response();
            }
            refusal(
                answer,
                "ValidatingAdmissionPolicy 'bascule-operator' with binding 'bascule-operator' denied request",
            )
        };
        let router = Router::new()
            .route("/apis/{group}/v1/{*path}", get(found))
            .route("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", post(rights))
            .route("/apis/bascule.dev/v1alpha1/nodeupdates", post(create))
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        let mut config = Config::new(format!("http://{address}").parse().unwrap());
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    /// After some rounds more.
    async fn rounds(&self, more: usize) {
        let mut tried = self.tried.subscribe();
        let then = *tried.borrow() + more;
        tokio::time::timeout(PATIENCE, tried.wait_for(|tried| *tried >= then)).await.unwrap().unwrap();
    }
}

fn refusal(code: StatusCode, message: &str) -> Response {
    let reason = if code == StatusCode::NOT_FOUND { "NotFound" } else { "" };
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
        "message": message, "reason": reason});
    (code, Json(status)).into_response()
}

#[tokio::test]
async fn a_leader_stops_when_what_it_rests_on_no_longer_holds_and_not_before() {
    let binding = "validatingadmissionpolicybindings/bascule-agent";
    let definition = "customresourcedefinitions/nodeupdates.bascule.dev";
    let reasons = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/rollout/properties/reason/enum";
    for (what, change) in [
        (
            "a binding is gone",
            &(|server: &Server| drop(server.objects.lock().unwrap().remove(binding))) as &dyn Fn(&Server),
        ),
        ("a binding only warns", &|server| {
            server.objects.lock().unwrap().get_mut(binding).unwrap()["spec"]["validationActions"] = json!(["Warn"]);
        }),
        ("nothing is enforced", &|server| *server.answers.lock().unwrap() = StatusCode::CREATED),
        ("a definition is gone", &|server| drop(server.objects.lock().unwrap().remove(definition))),
        ("a definition is an older one, without the last reason", &|server| {
            let mut objects = server.objects.lock().unwrap();
            let known = objects.get_mut(definition).unwrap().pointer_mut(reasons).unwrap();
            drop(known.as_array_mut().unwrap().pop());
        }),
    ] {
        let server = Server::new();
        let client = server.client().await;
        let leads = no_longer_holds(&client, "bascule-system", EVERY);
        let mut leads = std::pin::pin!(leads);
        tokio::select! {
            () = &mut leads => panic!("everything held"),
            () = server.rounds(3) => {}
        }
        // What can't be tried is not wrong.
        *server.answers.lock().unwrap() = StatusCode::INTERNAL_SERVER_ERROR;
        tokio::select! {
            () = &mut leads => panic!("the API server was out of order"),
            () = server.rounds(3) => {}
        }
        *server.answers.lock().unwrap() = StatusCode::FORBIDDEN;
        change(&server);
        assert!(tokio::time::timeout(PATIENCE, leads).await.is_ok(), "{what}: it goes on");
    }
}
