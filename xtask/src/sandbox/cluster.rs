//! The cluster the story plays in: a control plane of our own, or one that exists.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bascule_api::{OPERATOR_LEASE, OPERATOR_NAMESPACE};
use bascule_tests::control_plane::{
    ControlPlane, ControlPlanes, Credentials, Foundation, Options as ControlPlaneOptions, Plane, Request, apply,
};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, PartialObjectMeta};
use kube::runtime::conditions::is_deleted;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};

use super::observe::SANDBOX_LABEL;
use super::probes;

/// Where the pods of the story live.
pub(crate) const NAMESPACE: &str = "shop";
/// Who stops and rolls back in the story.
pub(crate) const ON_CALL: &str = "alice";
/// Every namespace the sandbox fills.
const NAMESPACES: [&str; 3] = [NAMESPACE, "bascule-system", "bascule-agents"];
/// Bascule's API definitions: where they are, Bascule is.
const DEFINITIONS: [&str; 4] =
    ["updatepolicies.bascule.dev", "nodeupdates.bascule.dev", "freezes.bascule.dev", "rollbacks.bascule.dev"];
/// How long a namespace may take to empty itself. A pod that slips in at the last moment is taken by the garbage
/// collector for pods of vanished nodes, which looks every 20 s and waits 40 s.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(180);
/// Between two tries of a watch that broke off.
const AGAIN: Duration = Duration::from_millis(200);
/// Who watches and writes policies in the story.
const ADMIN: &str = "bascule-sandbox";

/// How long several control planes may take to come up together: each start of an API server takes a processor for seconds.
const START_PATIENCE: Duration = Duration::from_secs(300);

/// A cluster and the right to be anybody in it.
#[derive(Debug)]
pub(crate) struct Cluster {
    own: Own,
    admin: Credentials,
}

/// The operator that leads.
#[derive(Debug, Clone)]
pub(crate) struct Leader {
    /// Its pod.
    pub(crate) pod: String,
    /// The node that the pod runs on.
    pub(crate) node: String,
}

/// What of the cluster is ours.
#[derive(Debug)]
enum Own {
    /// Nothing: it exists without us.
    Nothing,
    /// A control plane beside the machines.
    Beside(Box<ControlPlane>),
    /// Control planes that the machines carry.
    Carried(Box<ControlPlanes>),
}

impl Own {
    fn foundation(&self) -> Option<&Foundation> {
        match self {
            Self::Nothing => None,
            Self::Beside(one) => Some(one),
            Self::Carried(several) => Some(several),
        }
    }
}

impl Cluster {
    /// Starts a control plane. `say` hears what takes long.
    ///
    /// # Errors
    /// It does not come up.
    pub(crate) async fn start(say: impl Fn(&str) + Send + 'static) -> anyhow::Result<Self> {
        let own = ControlPlane::start_telling(ControlPlaneOptions::default(), say).await?;
        let admin = own.user(ADMIN, &["system:masters"])?;
        Ok(Self { own: Own::Beside(Box::new(own)), admin })
    }

    /// Prepares a cluster whose control planes are carried by machines of these names: nothing answers before they run.
    ///
    /// # Errors
    /// Programs, keys or ports can't be had.
    pub(crate) async fn prepare(machines: &[String], say: impl Fn(&str) + Send + 'static) -> anyhow::Result<Self> {
        let options = ControlPlaneOptions { start_timeout: START_PATIENCE, ..ControlPlaneOptions::default() };
        let own = ControlPlanes::prepare(machines, options, say).await?;
        let admin = own.user(ADMIN, &["system:masters"])?;
        Ok(Self { own: Own::Carried(Box::new(own)), admin })
    }

    /// The control planes that machines carry.
    pub(crate) fn control_planes(&self) -> Option<&ControlPlanes> {
        match &self.own {
            Own::Carried(several) => Some(several),
            _ => None,
        }
    }

    /// What a machine carries of the cluster.
    pub(crate) fn plane(&self, machine: &str) -> Option<Arc<Plane>> {
        self.control_planes()?.of(machine).cloned()
    }

    /// Uses a cluster that exists, for nodes with these names. What a killed sandbox left in it is taken out first.
    ///
    /// # Errors
    /// The kubeconfig can't be read, the cluster does not answer, or it holds things the sandbox would have to touch:
    /// Bascule itself, a namespace or a node of a name that the sandbox uses.
    pub(crate) async fn join(kubeconfig: &Path, nodes: &[String]) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(kubeconfig)
            .with_context(|| format!("cannot read the kubeconfig {}", kubeconfig.display()))?;
        let admin = Credentials::from_kubeconfig(&text)?;
        let client = admin.client().await?;
        client
            .apiserver_version()
            .await
            .with_context(|| format!("the cluster of {} does not answer", kubeconfig.display()))?;
        make_sure_that_nothing_is_in_the_way(&client, nodes).await?;
        let cluster = Self { own: Own::Nothing, admin };
        cluster.leave().await.context("cannot take out what an earlier sandbox left in the cluster")?;
        Ok(cluster)
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
        Ok(match self.own.foundation() {
            Some(own) => own.user(user, groups)?,
            None => {
                let all: Vec<&str> = groups.iter().copied().chain(["system:authenticated"]).collect();
                self.admin.acting_as(user, &all)?
            }
        })
    }

    /// Who measures whether the API is there.
    pub(crate) fn prober(&self) -> anyhow::Result<Credentials> {
        self.user(probes::USER, &["system:masters"])
    }

    /// The operator that leads, by its Lease.
    ///
    /// # Errors
    /// Nobody leads, or the API server does not answer.
    pub(crate) async fn leader(&self) -> anyhow::Result<Leader> {
        let client = self.client().await?;
        let lease = Api::<Lease>::namespaced(client.clone(), OPERATOR_NAMESPACE).get(OPERATOR_LEASE).await?;
        let pod = lease.spec.and_then(|spec| spec.holder_identity).filter(|holder| !holder.is_empty());
        let pod = pod.context("no operator leads")?;
        let object = Api::<Pod>::namespaced(client, OPERATOR_NAMESPACE).get(&pod).await?;
        Ok(Leader { pod, node: object.spec.and_then(|spec| spec.node_name).unwrap_or_default() })
    }

    /// Waits until a pod is Ready, or is not.
    ///
    /// # Errors
    /// It does not come to that in time.
    pub(crate) async fn pod_is_ready(&self, namespace: &str, name: &str, wanted: bool) -> anyhow::Result<()> {
        let is = move |pod: Option<&Pod>| {
            let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
            conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && (one.status == "True") == wanted)
        };
        let pods = Api::<Pod>::namespaced(self.client().await?, namespace);
        // What tells of a pod of the control plane may go with it: then another server is asked.
        let seen = async {
            while let Err(error) = await_condition(pods.clone(), name, is).await {
                tracing::info!(%error, pod = name, "a watch of the sandbox broke off and starts again");
                sleep(AGAIN).await;
            }
        };
        if timeout(REMOVAL_PATIENCE, seen).await.is_err() {
            bail!("pod {namespace}/{name} did not become {}", if wanted { "Ready" } else { "other than Ready" });
        }
        Ok(())
    }

    /// Applies manifests.
    pub(crate) async fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        apply(self.client().await?, yaml).await?;
        Ok(())
    }

    /// Applies a kustomization, built by the kubectl that comes with the control plane (or the one in PATH).
    pub(crate) async fn apply_kustomization(&self, folder: &Path) -> anyhow::Result<()> {
        let mut kubectl = self.own.foundation().map_or_else(|| Command::new("kubectl"), Foundation::kubectl);
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
        self.own.foundation().map(Foundation::admin_kubeconfig)
    }

    /// Every request the API server answered, where it is ours to ask.
    pub(crate) fn requests(&self) -> anyhow::Result<Option<Vec<Request>>> {
        Ok(match &self.own {
            Own::Nothing => None,
            Own::Beside(one) => Some(one.requests()?),
            Own::Carried(several) => Some(several.requests()?),
        })
    }

    /// Takes out of a cluster that exists what the sandbox put in, by its label: nodes, pods, roles, policies, and the
    /// API definitions, which [`Self::join`] made sure are nobody else's. Does nothing to a control plane of our own.
    ///
    /// # Errors
    /// The cluster refuses.
    pub(crate) async fn leave(&self) -> anyhow::Result<()> {
        if !matches!(self.own, Own::Nothing) {
            return Ok(());
        }
        let client = self.client().await?;
        // From here on no controller makes new pods in them.
        let namespaces = delete_ours::<Namespace>(&client).await?;
        for namespace in &namespaces {
            // No kubelet is left that could end them gently.
            let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace.name_any());
            pods.delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default()).await?;
        }
        remove_ours::<Node>(&client).await?;
        await_gone::<Namespace>(&client, &namespaces).await?;
        remove_ours::<CustomResourceDefinition>(&client).await?;
        remove_ours::<ValidatingAdmissionPolicyBinding>(&client).await?;
        remove_ours::<ValidatingAdmissionPolicy>(&client).await?;
        remove_ours::<FlowSchema>(&client).await?;
        remove_ours::<PriorityLevelConfiguration>(&client).await?;
        remove_ours::<ClusterRoleBinding>(&client).await?;
        remove_ours::<ClusterRole>(&client).await
    }
}

/// Refuses a cluster in which the sandbox would meet things that are not its own.
async fn make_sure_that_nothing_is_in_the_way(client: &Client, nodes: &[String]) -> anyhow::Result<()> {
    for definition in DEFINITIONS {
        if is_ours::<CustomResourceDefinition>(client, definition).await? == Some(false) {
            bail!("this cluster runs Bascule already ({definition} is there): give the sandbox a cluster without it");
        }
    }
    for namespace in NAMESPACES {
        if is_ours::<Namespace>(client, namespace).await? == Some(false) {
            bail!(
                "this cluster has a namespace {namespace} that is not the sandbox's: give the sandbox another cluster"
            );
        }
    }
    for node in nodes {
        if is_ours::<Node>(client, node).await? == Some(false) {
            bail!("this cluster has a node {node} that is not the sandbox's: give the sandbox another cluster");
        }
    }
    Ok(())
}

/// Whether an object was made by a sandbox; `None` when there is no such object.
async fn is_ours<K>(client: &Client, name: &str) -> anyhow::Result<Option<bool>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let object = Api::<K>::all(client.clone()).get_metadata_opt(name).await?;
    Ok(object.map(|object| object.labels().contains_key(SANDBOX_LABEL)))
}

/// Deletes what a sandbox made of a kind, and waits until it is gone.
async fn remove_ours<K>(client: &Client) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    let there = delete_ours::<K>(client).await?;
    await_gone(client, &there).await
}

async fn delete_ours<K>(client: &Client) -> anyhow::Result<Vec<PartialObjectMeta<K>>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let (how, ours) = (DeleteParams::default(), ListParams::default().labels(SANDBOX_LABEL));
    let objects: Api<K> = Api::all(client.clone());
    let there = objects.list_metadata(&ours).await?.items;
    // One by one: not every kind can be deleted as a collection.
    for object in there.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
        objects.delete(&object.name_any(), &how).await?;
    }
    Ok(there)
}

async fn await_gone<K>(client: &Client, objects: &[PartialObjectMeta<K>]) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
{
    for object in objects {
        let (name, uid) = (object.name_any(), object.uid().unwrap_or_default());
        let gone = await_condition(Api::<K>::all(client.clone()), &name, is_deleted(&uid));
        let Ok(gone) = timeout(REMOVAL_PATIENCE, gone).await else {
            bail!("{} {name} is still being removed after {} s", K::kind(&()), REMOVAL_PATIENCE.as_secs());
        };
        gone.with_context(|| format!("cannot watch the removal of {} {name}", K::kind(&())))?;
    }
    Ok(())
}
