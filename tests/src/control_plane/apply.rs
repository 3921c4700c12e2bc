//! Installing manifests the way `kubectl apply --server-side` does, waiting until new kinds can be used.

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{Scope, pinned_kind};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, ResourceExt};

use super::{ControlPlaneError, Foundation};

/// Far longer than discovery takes.
const DISCOVERY: Duration = Duration::from_secs(60);
/// Discovery can only be polled.
const POLL: Duration = Duration::from_millis(100);
/// The kind of objects that bring kinds.
const DEFINITION: &str = "CustomResourceDefinition";

/// One object that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its kind.
    pub kind: String,
    /// Its namespace, empty for cluster-scoped ones.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Foundation {
    /// Applies every document of a YAML text in its order, as the admin. A CustomResourceDefinition is waited for before
    /// anything else than another one, so that later documents may use it.
    ///
    /// # Errors
    /// When a document is no Kubernetes object, or the API server refuses one.
    pub async fn apply(&self, yaml: &str) -> Result<Vec<Applied>, ControlPlaneError> {
        apply(self.client().await?, yaml).await
    }

    /// Applies a kustomization, built by kubectl.
    ///
    /// # Errors
    /// As [`Self::apply`], and when kustomize refuses the folder.
    pub async fn apply_kustomization(&self, folder: &Path) -> Result<Vec<Applied>, ControlPlaneError> {
        let mut kubectl = self.kubectl();
        kubectl.arg("kustomize").arg(folder);
        let output = tokio::task::spawn_blocking(move || kubectl.output()).await?;
        let output = output.map_err(|source| ControlPlaneError::Folder { path: folder.to_owned(), source })?;
        if !output.status.success() {
            let problem = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(ControlPlaneError::Manifest { name: folder.display().to_string(), problem });
        }
        self.apply(&String::from_utf8_lossy(&output.stdout)).await
    }
}

/// See [`Foundation::apply`]; for a cluster that was not started by this fixture.
///
/// # Errors
/// When a document is no Kubernetes object, or the API server refuses one.
pub async fn apply(client: Client, yaml: &str) -> Result<Vec<Applied>, ControlPlaneError> {
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(yaml)
        .map_err(|error| ControlPlaneError::Manifest { name: "(text)".to_owned(), problem: error.to_string() })?;
    let (mut applied, mut definitions) = (Vec::new(), Vec::<DynamicObject>::new());
    for document in documents.into_iter().filter(|document| !document.is_null()) {
        let object: DynamicObject = serde_json::from_value(document)
            .map_err(|error| ControlPlaneError::Manifest { name: "(object)".to_owned(), problem: error.to_string() })?;
        let is_definition = object.types.as_ref().is_some_and(|types| types.kind == DEFINITION);
        if !is_definition {
            until_usable(&client, &std::mem::take(&mut definitions)).await?;
        }
        applied.push(apply_one(&client, &object).await?);
        definitions.extend(is_definition.then_some(object));
    }
    until_usable(&client, &definitions).await?;
    Ok(applied)
}

async fn apply_one(client: &Client, object: &DynamicObject) -> Result<Applied, ControlPlaneError> {
    let name = object.name_any();
    let types = object.types.clone().unwrap_or_default();
    let kind = GroupVersionKind::try_from(&types)
        .map_err(|error| ControlPlaneError::Manifest { name: name.clone(), problem: error.to_string() })?;
    let (resource, capabilities) = pinned_kind(client, &kind).await?;
    let namespace = match capabilities.scope {
        Scope::Cluster => String::new(),
        Scope::Namespaced => object.namespace().unwrap_or_else(|| "default".to_owned()),
    };
    let objects: Api<DynamicObject> = match capabilities.scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespaced => Api::namespaced_with(client.clone(), &namespace, &resource),
    };
    let params = PatchParams::apply("bascule-tests").force();
    objects.patch(&name, &params, &Patch::Apply(object)).await?;
    Ok(Applied { kind: kind.kind, namespace, name })
}

/// Waits until the kinds of definitions can be used. The API server takes its time for each beside the others.
async fn until_usable(client: &Client, definitions: &[DynamicObject]) -> Result<(), ControlPlaneError> {
    for definition in definitions {
        let name = definition.name_any();
        let all = Api::<CustomResourceDefinition>::all(client.clone());
        await_condition(all, &name, conditions::is_crd_established()).await.map_err(|error| {
            ControlPlaneError::Manifest { name: name.clone(), problem: format!("never established: {error}") }
        })?;
        until_discovered(client, definition).await?;
    }
    Ok(())
}

/// Discovery learns of a definition a moment after it was established.
async fn until_discovered(client: &Client, definition: &DynamicObject) -> Result<(), ControlPlaneError> {
    let text = |pointer: &str| definition.data.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default();
    let versions = definition.data.pointer("/spec/versions").and_then(serde_json::Value::as_array);
    for version in versions.into_iter().flatten().filter(|version| version["served"] == true) {
        let version = version["name"].as_str().unwrap_or_default();
        let kind = GroupVersionKind::gvk(text("/spec/group"), version, text("/spec/names/kind"));
        let begun = Instant::now();
        while let Err(error) = pinned_kind(client, &kind).await {
            if begun.elapsed() > DISCOVERY {
                return Err(error.into());
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}
