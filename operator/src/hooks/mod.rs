//! The Jobs that a policy runs around the disruption of a node.

mod after;
mod left_over;
mod let_go;

pub(crate) use after::{begin, keep};
pub(crate) use left_over::LeftOver;
pub(crate) use let_go::LettingGo;

use crate::{
    apply::{ApplyError, Writer},
    gather::{Caches, Fact as _, JobFact, Key},
};
use bascule_api::Hook;
use bascule_facts::hook::{HOOK_GRANT, HOOK_LABEL, HOOK_NODE, HOOK_POLICY, HOOK_STAGE, HOOK_TTL, name_of, stage_text};
use bascule_planner::plan::HookOrder;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{Container, EnvVar};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{
    Api,
    api::{ListParams, PostParams},
};
use std::collections::BTreeMap;

/// How long a finished hook's Job is kept for people to look at, in seconds, unless its template says otherwise.
const KEEP_SECONDS: i32 = 3_600;

/// The Job of a hook, under a name that follows from node, grant, stage and hook: creating it twice gives one Job.
///
/// # Errors
/// What is wrong with the hook's template.
pub fn job(order: &HookOrder, hook: &Hook, owner: Option<OwnerReference>) -> Result<Job, String> {
    let mut spec: JobSpec =
        serde_json::from_value(hook.job.clone()).map_err(|error| format!("its job is no batch/v1 JobSpec: {error}"))?;
    let seconds = i64::try_from(hook.timeout.as_secs()).unwrap_or(i64::MAX);
    let limit = spec.active_deadline_seconds.map_or(seconds, |own| own.min(seconds));
    spec.active_deadline_seconds = Some(limit);
    // Until its grant is over nobody but a person may clear a Job away: what it came to would not be known, and a failed
    // one would run again by itself.
    let ttl = spec.ttl_seconds_after_finished.take().unwrap_or(KEEP_SECONDS);
    spec.backoff_limit.get_or_insert(2);
    let Some(pod) = spec.template.spec.as_mut() else { return Err("its job has no pod template".to_owned()) };
    if pod.restart_policy.is_none() {
        pod.restart_policy = Some("Never".to_owned());
    }
    let variables = [
        ("BASCULE_NODE", order.node.clone()),
        ("BASCULE_RELEASE", order.version.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("BASCULE_POLICY", order.policy.clone()),
    ];
    for container in pod.containers.iter_mut().chain(pod.init_containers.iter_mut().flatten()) {
        add(container, &variables);
    }
    let labels = BTreeMap::from([
        (HOOK_LABEL.to_owned(), order.hook.clone()),
        (HOOK_STAGE.to_owned(), stage_text(order.stage).to_owned()),
    ]);
    let annotations = BTreeMap::from([
        (HOOK_POLICY.to_owned(), order.policy.clone()),
        (HOOK_NODE.to_owned(), order.node.clone()),
        (HOOK_GRANT.to_owned(), order.grant.to_string()),
        (HOOK_TTL.to_owned(), ttl.to_string()),
    ]);
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(name(order)),
            namespace: Some(hook.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: None,
    })
}

fn add(container: &mut Container, variables: &[(&str, String)]) {
    let environment = container.env.get_or_insert_default();
    for (name, value) in variables {
        environment.retain(|variable| variable.name != *name);
        environment.push(EnvVar { name: (*name).to_owned(), value: Some(value.clone()), value_from: None });
    }
}

fn name(order: &HookOrder) -> String {
    name_of((&order.policy, &order.node), order.grant, order.stage, &order.hook)
}

/// Makes a Job, where it is not there.
///
/// # Errors
/// Also where a Job of that name is there and not the operator's, or is being deleted: nobody would see what it comes to.
pub(crate) async fn make(writer: &Writer, job: &Job) -> kube::Result<()> {
    let jobs: Api<Job> = Api::namespaced(writer.client.clone(), job.metadata.namespace.as_deref().unwrap_or_default());
    let params = PostParams { field_manager: Some(bascule_api::OPERATOR_MANAGER.to_owned()), ..PostParams::default() };
    let is_there = match jobs.create(&params, job).await {
        Ok(created) => {
            writer.metrics.wrote("Job");
            writer.world.jobs.written(&created);
            return Ok(());
        }
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => status,
        Err(error) => return Err(error),
    };
    let name = format!("metadata.name={}", job.metadata.name.as_deref().unwrap_or_default());
    let there = jobs.list(&ListParams::default().fields(&name)).await?.items;
    if there.iter().any(|job| job.metadata.deletion_timestamp.is_some() || JobFact::of(job).run.is_none()) {
        return Err(kube::Error::Api(is_there));
    }
    there.iter().for_each(|job| writer.world.jobs.written(job));
    Ok(())
}

/// Why the Job of a hook can't be made.
pub(crate) fn refused(order: &HookOrder, error: kube::Error) -> ApplyError {
    match error {
        // Of what is made nothing can be missing but its namespace, and nobody but a person takes away what has its name.
        kube::Error::Api(status) if status.code == 404 || status.reason == "AlreadyExists" => {
            ApplyError::Hook { hook: order.hook.clone(), reason: status.message.clone() }
        }
        error => ApplyError::of(format!("Job of hook {}", order.hook), error),
    }
}

/// What people are told of a Job that can't be written.
pub(crate) fn why(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        error => crate::one_line(error),
    }
}

/// Finished Jobs whose grant is over and that nothing clears away yet.
fn over(world: &Caches, left_over: &LeftOver) -> Vec<std::sync::Arc<JobFact>> {
    let mut over = world.jobs.select(|job| job.kept_for.is_some());
    over.retain(|job| {
        let Some(run) = &job.run else { return false };
        if run.node.is_empty() {
            let key = Key::cluster(&run.policy);
            // Whether its rollout is over can't be read.
            if world.policies.unreadable(&key).is_some() {
                return false;
            }
            let policy = world.policies.get(&key);
            if let Some(after) = &job.after
                && policy.as_ref().is_none_or(|policy| policy.uid != after.policy_uid)
            {
                return left_over.is_done_with(run, after);
            }
            let open = policy.as_ref().and_then(|policy| policy.status.maintenance.as_ref());
            return open.is_none_or(|open| open.number != run.grant);
        }
        let update = world.updates.get(&Key::cluster(&run.node));
        let spec = update.as_ref().map(|update| &update.facts.spec);
        let in_force = spec.filter(|spec| spec.disruption.is_some()).and_then(|spec| spec.grant.as_ref());
        in_force.is_none_or(|grant| grant.generation != run.grant)
    });
    first_of(world, over)
}

/// The same, and those that are looked at first come first. A Job of our name in a namespace that no policy means may be anybody's: it
/// comes last.
fn first_of(world: &Caches, mut jobs: Vec<std::sync::Arc<JobFact>>) -> Vec<std::sync::Arc<JobFact>> {
    jobs.sort_by_cached_key(|job| {
        let run = job.run.as_ref();
        let policy = run.and_then(|run| world.policies.get(&Key::cluster(&run.policy)));
        !policy
            .zip(run)
            .is_some_and(|(policy, run)| run.stage.hooks(&policy.spec.hooks).iter().any(|hook| run.is_of(hook)))
    });
    jobs
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_planner::snapshot::HookStage;

    fn order(node: &str) -> HookOrder {
        HookOrder {
            node: node.into(),
            policy: "workers".into(),
            grant: 3,
            stage: HookStage::BeforeDrain,
            hook: "move-vms".into(),
            version: Some("41.3.0".parse().unwrap()),
        }
    }

    fn hook(job: serde_json::Value) -> Hook {
        serde_json::from_value(serde_json::json!({
            "name": "move-vms", "namespace": "ops", "timeout": "90s", "job": job
        }))
        .unwrap()
    }

    #[test]
    fn the_job_knows_node_release_and_policy_and_has_a_deadline() {
        let template = serde_json::json!({"template": {"spec": {"containers": [
            {"name": "c", "image": "i", "env": [{"name": "BASCULE_NODE", "value": "forged"}]}]}}});
        let job = job(&order("n1"), &hook(template), None).unwrap();
        let spec = job.spec.unwrap();
        assert_eq!((spec.active_deadline_seconds, spec.ttl_seconds_after_finished), (Some(90), None));
        assert_eq!(job.metadata.annotations.unwrap()[HOOK_TTL], "3600");
        let pod = spec.template.spec.unwrap();
        assert_eq!(pod.restart_policy.as_deref(), Some("Never"));
        let environment: Vec<_> =
            pod.containers[0].env.iter().flatten().map(|v| (v.name.as_str(), v.value.as_deref().unwrap())).collect();
        assert_eq!(environment, [("BASCULE_NODE", "n1"), ("BASCULE_RELEASE", "41.3.0"), ("BASCULE_POLICY", "workers")]);
    }

    #[test]
    fn a_template_that_is_none_is_refused() {
        assert!(job(&order("n1"), &hook(serde_json::json!({"template": {}})), None).is_err());
        assert!(job(&order("n1"), &hook(serde_json::json!({"template": 3})), None).is_err());
    }
}
