//! The cluster the story plays in: a control plane of our own, or one that exists.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use bascule_tests::control_plane::{ControlPlane, Credentials, Options as ControlPlaneOptions, Request, apply};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::{DeleteParams, DynamicObject, ListParams};
use kube::core::GroupVersionKind;
use kube::discovery::pinned_kind;
use kube::{Api, Client};

use super::observe::SANDBOX_LABEL;

/// Where the pods of the story live.
pub(crate) const NAMESPACE: &str = "shop";
/// Who stops and rolls back in the story.
pub(crate) const ON_CALL: &str = "alice";
/// Who watches and writes policies in the story.
const ADMIN: &str = "bascule-sandbox";

/// A cluster and the right to be anybody in it.
#[derive(Debug)]
pub(crate) struct Cluster {
    own: Option<ControlPlane>,
    admin: Credentials,
}

impl Cluster {
    /// Starts a control plane. `say` hears what takes long.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) async fn start(say: impl Fn(&str) + Send + 'static) -> anyhow::Result<Self> {
        let own = ControlPlane::start_telling(ControlPlaneOptions::default(), say).await?;
        let admin = own.user(ADMIN, &["system:masters"])?;
        Ok(Self { own: Some(own), admin })
    }

    /// Uses a cluster that exists.
    ///
    /// # Errors
    /// The kubeconfig can't be read or the cluster does not answer.
    pub(crate) async fn join(kubeconfig: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(kubeconfig)
            .with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))?;
        let admin = Credentials::from_kubeconfig(&text)?;
        let client = admin.client().await?;
        client
            .apiserver_version()
            .await
            .with_context(|| format!("the cluster of {} does not answer", kubeconfig.display()))?;
        Ok(Self { own: None, admin })
    }

    /// The story's admin.
    pub(crate) fn admin(&self) -> &Credentials {
        &self.admin
    }

    /// A client of the story's admin.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        Ok(self.admin.client().await?)
    }

    /// The kubelet of a node.
    pub(crate) fn kubelet(&self, node: &str) -> anyhow::Result<Credentials> {
        self.user(&format!("system:node:{node}"), &["system:nodes"])
    }

    /// Any user.
    pub(crate) fn user(&self, user: &str, groups: &[&str]) -> anyhow::Result<Credentials> {
        Ok(match &self.own {
            Some(own) => own.user(user, groups)?,
            None => {
                let all: Vec<&str> = groups.iter().copied().chain(["system:authenticated"]).collect();
                self.admin.acting_as(user, &all)?
            }
        })
    }

    /// Applies manifests.
    pub(crate) async fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        apply(self.client().await?, yaml).await?;
        Ok(())
    }

    /// Applies a kustomization, built by the kubectl that comes with the control plane (or the one in PATH).
    pub(crate) async fn apply_kustomization(&self, folder: &Path) -> anyhow::Result<()> {
        let mut kubectl = self.own.as_ref().map_or_else(|| Command::new("kubectl"), ControlPlane::kubectl);
        kubectl.arg("kustomize").arg(folder);
        let output = tokio::task::spawn_blocking(move || kubectl.output()).await?.context("cannot start kubectl")?;
        if !output.status.success() {
            bail!("kustomize refuses {}: {}", folder.display(), String::from_utf8_lossy(&output.stderr).trim());
        }
        self.apply(&String::from_utf8_lossy(&output.stdout)).await
    }

    /// The version the API server tells.
    pub(crate) async fn version(&self) -> anyhow::Result<String> {
        Ok(self.client().await?.apiserver_version().await?.git_version)
    }

    /// The admin's kubeconfig of a control plane that we started.
    pub(crate) fn kubeconfig(&self) -> Option<std::path::PathBuf> {
        self.own.as_ref().map(ControlPlane::admin_kubeconfig)
    }

    /// Every request the API server answered, where it is ours to ask.
    pub(crate) fn requests(&self) -> anyhow::Result<Option<Vec<Request>>> {
        Ok(self.own.as_ref().map(ControlPlane::requests).transpose()?)
    }

    /// Takes out of a cluster that exists what the sandbox put in: its policy objects, pods and nodes. The API
    /// definitions stay: removing them would remove objects of others.
    pub(crate) async fn leave(&self) -> anyhow::Result<()> {
        if self.own.is_some() {
            return Ok(());
        }
        let client = self.client().await?;
        let (now, ours) = (DeleteParams::default().grace_period(0), ListParams::default().labels(SANDBOX_LABEL));
        for kind in ["UpdatePolicy", "Freeze", "Rollback"] {
            let kind = GroupVersionKind::gvk(bascule_api::GROUP, "v1alpha1", kind);
            let (resource, _) = pinned_kind(&client, &kind).await?;
            let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            objects.delete_collection(&DeleteParams::default(), &ours).await?;
        }
        let namespaces: Api<Namespace> = Api::all(client.clone());
        for namespace in [NAMESPACE, "bascule-system"] {
            if namespaces.get_opt(namespace).await?.is_some() {
                namespaces.delete(namespace, &DeleteParams::default()).await?;
            }
        }
        let nodes: Api<Node> = Api::all(client);
        nodes.delete_collection(&now, &ours).await?;
        Ok(())
    }
}
