//! How a program reaches the API server: the settings of a kubeconfig, with the proxy that `kubectl` would take.
//!
//! The client library also looks at `HTTPS_PROXY`, but asks `NO_PROXY` about the proxy and not about the server, and lets it
//! overrule the kubeconfig. Here the rules are those of client-go: `proxy-url` of the cluster, whatever the environment
//! says; else the environment, unless `NO_PROXY` names the server or the server is this machine (Go's net/http,
//! `ProxyFromEnvironment`).

mod cause;

pub use cause::cause;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use kube::Config;
use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig.
    #[error(transparent)]
    Kubeconfig(#[from] Box<KubeconfigError>),
    /// Neither a kubeconfig nor a pod's service account.
    #[error(transparent)]
    Nowhere(#[from] Box<InferConfigError>),
    /// A proxy that can't be used.
    #[error("the proxy {shown} of {origin} can't be used: write http://, https:// or socks5:// and a host")]
    Proxy {
        /// The proxy, without user and password.
        shown: String,
        /// Where it was named.
        origin: &'static str,
    },
}

/// The settings of a kubeconfig's context.
///
/// # Errors
/// [`ConnectError`].
pub async fn from_kubeconfig(file: Kubeconfig, options: &KubeConfigOptions) -> Result<Config, ConnectError> {
    let named = proxy_of(&file, options);
    let config = Config::from_custom_kubeconfig(file, options).await.map_err(Box::new)?;
    with_proxy(config, named.as_deref())
}

/// The settings of the user's own kubeconfig (`$KUBECONFIG`, `~/.kube/config`), or else those of a pod, which go through no
/// proxy: the API server is in the cluster's own network.
///
/// # Errors
/// [`ConnectError`].
pub async fn infer() -> Result<Config, ConnectError> {
    let options = KubeConfigOptions::default();
    let named = Kubeconfig::read().ok().map(|file| proxy_of(&file, &options));
    let config = Config::infer().await.map_err(Box::new)?;
    match named {
        Some(named) => with_proxy(config, named.as_deref()),
        None => Ok(config),
    }
}

/// `proxy-url` of the cluster that a context leads to.
fn proxy_of(file: &Kubeconfig, options: &KubeConfigOptions) -> Option<String> {
    let wanted = options.context.as_ref().or(file.current_context.as_ref())?;
    let context = file.contexts.iter().find(|one| one.name == *wanted).and_then(|one| one.context.as_ref());
    let cluster = options.cluster.as_ref().or(context.map(|context| &context.cluster))?;
    let cluster = file.clusters.iter().find(|one| one.name == *cluster)?.cluster.as_ref()?;
    cluster.proxy_url.clone().filter(|text| !text.is_empty())
}

fn with_proxy(mut config: Config, named: Option<&str>) -> Result<Config, ConnectError> {
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    config.proxy_url = proxy(&config.cluster_url, named, &environment)?;
    Ok(config)
}

/// The proxy on the way to a server: `named` by the kubeconfig, or by the environment.
///
/// # Errors
/// [`ConnectError::Proxy`].
pub fn proxy(
    server: &Uri,
    named: Option<&str>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Uri>, ConnectError> {
    if let Some(text) = named {
        return usable(text, "the kubeconfig's proxy-url").map(Some);
    }
    let either = |upper: &str, lower: &str| environment(upper).or_else(|| environment(lower));
    let secure = server.scheme_str() != Some("http");
    let (text, origin) = if secure {
        (either("HTTPS_PROXY", "https_proxy"), "HTTPS_PROXY")
    } else {
        (either("HTTP_PROXY", "http_proxy"), "HTTP_PROXY")
    };
    let Some(text) = text else { return Ok(None) };
    let except = either("NO_PROXY", "no_proxy").unwrap_or_default();
    // Asked only whether the server is excepted: with a proxy that is none the matcher would say that none is wanted.
    let matcher = Matcher::builder().all("http://proxy.invalid:1").no(except.as_str()).build();
    if this_machine(server) || matcher.intercept(server).is_none() {
        return Ok(None);
    }
    usable(&text, origin).map(Some)
}

fn this_machine(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Go takes a proxy without a scheme for one of http.
fn usable(text: &str, origin: &'static str) -> Result<Uri, ConnectError> {
    let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let parsed: Option<Uri> = full.parse().ok();
    let known = parsed.filter(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https" | "socks5")) && uri.host().is_some_and(|host| !host.is_empty())
    });
    // What may be a password is not shown.
    known.ok_or_else(|| ConnectError::Proxy { shown: text.rsplit('@').next().unwrap_or_default().to_owned(), origin })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(server: &str, named: Option<&str>, environment: &[(&str, &str)]) -> String {
        let read = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        match proxy(&server.parse().unwrap(), named, &read) {
            Ok(found) => found.map(|uri| uri.to_string()).unwrap_or_default(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_environment_decides_unless_no_proxy_names_the_server() {
        const PROXY: (&str, &str) = ("HTTPS_PROXY", "http://proxy.example:3128");
        const USED: &str = "http://proxy.example:3128/";
        let api = "https://api.example.com:6443";
        assert_eq!(through(api, None, &[PROXY]), USED);
        assert_eq!(through(api, None, &[("https_proxy", "proxy.example:3128")]), USED);
        assert_eq!(through(api, None, &[]), "");
        for except in ["api.example.com", ".example.com", "example.com", "*", "10.0.0.0/8, api.example.com"] {
            assert_eq!(through(api, None, &[PROXY, ("NO_PROXY", except)]), "", "{except}");
        }
        for except in ["proxy.example", "other.com", "10.0.0.0/8"] {
            assert_eq!(through(api, None, &[PROXY, ("NO_PROXY", except)]), USED, "{except}");
        }
        assert_eq!(through("https://10.1.2.3:6443", None, &[PROXY, ("no_proxy", "10.0.0.0/8")]), "");
        assert_eq!(through("https://[fd00::1]:6443", None, &[PROXY, ("NO_PROXY", "fd00::/8")]), "");
        // As Go has it, this machine needs no proxy.
        for own in ["https://127.0.0.1:6443", "https://localhost:6443", "https://[::1]:6443"] {
            assert_eq!(through(own, None, &[PROXY]), "", "{own}");
        }
        // Of the other scheme's proxy nothing is wanted.
        assert_eq!(through(api, None, &[("HTTP_PROXY", "http://other:1")]), "");
    }

    #[test]
    fn what_the_kubeconfig_names_is_taken_whatever_the_environment_says() {
        let environment = [("HTTPS_PROXY", "http://other:1"), ("NO_PROXY", "*")];
        let named = Some("socks5://bastion:1080");
        assert_eq!(through("https://api.example.com", named, &environment), "socks5://bastion:1080/");
        assert_eq!(through("https://127.0.0.1:1", named, &environment), "socks5://bastion:1080/");
    }

    #[test]
    fn a_proxy_that_is_none_is_named_without_its_password() {
        let said = through("https://api.example.com", Some("ftp://user:secret@files:21"), &[]);
        assert!(said.contains("files:21") && said.contains("proxy-url") && !said.contains("secret"), "{said}");
        assert!(through("https://api.example.com", None, &[("HTTPS_PROXY", "http://")]).contains("HTTPS_PROXY"));
    }

    #[test]
    fn the_proxy_is_that_of_the_contexts_cluster() {
        let text = "
current-context: a
clusters:
- {name: one, cluster: {server: https://one, proxy-url: 'http://p1:1'}}
- {name: two, cluster: {server: https://two}}
contexts: [{name: a, context: {cluster: one}}, {name: b, context: {cluster: two}}]
";
        let file = Kubeconfig::from_yaml(text).unwrap();
        assert_eq!(proxy_of(&file, &KubeConfigOptions::default()).as_deref(), Some("http://p1:1"));
        let other = KubeConfigOptions { context: Some("b".to_owned()), ..KubeConfigOptions::default() };
        assert_eq!(proxy_of(&file, &other), None);
    }
}
