//! Hooks: Jobs before the drain and after the commit, made by the real Job controller from the policy's templates.

use crate::agent::Habit;
use crate::world::Cluster;
use bascule_api::{NodeUpdate, RolloutState, UpdatePolicy, WaitReason, conditions};
use futures::StreamExt as _;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod, ResourceQuota};
use k8s_openapi::api::rbac::v1::RoleBinding;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Arc, Mutex};

fn hook(name: &str, timeout: &str, ends: &str) -> Value {
    json!([{"name": name, "namespace": "default", "timeout": timeout, "job": {"template": {
        "metadata": {"labels": {"ends": ends}},
        "spec": {
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "hook", "image": "example.invalid/hook"}],
        },
    }}}])
}

/// Containers end only by themselves, and the kubelet stand-in has none: the pods of hooks that shall end do so here.
fn end_hooks(world: &Cluster) -> tokio::task::JoinHandle<()> {
    end_pods(world, "well", 0)
}

/// Ends the pods of hooks with a label, the first of them badly.
fn end_pods(world: &Cluster, label: &str, badly: usize) -> tokio::task::JoinHandle<()> {
    let label = format!("ends={label}");
    let mut ended: std::collections::BTreeMap<String, &str> = std::collections::BTreeMap::new();
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "default");
    tokio::spawn(async move {
        let ending = watcher::Config::default().labels(&label);
        let mut seen = pin!(watcher(pods.clone(), ending).default_backoff().applied_objects());
        while let Some(event) = seen.next().await {
            let Ok(pod) = event else { continue };
            if pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running") {
                let word = if ended.len() < badly { "Failed" } else { "Succeeded" };
                let word = *ended.entry(pod.name_any()).or_insert(word);
                let over = json!({"status": {"phase": word}});
                let _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&over)).await;
            }
        }
    })
}

/// A Job with a hook's name, labels and annotations, in a namespace that comes before that of the hook. It fails at once.
async fn forge(world: &Cluster, job: &Job) {
    world.control_plane.apply("{apiVersion: v1, kind: Namespace, metadata: {name: a-tenant}}").await.unwrap();
    let forged: Job = serde_json::from_value(json!({
        "metadata": {"name": job.name_any(), "labels": job.labels(), "annotations": job.annotations()},
        "spec": {
            "activeDeadlineSeconds": 1,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "example.invalid/c"}]}},
        },
    }))
    .unwrap();
    let jobs: Api<Job> = Api::namespaced(world.client.clone(), "a-tenant");
    jobs.create(&PostParams::default(), &forged).await.unwrap();
    let failed = |job: Option<&Job>| {
        let status = job.and_then(|job| job.status.as_ref());
        status.is_some_and(|status| status.conditions.iter().flatten().any(|one| one.type_ == "Failed"))
    };
    world.until(jobs, &job.name_any(), "failed", failed).await;
}

fn only(node: &str, hooks: Value) -> Value {
    json!({"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": node}}, "hooks": hooks})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_before_the_drain_and_after_the_commit_and_a_slow_one_gives_the_node_up() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.machine("n2", "b", Habit::Good).await;
    let _operator = world.operator("first").await;
    let both = json!({"beforeDrain": hook("move-vms", "2m", "well"), "afterCommit": hook("warm-cache", "2m", "well")});
    world.policy("good", only("n1", both)).await;
    world.until_reason("n1", WaitReason::Hook).await;
    let ends = end_hooks(&world);
    world.until_current("n1", "1.1").await;
    let jobs: Api<Job> = Api::namespaced(world.client.clone(), "default");
    let ran = jobs.list(&ListParams::default().labels("bascule.dev/hook")).await.unwrap().items;
    let mut names: Vec<String> = Vec::new();
    for job in &ran {
        let spec = job.spec.as_ref().unwrap();
        let environment = spec.template.spec.as_ref().unwrap().containers[0].env.clone().unwrap_or_default();
        let node = environment.iter().find(|one| one.name == "BASCULE_NODE").and_then(|one| one.value.clone());
        assert_eq!(node.as_deref(), Some("n1"));
        assert_eq!(spec.active_deadline_seconds, Some(120));
        assert_eq!(job.status.as_ref().and_then(|status| status.succeeded), Some(1), "{job:?}");
        names.push(job.labels()["bascule.dev/hook"].clone());
    }
    names.sort();
    assert_eq!(names, ["move-vms", "warm-cache"], "each ran once");

    // A hook that does not end in its time: the node was not touched, takes work, and is tried later.
    world.policy("slow", only("n2", json!({"beforeDrain": hook("too-slow", "4s", "never")}))).await;
    let given_up = |update: Option<&NodeUpdate>| {
        update
            .and_then(|update| update.spec.last_disruption.as_ref())
            .is_some_and(|last| last.given_up == 1 && last.message.contains("hook too-slow"))
    };
    world.until_update("n2", "given up", given_up).await;
    world.until_reason("n2", WaitReason::DrainBackoff).await;
    let node = Api::<Node>::all(world.client.clone()).get("n2").await.unwrap();
    assert!(node.spec.and_then(|spec| spec.unschedulable).is_none(), "was never cordoned, or not any more");
    let updates: Api<NodeUpdate> = Api::all(world.client.clone());
    assert_eq!(updates.get("n2").await.unwrap().status.unwrap().booted.unwrap().version.as_str(), "1.0");
    ends.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_in_a_namespace_whose_owner_did_not_allow_it_is_told_before_the_first_disruption() {
    let mut world = Cluster::new().await;
    let bindings: Api<RoleBinding> = Api::namespaced(world.client.clone(), "default");
    bindings.delete("bascule-hooks", &DeleteParams::default()).await.unwrap();
    world.machine("n1", "a", Habit::Good).await;
    let _operator = world.operator("first").await;
    world.policy("workers", json!({"hooks": {"afterCommit": hook("warm-cache", "2m", "well")}})).await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let named = |policy: Option<&UpdatePolicy>| {
        let text = serde_json::to_string(&policy.and_then(|policy| policy.status.as_ref())).unwrap();
        text.contains("spec.hooks.afterCommit[0].namespace: the operator may not create Jobs in the namespace default")
            && text.contains("--serviceaccount=bascule-system:bascule-operator")
    };
    world.until(policies, "workers", "told what it lacks", named).await;
    let update: Option<NodeUpdate> = Api::all(world.client.clone()).get_opt("n1").await.unwrap();
    assert!(update.is_none_or(|update| update.spec.disruption.is_none()));
    // The owner agrees; the first node goes.
    world.control_plane.apply(crate::world::HOOKS).await.unwrap();
    let ends = end_hooks(&world);
    world.until_current("n1", "1.1").await;
    ends.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_succeeded_stays_done_and_a_failed_one_waits_for_a_person() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let jobs: Api<Job> = Api::namespaced(world.client.clone(), "default");
    let seen = Arc::new(Mutex::new(BTreeSet::new()));
    let (all, noted) = (jobs.clone(), Arc::clone(&seen));
    let watching = tokio::spawn(async move {
        let mut jobs = pin!(watcher(all, watcher::Config::default().labels("bascule.dev/hook")).applied_objects());
        while let Some(event) = jobs.next().await {
            let Ok(job) = event else { continue };
            noted.lock().unwrap().insert((job.labels()["bascule.dev/hook"].clone(), job.uid()));
        }
    });
    let ran = |name: &str| seen.lock().unwrap().iter().filter(|(hook, _)| hook == name).count();
    let ends = [end_pods(&world, "well", 0), end_pods(&world, "badly", 1)];
    let mut first = hook("first", "2m", "well");
    first[0]["job"]["ttlSecondsAfterFinished"] = json!(0);
    let mut before = first.as_array().unwrap().clone();
    before.extend(hook("second", "2m", "later").as_array().unwrap().clone());
    let mut after = hook("warm-cache", "2m", "badly");
    after[0]["job"]["backoffLimit"] = json!(0);
    after[0]["job"]["ttlSecondsAfterFinished"] = json!(0);
    let _operator = world.operator("first").await;
    world.policy("workers", only("n1", json!({"beforeDrain": before, "afterCommit": after}))).await;

    // Somebody clears the first one's Job away while the second runs.
    let done = |update: Option<&NodeUpdate>| {
        let disruption = update.and_then(|update| update.spec.disruption.as_ref());
        disruption.is_some_and(|disruption| disruption.hooks_done == ["beforeDrain/first"])
    };
    world.until_update("n1", "first done", done).await;
    let job = async |name: &str| {
        let labels = format!("bascule.dev/hook={name}");
        jobs.list(&ListParams::default().labels(&labels)).await.unwrap().items.pop()
    };
    let name = job("first").await.expect("it is kept while its grant is in force").name_any();
    jobs.delete(&name, &DeleteParams::background()).await.unwrap();
    world.eventually("the second runs", async || job("second").await.is_some()).await;
    // Who may create Jobs in some namespace has no say in what this one comes to.
    forge(&world, &job("second").await.unwrap()).await;
    let later = end_pods(&world, "later", 0);

    // The other one fails, is told of, and is run again by a person.
    let failed = |update: Option<&NodeUpdate>| {
        let rollout = update.and_then(|update| update.status.as_ref()?.rollout.as_ref());
        rollout.is_some_and(|one| one.state == RolloutState::Failed && one.reason == WaitReason::Hook)
    };
    world.until_update("n1", "failed after its commit", failed).await;
    let told = async || world.notes("HookFailed").await.iter().any(|note| note.contains("warm-cache"));
    world.eventually("it is an event that names the hook", told).await;
    let node = Api::<Node>::all(world.client.clone()).get("n1").await.unwrap();
    assert_eq!(node.spec.and_then(|spec| spec.unschedulable), Some(true), "it takes no work before the hook is done");
    assert_eq!((ran("first"), ran("second"), ran("warm-cache")), (1, 1, 1));
    let name = job("warm-cache").await.expect("a failed Job is kept").name_any();
    jobs.delete(&name, &DeleteParams::background()).await.unwrap();
    world.until_current("n1", "1.1").await;
    assert_eq!((ran("first"), ran("second"), ran("warm-cache")), (1, 1, 2));
    // Its grant is over: the time to live of the template counts again.
    world.eventually("the last Job is cleared away", async || job("warm-cache").await.is_none()).await;
    watching.abort();
    later.abort();
    ends.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_around_a_rollout_are_announced_and_run_before_the_first_node_and_after_the_last() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.machine("n2", "b", Habit::Good).await;
    let _operator = world.operator("first").await;
    let mut after = hook("unset-noout", "2m", "well");
    // One pod that fails is a Job that fails.
    after[0]["job"]["backoffLimit"] = json!(0);
    let around = json!({"beforeRollout": hook("set-noout", "2m", "later"), "afterRollout": after});
    world.policy("workers", json!({"hooks": around})).await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    let planned = |policy: Option<&UpdatePolicy>, wanted: bool| {
        let status = policy.and_then(|policy| policy.status.as_ref());
        let condition = status.and_then(|status| conditions::get(&status.conditions, conditions::MAINTENANCE_PLANNED));
        condition.is_some_and(|condition| (condition.status == "True") == wanted)
    };
    world.until(policies.clone(), "workers", "announced", |policy| planned(policy, true)).await;
    let jobs: Api<Job> = Api::namespaced(world.client.clone(), "default");
    let count = async |name: &str| {
        let labels = format!("bascule.dev/hook={name}");
        jobs.list(&ListParams::default().labels(&labels)).await.unwrap().items.len()
    };
    world.eventually("the hook before it runs", async || count("set-noout").await == 1).await;
    world.until_message("n1", WaitReason::Hook, "before a rollout").await;
    for node in ["n1", "n2"] {
        assert!(world.update(node).await.spec.grant.is_none(), "{node} was disrupted before the hook was done");
    }
    let ends = [end_pods(&world, "later", 0), end_pods(&world, "well", 1)];
    for node in ["n1", "n2"] {
        world.until_current(node, "1.1").await;
    }

    // The hook after them fails. No node waits for it, and all the same it is told, once, and is run again by a person.
    let failed = |policy: Option<&UpdatePolicy>| {
        let status = policy.and_then(|policy| policy.status.as_ref());
        let condition = status.and_then(|status| conditions::get(&status.conditions, conditions::MAINTENANCE_PLANNED));
        condition.is_some_and(|condition| condition.status == "True" && condition.reason == "HookFailed")
    };
    world.until(policies.clone(), "workers", "told of", failed).await;
    world.eventually("it is an event", async || !world.notes("MaintenanceHookFailed").await.is_empty()).await;
    let notes = world.notes("MaintenanceHookFailed").await;
    assert!(
        matches!(&notes[..], [note] if note.contains("unset-noout") && note.contains("delete the Job")),
        "{notes:?}"
    );
    let of_hook = ListParams::default().labels("bascule.dev/hook=unset-noout");
    let name = jobs.list(&of_hook).await.unwrap().items[0].name_any();
    jobs.delete(&name, &DeleteParams::background()).await.unwrap();
    world.until(policies, "workers", "over", |policy| planned(policy, false)).await;
    assert_eq!((count("set-noout").await, count("unset-noout").await), (1, 1), "once for both nodes");
    ends.iter().for_each(tokio::task::JoinHandle::abort);
}

/// A namespace whose owner lets hooks run there, and holds it to the strictest level of Pod Security.
const RESTRICTED: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: hooks, labels: {pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: bascule-hooks, namespace: hooks}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: bascule-hooks}
subjects: [{kind: ServiceAccount, name: bascule-operator, namespace: bascule-system}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_to_run_after_a_rollout_runs_though_its_policy_is_deleted() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let _operator = world.operator("first").await;
    let around = json!({"beforeRollout": hook("set-noout", "10m", "later"), "afterRollout": hook("unset-noout", "10m", "later")});
    world.policy("workers", json!({"hooks": around})).await;
    let jobs: Api<Job> = Api::namespaced(world.client.clone(), "default");
    let of = async |name: &str| {
        let labels = format!("bascule.dev/hook={name}");
        jobs.list(&ListParams::default().labels(&labels)).await.unwrap().items
    };
    world.eventually("the hook before it runs", async || of("set-noout").await.len() == 1).await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    policies.delete("workers", &DeleteParams::default()).await.unwrap();

    world.eventually("it is told", async || !world.notes("MaintenanceLeftOver").await.is_empty()).await;
    let notes = world.notes("MaintenanceLeftOver").await;
    assert!(notes.iter().all(|note| note.contains("unset-noout")), "{notes:?}");
    let runs = async || of("unset-noout").await.iter().any(|job| suspended(job) == Some(false));
    world.eventually("the hook after it runs", runs).await;
    let run = of("unset-noout").await;
    // With its policy it would be gone again.
    assert!(run.len() == 1 && run[0].owner_references().is_empty(), "{run:?}");
    let ends = end_pods(&world, "later", 0);
    world.eventually("it is over", async || !world.notes("MaintenanceEnded").await.is_empty()).await;
    ends.abort();
}

fn suspended(job: &Job) -> Option<bool> {
    job.spec.as_ref().and_then(|spec| spec.suspend)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_to_run_after_a_rollout_runs_though_its_policy_is_deleted_while_no_operator_is_there() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let first = world.operator("first").await;
    let mut after = hook("unset-noout", "10m", "later").as_array().unwrap().clone();
    after.extend(hook("unmute", "10m", "later").as_array().unwrap().clone());
    let around = json!({"beforeRollout": hook("set-noout", "10m", "never"), "afterRollout": after});
    world.policy("workers", json!({"hooks": around})).await;
    let jobs: Api<Job> = Api::namespaced(world.client.clone(), "default");
    let of = async |name: &str| {
        let labels = format!("bascule.dev/hook={name}");
        jobs.list(&ListParams::default().labels(&labels)).await.unwrap().items
    };
    world.eventually("the hook before it runs", async || of("set-noout").await.len() == 1).await;
    // What undoes it was there before, and waits.
    let mut kept = Vec::new();
    for name in ["unset-noout", "unmute"] {
        let there = of(name).await;
        let [job] = &there[..] else { panic!("no Job, or several, of {name}") };
        assert!(suspended(job) == Some(true) && job.owner_references().is_empty(), "{job:?}");
        kept.push(job.uid());
    }
    // Somebody deletes the one that is last, and an operator makes it again.
    let name = of("unmute").await[0].name_any();
    jobs.delete(&name, &DeleteParams::background()).await.unwrap();
    world.eventually("it is kept again", async || of("unmute").await.iter().any(|job| job.uid() != kept[1])).await;
    first.stop().await;
    let policies: Api<UpdatePolicy> = Api::all(world.client.clone());
    policies.delete("workers", &DeleteParams::default()).await.unwrap();
    world.until(policies, "workers", "gone", |policy| policy.is_none()).await;

    let _second = world.operator("second").await;
    world.eventually("it is told", async || !world.notes("MaintenanceLeftOver").await.is_empty()).await;
    let notes = world.notes("MaintenanceLeftOver").await;
    assert!(notes.iter().all(|note| note.ends_with("unset-noout, unmute")), "{notes:?}");
    let runs = async |name: &str| of(name).await.iter().any(|job| suspended(job) == Some(false));
    world.eventually("the first hook after it runs", async || runs("unset-noout").await).await;
    assert!(!runs("unmute").await, "one after the other");
    let ends = end_pods(&world, "later", 0);
    world.eventually("it is over", async || !world.notes("MaintenanceEnded").await.is_empty()).await;
    ends.abort();
    for name in ["unset-noout", "unmute"] {
        let there = of(name).await;
        let [job] = &there[..] else { panic!("no Job, or several, of {name}") };
        assert_eq!(job.status.as_ref().and_then(|status| status.succeeded), Some(1), "{job:?}");
    }
    assert_eq!(of("unset-noout").await[0].uid(), kept[0], "it is the one that was kept");
}

/// A namespace whose owner lets hooks run there, and that has room for none.
const FULL: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: full}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: bascule-hooks, namespace: full}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: bascule-hooks}
subjects: [{kind: ServiceAccount, name: bascule-operator, namespace: bascule-system}]
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: no-job, namespace: full}
spec: {hard: {count/jobs.batch: '0'}}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_begins_while_the_job_of_a_hook_after_a_rollout_can_not_be_made() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.control_plane.apply(FULL).await.unwrap();
    let _operator = world.operator("first").await;
    let mut after = hook("unset-noout", "10m", "well");
    after[0]["namespace"] = json!("full");
    let around = json!({"beforeRollout": hook("set-noout", "10m", "well"), "afterRollout": after});
    world.policy("workers", json!({"hooks": around})).await;
    let told = async || {
        let notes = world.notes("MaintenanceHookFailed").await;
        notes.iter().any(|note| note.contains("unset-noout") && note.contains("quota"))
    };
    world.eventually("people are told why nothing begins", told).await;
    let jobs: Api<Job> = Api::all(world.client.clone());
    let hooks = ListParams::default().labels("bascule.dev/hook");
    let made = jobs.list(&hooks).await.unwrap().items;
    assert!(made.is_empty(), "{made:?}");
    assert!(world.update("n1").await.spec.grant.is_none());
    // There is room.
    let quotas: Api<ResourceQuota> = Api::namespaced(world.client.clone(), "full");
    quotas.delete("no-job", &DeleteParams::default()).await.unwrap();
    let ends = end_hooks(&world);
    world.until_current("n1", "1.1").await;
    ends.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_the_end_of_a_rollout_follows_its_policy() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    let _operator = world.operator("first").await;
    let around =
        |after: Value| json!({"hooks": {"beforeRollout": hook("set-noout", "10m", "later"), "afterRollout": after}});
    world.policy("workers", around(hook("unset-noout", "10m", "well"))).await;
    let jobs: Api<Job> = Api::namespaced(world.client.clone(), "default");
    let of = async |name: &str| {
        let labels = format!("bascule.dev/hook={name}");
        jobs.list(&ListParams::default().labels(&labels)).await.unwrap().items
    };
    world.eventually("the hook before it runs", async || of("set-noout").await.len() == 1).await;
    // Edited in the middle: what the policy says when it is needed counts.
    world.change_policy("workers", around(hook("unset-noout", "7m", "well"))).await;
    let limit = |job: &Job| job.spec.as_ref().and_then(|spec| spec.active_deadline_seconds);
    let changed = async || matches!(&of("unset-noout").await[..], [job] if limit(job) == Some(7 * 60));
    world.eventually("its Job is another", changed).await;
    world.change_policy("workers", around(hook("tell", "10m", "well"))).await;
    let others = async || of("unset-noout").await.is_empty() && of("tell").await.len() == 1;
    world.eventually("it is another hook", others).await;
    assert_eq!(suspended(&of("tell").await[0]), Some(true));
    let ends = [end_pods(&world, "later", 0), end_hooks(&world)];
    world.until_current("n1", "1.1").await;
    let done =
        async || of("tell").await.iter().any(|job| job.status.as_ref().is_some_and(|one| one.succeeded == Some(1)));
    world.eventually("the hook after it ran", done).await;
    ends.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_whose_template_reaches_for_the_node_gets_no_pod_and_no_node_is_touched() {
    let mut world = Cluster::new().await;
    world.machine("n1", "a", Habit::Good).await;
    world.control_plane.apply(RESTRICTED).await.unwrap();
    let _operator = world.operator("first").await;
    let hook = json!([{"name": "root", "namespace": "hooks", "timeout": "6s", "job": {
        // What a Job's own object would say is not a template's to say.
        "metadata": {"namespace": "kube-system", "ownerReferences": [{"kind": "Node", "name": "n1", "uid": "u"}]},
        "template": {
            "metadata": {"namespace": "kube-system", "labels": {"hook": "root"}},
            "spec": {
                "nodeName": "n1",
                "hostPID": true,
                "serviceAccountName": "bascule-operator",
                "containers": [{
                    "name": "root", "image": "example.invalid/root", "securityContext": {"privileged": true},
                    "volumeMounts": [{"name": "host", "mountPath": "/host"}],
                }],
                "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
            },
        },
    }}]);
    world.policy("workers", json!({"hooks": {"beforeDrain": hook}})).await;
    let given_up = |update: Option<&NodeUpdate>| {
        update
            .and_then(|update| update.spec.last_disruption.as_ref())
            .is_some_and(|last| last.given_up >= 1 && last.message.contains("hook root"))
    };
    world.until_update("n1", "given up", given_up).await;
    let node = Api::<Node>::all(world.client.clone()).get("n1").await.unwrap();
    assert!(node.spec.and_then(|spec| spec.unschedulable).is_none(), "was never cordoned, or not any more");
    let jobs: Api<Job> = Api::all(world.client.clone());
    let made = jobs.list(&ListParams::default()).await.unwrap().items;
    assert!(!made.is_empty());
    for job in &made {
        assert_eq!(job.namespace().as_deref(), Some("hooks"), "{job:?}");
        assert!(job.owner_references().iter().all(|owner| owner.name != "n1" || owner.uid != "u"), "{job:?}");
    }
    let pods: Api<Pod> = Api::all(world.client.clone());
    let reached = pods.list(&ListParams::default().labels("hook=root")).await.unwrap().items;
    assert!(reached.is_empty(), "{reached:?}");
}
