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

    fn pod(name: &str, waiting: Option<&str>, last_words: Option<&str>) -> Pod {
        Pod {
            namespace: "bascule-agents".to_owned(),
            name: "a-1".to_owned(),
            labels: std::sync::Arc::new([("app.kubernetes.io/name".to_owned(), name.to_owned())].into()),
            waiting: waiting.map(str::to_owned),
            last_words: last_words.map(str::to_owned),
            ..Pod::default()
        }
    }

    #[test]
    fn an_image_for_another_machine_is_named_with_what_mends_it() {
        let ended = pod("bascule-agent", Some("Error"), Some("exec /bascule-agent: exec format error"));
        let said = agent_pod_trouble([&ended], Some(Architecture::Arm64)).unwrap();
        assert_eq!(
            &*said,
            "the agent's pod bascule-agents/a-1 does not run: Error: exec /bascule-agent: exec format error. Its image is for \
             another architecture than its node, which is arm64: build one with `cargo xtask images --architecture`"
        );
    }

    #[test]
    fn an_image_that_is_not_there_is_named_and_a_pod_that_begins_or_is_another_s_is_not() {
        let pull = |name: &str| pod(name, Some("ErrImagePull"), Some("no such host"));
        let said = agent_pod_trouble([&pull("bascule-agent")], None).unwrap();
        assert_eq!(&*said, "the agent's pod bascule-agents/a-1 does not run: ErrImagePull: no such host");
        assert_eq!(agent_pod_trouble([&pod("bascule-agent", Some("ContainerCreating"), None)], None), None);
        assert_eq!(agent_pod_trouble([&pull("web")], None), None);
        assert_eq!(agent_pod_trouble([&pod("bascule-agent", None, None)], None), None);
    }
}
