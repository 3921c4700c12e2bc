//! Identities other than the admin: kubelets by certificate, service accounts by token, tokens bound to a pod. A
//! token bound to a pod carries the node that the pod runs on, which is what holds an agent to its own node.

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::{ControlPlaneError, Credentials, Foundation};

/// Long enough for any test; the API server gives what is asked.
const TOKEN_SECONDS: i64 = 24 * 3600;

impl Foundation {
    /// Any user, by a client certificate.
    ///
    /// # Errors
    /// When the certificate can't be made.
    pub fn user(&self, user: &str, groups: &[&str]) -> Result<Credentials, ControlPlaneError> {
        let pair = self.authority.client(user, groups)?;
        Ok(Credentials::with_certificate(&self.server, self.authority.certificate(), user, &pair))
    }

    /// The kubelet of a node: `system:node:<name>` in `system:nodes`, held to its node by the Node authorizer and
    /// NodeRestriction.
    ///
    /// # Errors
    /// When the certificate can't be made.
    pub fn kubelet(&self, node: &str) -> Result<Credentials, ControlPlaneError> {
        self.user(&format!("system:node:{node}"), &["system:nodes"])
    }

    /// A service account, by a token bound to nothing.
    ///
    /// # Errors
    /// When the API server refuses the token.
    pub async fn service_account(&self, namespace: &str, name: &str) -> Result<Credentials, ControlPlaneError> {
        let token = request_token(self.client().await?, namespace, name, None).await?;
        Ok(self.token_credentials(namespace, name, &token))
    }

    /// The service account of an existing pod, by a token bound to that pod as a kubelet would mount it: it carries
    /// `authentication.kubernetes.io/node-name`, and is worth nothing once the pod is gone.
    ///
    /// # Errors
    /// When there is no such pod or the API server refuses the token.
    pub async fn pod_token(&self, namespace: &str, pod: &str) -> Result<Credentials, ControlPlaneError> {
        let client = self.client().await?;
        let pod = Api::<Pod>::namespaced(client.clone(), namespace).get(pod).await?;
        let token = request_pod_token(client, &pod).await?;
        Ok(self.token_credentials(namespace, &service_account_of(&pod), &token))
    }

    /// Credentials around a token that was obtained elsewhere, for example by a kubelet.
    #[must_use]
    pub fn token_credentials(&self, namespace: &str, name: &str, token: &str) -> Credentials {
        let user = format!("system:serviceaccount:{namespace}:{name}");
        Credentials::with_token(&self.server, self.authority.certificate(), &user, token)
    }
}

fn service_account_of(pod: &Pod) -> String {
    let name = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    name.unwrap_or_else(|| "default".to_owned())
}

/// Asks for a token of the pod's service account, bound to the pod, as `client` (a kubelet may, for pods on its node).
///
/// # Errors
/// When the API server refuses.
pub async fn request_pod_token(client: Client, pod: &Pod) -> Result<String, ControlPlaneError> {
    let bound = BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name_any()),
        uid: pod.uid(),
    };
    let namespace = pod.namespace().unwrap_or_default();
    request_token(client, &namespace, &service_account_of(pod), Some(bound)).await
}

async fn request_token(
    client: Client,
    namespace: &str,
    name: &str,
    bound: Option<BoundObjectReference>,
) -> Result<String, ControlPlaneError> {
    let spec =
        TokenRequestSpec { bound_object_ref: bound, expiration_seconds: Some(TOKEN_SECONDS), ..Default::default() };
    let request = TokenRequest { spec: Some(spec), ..Default::default() };
    let accounts = Api::<ServiceAccount>::namespaced(client, namespace);
    let answer = accounts.create_token_request(name, &PostParams::default(), &request).await?;
    let token = answer.status.and_then(|status| status.token).unwrap_or_default();
    if token.is_empty() {
        let problem = "the API server answered a token request without a token".to_owned();
        return Err(ControlPlaneError::Manifest { name: format!("TokenRequest {namespace}/{name}"), problem });
    }
    Ok(token)
}
