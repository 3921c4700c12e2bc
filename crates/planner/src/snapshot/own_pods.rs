//! Why a pod of Bascule's own does not run. What should run there can't say it: its image may be for another machine, or not
//! be there at all. The kubelet has said it of the pod.

use crate::drain::Pod;
use bascule_api::Architecture;
use std::sync::Arc;

/// The label by which pods of the agent are known (manifests/agent/daemonset.yaml), and its value.
const LABEL: (&str, &str) = ("app.kubernetes.io/name", "bascule-agent");
/// A container is being made: nothing is wrong.
const BEGINNING: [&str; 2] = ["ContainerCreating", "PodInitializing"];
/// What Linux says of a program that is for another processor (`ENOEXEC`), in the words of every container runtime.
const OTHER_MACHINE: &str = "exec format error";

/// Why the agent's pod on a node of this architecture does not run, with what mends it where that is known. `None` where it
/// runs, begins, or there is none.
pub fn agent_pod_trouble<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    architecture: Option<Architecture>,
) -> Option<Arc<str>> {
    let is_agent = |pod: &&Pod| pod.labels.get(LABEL.0).is_some_and(|name| name == LABEL.1) && pod.deletes_at.is_none();
    let trouble = pods.into_iter().filter(is_agent).find_map(|pod| pod_trouble(pod, architecture))?;
    Some(format!("the agent's pod {trouble}").into())
}

/// The same of any pod, beginning with its `namespace/name`.
#[must_use]
pub fn pod_trouble(pod: &Pod, architecture: Option<Architecture>) -> Option<String> {
    let why = pod.waiting.as_deref().filter(|why| !pod.ready && !BEGINNING.contains(why))?;
    let mut text = format!("{} does not run: {why}", pod.path());
    let words = pod.last_words.as_deref().unwrap_or_default();
    if !words.is_empty() {
        text.push_str(&format!(": {words}"));
    }
    if words.contains(OTHER_MACHINE) {
        let node = architecture.map_or_else(String::new, |architecture| format!(", which is {architecture}"));
        text.push_str(&format!(
            ". Its image is for another architecture than its node{node}: build one with \
             `cargo xtask images --architecture`"
        ));
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1;
    use serde_json::{Value, json};

    fn pod(name: &str, state: &Value) -> Pod {
        let raw: v1::Pod = serde_json::from_value(json!({
            "metadata": {"name": "a-1", "namespace": "bascule-agents", "labels": {"app.kubernetes.io/name": name}},
            "spec": {"nodeName": "n1", "containers": []},
            "status": {"phase": "Running", "containerStatuses":
                [{"name": "agent", "image": "", "imageID": "", "ready": false, "restartCount": 2, "state": state}]}
        }))
        .unwrap();
        Pod::from_kubernetes(&raw)
    }

    #[test]
    fn an_image_for_another_machine_is_named_with_what_mends_it() {
        let ended = json!({"terminated": {
            "exitCode": 255, "reason": "Error", "message": "exec /bascule-agent: exec format error\n"
        }});
        let said = agent_pod_trouble([&pod("bascule-agent", &ended)], Some(Architecture::Arm64)).unwrap();
        assert_eq!(
            &*said,
            "the agent's pod bascule-agents/a-1 does not run: Error: exec /bascule-agent: exec format error. Its image is for \
             another architecture than its node, which is arm64: build one with `cargo xtask images --architecture`"
        );
    }

    #[test]
    fn an_image_that_is_not_there_is_named_and_a_pod_that_begins_or_is_another_s_is_not() {
        let pull = json!({"waiting": {"reason": "ErrImagePull", "message": "no such host"}});
        let said = agent_pod_trouble([&pod("bascule-agent", &pull)], None).unwrap();
        assert_eq!(&*said, "the agent's pod bascule-agents/a-1 does not run: ErrImagePull: no such host");
        let begins = json!({"waiting": {"reason": "ContainerCreating"}});
        assert_eq!(agent_pod_trouble([&pod("bascule-agent", &begins)], None), None);
        assert_eq!(agent_pod_trouble([&pod("web", &pull)], None), None);
        assert_eq!(agent_pod_trouble([&pod("bascule-agent", &json!({"running": {}}))], None), None);
    }
}
