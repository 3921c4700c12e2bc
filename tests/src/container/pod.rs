//! What a pod, as the API server holds it, says about its container: the environment by the downward API, volumes, user.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container as Wanted, Pod, Volume, VolumeMount, VolumeProjection};
use kube::ResourceExt as _;

use super::{Container, ContainerError, Image, Mount};

const HOSTS: &str = "/etc/hosts";

/// The node that a container runs on.
#[derive(Debug, Clone)]
pub struct Node {
    /// The machine's root, as pods see it by `hostPath`.
    pub root: PathBuf,
    /// Where volumes are kept.
    pub volumes: PathBuf,
    /// The API server, `https://<address>:<port>`.
    pub server: String,
    /// The authority of its certificate.
    pub authority: String,
    /// The token of the pod's service account.
    pub token: String,
    /// The ConfigMaps of the pod's namespace that it mounts, with their files.
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
}

impl Container {
    /// The first container of a pod on a node.
    ///
    /// # Errors
    /// When the pod asks for something that is not known here, or breaks the rules that a runtime enforces.
    pub fn of_pod(pod: &Pod, image: &Image, node: &Node) -> Result<Self, ContainerError> {
        let spec = pod.spec.clone().unwrap_or_default();
        let wanted = first(pod)?;
        let security = wanted.security_context.clone().unwrap_or_default();
        let pods = spec.security_context.clone().unwrap_or_default();
        let (image_uid, image_gid) = image.user.split_once(':').unwrap_or((&image.user, "0"));
        let id = |asked: Option<i64>, image: &str| asked.or_else(|| image.parse().ok()).unwrap_or_default();
        let uid = id(security.run_as_user.or(pods.run_as_user), image_uid);
        let gid = id(security.run_as_group.or(pods.run_as_group), image_gid);
        if security.run_as_non_root.or(pods.run_as_non_root) == Some(true) && uid == 0 {
            return Err(ContainerError::Pod("a user that is not root, and its image runs as root".to_owned()));
        }
        let command = wanted.command.clone().unwrap_or_else(|| image.entrypoint.clone());
        let mut words = command.into_iter().chain(wanted.args.clone().unwrap_or_else(|| image.arguments.clone()));
        let program = words.next().ok_or_else(|| ContainerError::Pod("no program".to_owned()))?;
        let mut mounts = Vec::new();
        for mount in wanted.volume_mounts.iter().flatten() {
            let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
            let volume = volume.ok_or_else(|| ContainerError::Pod(format!("no volume {}", mount.name)))?;
            mounts.push(bound(pod, volume, mount, node)?);
        }
        mounts.extend(names(pod, &mounts, node)?);
        let (host, port) = node.server.trim_start_matches("https://").rsplit_once(':').unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let of_cluster = [("KUBERNETES_SERVICE_HOST", host), ("KUBERNETES_SERVICE_PORT", port), ("HOME", "/")];
        let of_cluster = of_cluster.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let environment = image.environment.iter().cloned().chain(of_cluster).chain(environment(pod)?).collect();
        let narrow = |id: i64| u32::try_from(id).map_err(|_| ContainerError::Pod(format!("the id {id}")));
        Ok(Self {
            root: image.root.clone(),
            read_only_root: security.read_only_root_filesystem == Some(true),
            mounts,
            uid: narrow(uid)?,
            gid: narrow(gid)?,
            no_new_privileges: security.allow_privilege_escalation == Some(false),
            program: PathBuf::from(program),
            arguments: words.collect(),
            environment,
        })
    }
}

fn first(pod: &Pod) -> Result<&Wanted, ContainerError> {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    container.ok_or_else(|| ContainerError::Pod("no container".to_owned()))
}

/// The arguments of a pod's first container.
///
/// # Errors
/// When it has no container.
pub fn arguments(pod: &Pod) -> Result<Vec<String>, ContainerError> {
    Ok(first(pod)?.args.clone().unwrap_or_default())
}

/// The environment of a pod's first container as its manifest has it, the downward API resolved.
///
/// # Errors
/// When a variable comes from something that is not known here.
pub fn environment(pod: &Pod) -> Result<Vec<(String, String)>, ContainerError> {
    let value = |variable: &k8s_openapi::api::core::v1::EnvVar| -> Result<String, ContainerError> {
        let unknown = || ContainerError::Pod(format!("the variable {} from somewhere unknown", variable.name));
        let Some(source) = &variable.value_from else { return Ok(variable.value.clone().unwrap_or_default()) };
        let field = source.field_ref.as_ref().ok_or_else(unknown)?;
        match field.field_path.as_str() {
            "metadata.name" => Ok(pod.name_any()),
            "metadata.namespace" => Ok(pod.namespace().unwrap_or_default()),
            "spec.nodeName" => Ok(pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()),
            _ => Err(unknown()),
        }
    };
    first(pod)?.env.iter().flatten().map(|variable| Ok((variable.name.clone(), value(variable)?))).collect()
}

/// What an image can't know and a kubelet adds to every pod: who `localhost` is
/// (`pkg/kubelet/kubelet_pods.go`, `managedHostsFileContent`). A pod that brings a file of its own keeps it.
fn names(pod: &Pod, mounts: &[Mount], node: &Node) -> Result<Option<Mount>, ContainerError> {
    let target = PathBuf::from(HOSTS);
    if mounts.iter().any(|mount| target.starts_with(&mount.target)) {
        return Ok(None);
    }
    let folder = node.volumes.join(pod.uid().unwrap_or_default()).join("etc");
    // A cluster of IPv6 alone gives its pods no address of the other kind.
    let known = match node.server.contains('[') {
        true => "::1\tlocalhost\n::1",
        false => "127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.0.1",
    };
    let content = format!("{known}\t{}\n", pod.name_any());
    written(&folder, [(&"hosts".to_owned(), &content)])?;
    Ok(Some(Mount { source: folder.join("hosts"), target, read_only: false }))
}

/// Makes a volume, and says where the container sees it.
fn bound(pod: &Pod, volume: &Volume, mount: &VolumeMount, node: &Node) -> Result<Mount, ContainerError> {
    let folder = node.volumes.join(pod.uid().unwrap_or_default()).join(&volume.name);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ContainerError::File { path, source }
    };
    let source = if volume.empty_dir.is_some() {
        fs::create_dir_all(&folder).map_err(failed(&folder))?;
        // A kubelet lets every user write to it.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).map_err(failed(&folder))?;
        folder
    } else if let Some(host) = &volume.host_path {
        let path = node.root.join(host.path.trim_start_matches('/'));
        if host.type_.as_deref() == Some("DirectoryOrCreate") {
            fs::create_dir_all(&path).map_err(failed(&path))?;
        }
        fs::metadata(&path).map_err(failed(&path))?;
        path
    } else if let Some(projected) = &volume.projected {
        let files = projected.sources.iter().flatten().map(|source| projection(pod, source, node));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        written(&folder, files.iter().map(|(name, content)| (name, content)))?;
        folder
    } else if let Some(map) = &volume.config_map {
        let files = node.config_maps.get(&map.name);
        let files =
            files.ok_or_else(|| ContainerError::Pod(format!("the ConfigMap {}, which is not there", map.name)))?;
        written(&folder, files)?;
        folder
    } else {
        return Err(ContainerError::Pod(format!("the volume {} of an unknown kind", volume.name)));
    };
    Ok(Mount { source, target: PathBuf::from(&mount.mount_path), read_only: mount.read_only == Some(true) })
}

/// Writes what a pod may read and not change.
fn written<'a>(folder: &Path, files: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<(), ContainerError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ContainerError::File { path, source }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    for (name, content) in files {
        let path = folder.join(name);
        fs::write(&path, content).map_err(failed(&path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).map_err(failed(&path))?;
    }
    Ok(())
}

/// What the admission of service accounts mounts into every pod.
fn projection(pod: &Pod, source: &VolumeProjection, node: &Node) -> Result<(String, String), ContainerError> {
    if let Some(token) = &source.service_account_token {
        return Ok((token.path.clone(), node.token.clone()));
    }
    if source.config_map.as_ref().is_some_and(|map| map.name == "kube-root-ca.crt") {
        return Ok(("ca.crt".to_owned(), node.authority.clone()));
    }
    if source.downward_api.is_some() {
        return Ok(("namespace".to_owned(), pod.namespace().unwrap_or_default()));
    }
    Err(ContainerError::Pod("a projection of an unknown kind".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(env: serde_json::Value) -> Pod {
        let spec = json!({"nodeName": "n1", "containers": [{"name": "c", "env": env}]});
        let metadata = json!({"name": "p", "namespace": "ns"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn the_downward_api_is_resolved_and_nothing_is_guessed() {
        let from = |path: &str| json!({"fieldRef": {"fieldPath": path}});
        let known = json!([
            {"name": "A", "value": "a"}, {"name": "N", "valueFrom": from("spec.nodeName")},
            {"name": "S", "valueFrom": from("metadata.namespace")}, {"name": "P", "valueFrom": from("metadata.name")},
        ]);
        let pairs = environment(&pod(known)).unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("A", "a"), ("N", "n1"), ("S", "ns"), ("P", "p")]);
        let unknown = json!([{"name": "U", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
        assert!(environment(&pod(unknown)).unwrap_err().to_string().contains("the variable U"));
    }
}
