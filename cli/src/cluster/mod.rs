//! The on-call engineer's commands. They read the leader's live report, or else the objects, and write Freezes and Rollbacks:
//! the rights of the ClusterRole `bascule-on-call` and the Role `bascule-live-report` are enough.

mod dashboard;
mod doctor;
mod explain;
mod facts;
#[cfg(test)]
mod fixture;
mod forecast;
mod freeze;
mod history;
mod live;
mod objects;
mod picture;
mod plan;
mod problem;
pub(crate) mod reach;
mod remedy;
mod retry;
mod rollback;
mod status;
mod unblock;
mod unfreeze;
mod version;
mod view;
mod wait;
mod watched;

pub(crate) use dashboard::Dashboard;
pub(crate) use doctor::Doctor;
pub(crate) use explain::Explain;
pub(crate) use forecast::Forecast;
pub(crate) use freeze::{Abort, Freeze, Hold, Pause};
pub(crate) use history::History;
pub(crate) use plan::Plan;
pub(crate) use retry::Retry;
pub(crate) use rollback::Rollback;
pub(crate) use status::Status;
pub(crate) use unblock::Unblock;
pub(crate) use unfreeze::{Resume, Unfreeze};
pub(crate) use version::Version;
pub(crate) use wait::Wait;

use crate::{exit::Exit, output};
use anyhow::Context as _;
use bascule_api as api;
use clap::Args;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::{
    Api, Client, Config,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use problem::Role;
use std::{path::PathBuf, time::Duration};

/// Objects asked for at once; larger clusters are read in pages.
const PAGE: u32 = 500;

/// How often an object is read anew and written when others, the operator itself among them, change it in between.
const TRIES: usize = 5;

/// Which cluster to talk to.
#[derive(Debug, Clone, Args)]
pub(crate) struct Connection {
    /// The kubeconfig file. Default: $KUBECONFIG, else ~/.kube/config, else the service account of the pod.
    #[arg(long, value_name = "FILE", global = true, help_heading = "Cluster")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig.
    #[arg(long, value_name = "NAME", global = true, help_heading = "Cluster")]
    context: Option<String>,
    /// The namespace of the operator.
    #[arg(
        short,
        long,
        value_name = "NAME",
        env = "BASCULE_NAMESPACE",
        default_value = api::OPERATOR_NAMESPACE,
        global = true,
        help_heading = "Cluster"
    )]
    namespace: String,
    /// How long the API server is waited for, for each request.
    #[arg(long, value_name = "DURATION", default_value = "60s", global = true, help_heading = "Cluster")]
    request_timeout: api::Duration,
}

/// The cluster as a command line names it, for commands that are to be typed next: they are for the same one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct SameCluster {
    /// What kubectl is told of it.
    kubectl: String,
    /// What `bascule` is.
    bascule: String,
}

impl SameCluster {
    /// A command of one of the two, as it is to be typed.
    fn line(&self, command: &str) -> String {
        match command.split_once(' ') {
            Some(("kubectl", rest)) => format!("kubectl{} {rest}", self.kubectl),
            Some(("bascule", rest)) => format!("bascule{} {rest}", self.bascule),
            _ => command.to_owned(),
        }
    }
}

/// A word as a shell takes it, whatever is in it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:@=+,%".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// How long it may take to reach the API server, TLS included.
const CONNECT: Duration = Duration::from_secs(10);

impl Connection {
    /// What the words of an unfinished line say of the cluster, the defaults for the rest.
    pub(crate) fn of_words(words: impl Iterator<Item = String>) -> Self {
        let words: Vec<String> = words.collect();
        let value = |option: &str| {
            let pairs = words.iter().zip(words.iter().skip(1));
            let apart = pairs.filter(|(name, _)| *name == option).map(|(_, value)| value.clone());
            let joined =
                words.iter().filter_map(|word| word.strip_prefix(option)?.strip_prefix('=').map(str::to_owned));
            apart.chain(joined).last()
        };
        Self {
            kubeconfig: value("--kubeconfig").map(PathBuf::from),
            context: value("--context"),
            namespace: value("--namespace").unwrap_or_else(|| api::OPERATOR_NAMESPACE.to_owned()),
            request_timeout: api::Duration::from_secs(2),
        }
    }

    /// What was said of the cluster, to be said again.
    fn same_cluster(&self) -> SameCluster {
        let option = |name: &str, value: &str| format!(" {name} {}", quoted(value));
        let mut kubectl = String::new();
        if let Some(file) = &self.kubeconfig {
            kubectl.push_str(&option("--kubeconfig", &file.to_string_lossy()));
        }
        if let Some(context) = &self.context {
            kubectl.push_str(&option("--context", context));
        }
        let mut bascule = kubectl.clone();
        // The operator's, which no command of kubectl is for.
        if self.namespace != api::OPERATOR_NAMESPACE {
            bascule.push_str(&option("--namespace", &self.namespace));
        }
        SameCluster { kubectl, bascule }
    }

    /// A command of kubectl or `bascule` that is to be typed next.
    fn line(&self, command: &str) -> String {
        self.same_cluster().line(command)
    }

    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let mut config = match &self.kubeconfig {
            Some(path) => {
                let unusable = || format!("can't use the kubeconfig {}", path.display());
                self.settings_of(Kubeconfig::read_from(path)).await.with_context(unusable)?
            }
            None if self.context.is_some() => self.settings_of(Kubeconfig::read()).await.context(reach::OWN)?,
            None => bascule_kubeconfig::infer().await.map_err(reach::without_settings)?,
        };
        let patience = self.request_timeout.to_std().max(Duration::from_secs(1));
        config.connect_timeout = Some(CONNECT.min(patience));
        config.read_timeout = Some(patience);
        // A follower's 503 says who leads, and a server's is told at once: whoever types decides whether to try again.
        config.default_retry = false;
        Client::try_from(config).context("can't set up the connection to the API server")
    }

    /// The settings of a kubeconfig's context.
    async fn settings_of(&self, file: Result<Kubeconfig, KubeconfigError>) -> anyhow::Result<Config> {
        let file = file.map_err(|error| reach::of_kubeconfig(&error))?;
        let known = file.contexts.iter().map(|one| one.name.as_str());
        if let Some(context) = &self.context
            && !known.clone().any(|name| name == context.as_str())
        {
            anyhow::bail!("it has no context {context}{}", problem::hint(context, known));
        }
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        bascule_kubeconfig::from_kubeconfig(file, &options).await.map_err(reach::without_settings)
    }
}

/// The object of a kind with this name.
///
/// # Errors
/// There is none; names that are near are said.
fn named<'a, K: kube::ResourceExt>(all: &'a [K], kind: &str, name: &str) -> anyhow::Result<&'a K> {
    all.iter().find(|object| object.name_any() == name).ok_or_else(|| {
        let names: Vec<_> = all.iter().map(K::name_any).collect();
        anyhow::anyhow!("there is no {kind} {name}{}", problem::hint(name, names.iter().map(String::as_str)))
    })
}

/// Changes fields of a policy's spec, for commands of admins. Refused if somebody changed the policy since it was read.
async fn change_spec(client: &Client, policy: &api::UpdatePolicy, spec: &serde_json::Value) -> anyhow::Result<()> {
    let version = policy.metadata.resource_version.clone();
    let patch = serde_json::json!({"metadata": {"resourceVersion": version}, "spec": spec});
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    let written =
        Api::<api::UpdatePolicy>::all(client.clone()).patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
    written.map(drop).map_err(|error| problem::told(error, "patch", "UpdatePolicies", Role::Admin))
}

/// What an admin agrees to before it is written: `once` reads, asks and writes, and says whether it did; it is given what was agreed
/// to before. `done` is told then.
async fn agree_and_change(
    connection: &Connection,
    done: &str,
    mut once: impl AsyncFnMut(&Client, &mut String) -> anyhow::Result<bool>,
) -> anyhow::Result<Exit> {
    let client = connection.client().await?;
    // Before anything is read: while it takes its time somebody else may change that.
    view::tell_if_nobody_leads(&client, connection).await;
    let mut agreed_to = String::new();
    if !against_others(async || once(&client, &mut agreed_to).await).await? {
        output::print("Nothing was changed.\n")?;
        return Ok(Exit::Failed);
    }
    output::print(done)?;
    Ok(Exit::Success)
}

/// Reads, decides and writes, anew as long as somebody else comes between the first and the last.
async fn against_others<T>(mut once: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    for _ in 1..TRIES {
        match once().await {
            Err(error) if problem::is_a_conflict(&error) => {}
            other => return other,
        }
    }
    once().await
}

/// Says what will be done and asks whether to go on; not a second time for what was agreed to before.
fn agreed(agreed_to: &mut String, sentence: String, yes: bool) -> anyhow::Result<bool> {
    if *agreed_to == sentence {
        return Ok(true);
    }
    output::say(&sentence);
    let agreed = output::confirmed("Continue", yes)?;
    if agreed {
        *agreed_to = sentence;
    }
    Ok(agreed)
}

async fn list<K>(client: &Client, what: &str) -> anyhow::Result<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    list_where(client, what, ListParams::default()).await
}

/// The same of those that `parameters` select.
async fn list_where<K>(client: &Client, what: &str, parameters: ListParams) -> anyhow::Result<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let api: Api<K> = Api::all(client.clone());
    let mut parameters = parameters.limit(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&parameters).await.map_err(|error| problem::told(error, "list", what, Role::OnCall))?;
        let next = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        all.extend(page.items);
        match next {
            Some(token) => parameters.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

/// The name the API server knows us by.
async fn user(client: &Client) -> kube::Result<Option<String>> {
    let api: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    Ok(review.status.and_then(|status| status.user_info).and_then(|user| user.username))
}

/// The same, for what is written in that name. Objects carry it as `requestedBy`, and the admission policy checks it. Where the API server
/// refuses to say, a stop is a stop all the same.
///
/// # Errors
/// When it does not answer at all.
async fn whoami(client: &Client) -> anyhow::Result<Option<String>> {
    match user(client).await {
        Ok(name) => Ok(name),
        Err(error) if !matches!(error, kube::Error::Api(_)) => {
            Err(problem::told(error, "create", "SelfSubjectReviews", Role::OnCall))
        }
        Err(error) => {
            let why = problem::told(error, "create", "SelfSubjectReviews", Role::OnCall);
            output::say(&format!(
                "who asks for it is not on record, as the API server does not say who you are: {why:#}"
            ));
            Ok(None)
        }
    }
}

/// A name that is not taken: generated by the API server from this prefix.
fn generated_name(prefix: &str) -> kube::api::ObjectMeta {
    kube::api::ObjectMeta { generate_name: Some(format!("{prefix}-")), ..kube::api::ObjectMeta::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unfinished_line_says_which_cluster_is_meant() {
        let of = |line: &str| Connection::of_words(line.split(' ').map(str::to_owned));
        let said = of("bascule --context prod explain --kubeconfig=K n");
        assert_eq!((said.context.as_deref(), said.kubeconfig), (Some("prod"), Some(PathBuf::from("K"))));
        assert_eq!(of("bascule explain").context, None);
        assert_eq!(of("bascule explain --context").context, None);
    }

    #[test]
    fn what_is_to_be_typed_next_is_for_the_same_cluster() {
        let of = |line: &str| Connection::of_words(line.split(' ').map(str::to_owned)).same_cluster();
        let named = of("bascule explain n1 --context prod --kubeconfig=K --namespace ns");
        assert_eq!(named.line("bascule retry n1"), "bascule --kubeconfig K --context prod --namespace ns retry n1");
        let logs = "kubectl --kubeconfig K --context prod -n shop logs job/x";
        assert_eq!(named.line("kubectl -n shop logs job/x"), logs);
        for line in ["bascule retry n1", "kubectl get nodes"] {
            assert_eq!(of("bascule explain n1").line(line), line);
        }
        assert_eq!([quoted("arn:aws:eks/x"), quoted("a b's")], ["arn:aws:eks/x", r"'a b'\''s'"]);
    }

    #[tokio::test]
    async fn whoever_comes_between_is_let_pass_a_few_times() {
        let answer = |code: u16, reason: &str| {
            let status = serde_json::json!({"code": code, "message": "because", "reason": reason});
            let error = kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()));
            problem::told(error, "patch", "UpdatePolicies", Role::Admin)
        };
        for (conflicts, tries) in [(0, 1), (TRIES - 1, TRIES), (TRIES, TRIES)] {
            let mut tried = 0;
            let done = against_others(async || {
                tried += 1;
                if tried <= conflicts { Err(answer(409, "Conflict")) } else { Ok(()) }
            })
            .await;
            assert_eq!((done.is_ok(), tried), (conflicts < TRIES, tries));
        }
        for (code, reason) in [(409, "AlreadyExists"), (403, "Forbidden"), (503, "ServiceUnavailable")] {
            let mut tried = 0;
            let done: anyhow::Result<()> = against_others(async || {
                tried += 1;
                Err(answer(code, reason))
            })
            .await;
            assert_eq!((done.is_err(), tried), (true, 1), "{reason}");
        }
    }

    #[test]
    fn what_was_agreed_to_is_asked_once_and_anything_else_anew() {
        let mut agreed_to = "as before".to_owned();
        assert!(agreed(&mut agreed_to, "as before".to_owned(), false).unwrap());
        assert!(agreed(&mut agreed_to, "otherwise".to_owned(), true).unwrap());
        assert_eq!(agreed_to, "otherwise");
    }
}
