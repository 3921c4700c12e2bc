//! An admission webhook as clusters have them, real down to its certificate: the API server asks it over https before it
//! lets a request pass, and this one says no.

use crate::https::{HttpsError, serve, tls};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A webhook that denies every request it is asked about. It can't be reached any more once it is dropped.
#[derive(Debug)]
pub struct DenyingWebhook {
    address: SocketAddr,
    ca_pem: String,
    asked: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl DenyingWebhook {
    /// Starts it on a free port of 127.0.0.1; `message` is what it says to everybody.
    ///
    /// # Errors
    /// [`HttpsError`]
    pub async fn start(message: &'static str) -> Result<Self, HttpsError> {
        let (acceptor, ca_pem) = tls("Bascule test webhook CA", None)?;
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = listener.local_addr()?;
        let asked = Arc::<AtomicU64>::default();
        let count = Arc::clone(&asked);
        let answer = move |request: http::Request<hyper::body::Incoming>| {
            count.fetch_add(1, Ordering::SeqCst);
            async move {
                let review = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
                deny(&review.unwrap_or_default(), message)
            }
        };
        let task = tokio::spawn(serve::accept(listener, acceptor, answer));
        Ok(Self { address, ca_pem, asked, task })
    }

    /// How many requests it was asked about.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    /// The `ValidatingWebhookConfiguration` of a name that asks it about every creation of `resource` of the core group,
    /// and lets nothing pass where it can't be asked.
    pub fn configuration(&self, name: &str, resource: &str) -> String {
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [{
                "name": format!("{name}.example.com"),
                "clientConfig": {
                    "url": format!("https://localhost:{}/", self.address.port()),
                    "caBundle": STANDARD.encode(&self.ca_pem),
                },
                "rules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": [resource]},
                ],
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "failurePolicy": "Fail",
                "timeoutSeconds": 5,
            }],
        });
        configuration.to_string()
    }
}

impl Drop for DenyingWebhook {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The answer to an AdmissionReview (Kubernetes, "Dynamic Admission Control", response).
fn deny(review: &Bytes, message: &str) -> Response<serve::Body> {
    let review: Value = serde_json::from_slice(review).unwrap_or_default();
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {
            "uid": review.pointer("/request/uid"),
            "allowed": false,
            "status": {"code": 403, "message": message},
        },
    });
    let body = Full::new(Bytes::from(answer.to_string())).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
