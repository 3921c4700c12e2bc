//! How a Prometheus server that does not answer everybody is asked: with what a Secret of the operator's own namespace
//! holds, under fixed keys. A Secret is read anew after a while, so that a token may be changed at any time.
//!
//! Whoever writes a policy names a server and a Secret, and is not who wrote the Secret. So a Secret says itself which
//! servers may be shown what it holds, and nothing of it goes anywhere else.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client};
use reqwest::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHORIZATION};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use url::Url;

/// How long what a Secret held is used.
const FRESH: Duration = Duration::from_secs(30);
/// The same where it can't be used, or the server does not answer as it should: a gate may be asked for each of a thousand nodes, which
/// is no reason to read a Secret and to make a connection for each.
const AGAIN: Duration = Duration::from_secs(5);
/// How many Secrets are kept.
const MOST: usize = 64;
/// A header under its name, e.g. `header.X-Scope-OrgID`.
const HEADER: &str = "header.";
/// The servers that a Secret is for, one URL a line.
const SERVER: &str = "server";

/// A client with what it has to show.
#[derive(Debug, Clone)]
pub(super) struct Access {
    pub(super) client: reqwest::Client,
    pub(super) headers: HeaderMap,
    /// Who may be shown it, as whoever wrote the Secret says.
    servers: Vec<Url>,
    /// What must not be sent in the clear: the key it stands under.
    secret: Option<String>,
}

impl Access {
    /// That this server may be shown it. The whole URL counts: behind one host name, paths may lead to several servers.
    pub(super) fn allows(&self, server: &str) -> Result<(), String> {
        let asked = base(server).map_err(|why| format!("spec.health.prometheus {why}"))?;
        if !self.servers.contains(&asked) {
            return Err(format!(
                "it is not for {asked}: whoever may write it adds that URL to its key {SERVER}, one a line, if that server may \
                 see what it holds"
            ));
        }
        match &self.secret {
            Some(key) if asked.scheme() != "https" => {
                Err(format!("{key} is not sent over plain http: spec.health.prometheus has to be an https:// URL"))
            }
            _ => Ok(()),
        }
    }
}

/// A server's URL in the one form that is compared: nothing beside scheme, host, port and path.
fn base(text: &str) -> Result<Url, String> {
    let mut url = Url::parse(text.trim()).map_err(|error| format!("is no URL ({error})"))?;
    let plain =
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    if !plain || !matches!(url.scheme(), "http" | "https") {
        return Err("has to be an http:// or https:// URL without user, password, query and fragment".to_owned());
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// As of when what a Secret gave, or what was wrong with it, is so.
type Known = HashMap<String, (Instant, Result<Access, String>)>;

/// Accesses by the Secret they come from.
#[derive(Clone)]
pub(super) struct Accesses {
    secrets: Api<Secret>,
    namespace: String,
    extra_ca: Vec<reqwest::Certificate>,
    known: Arc<Mutex<Known>>,
}

impl std::fmt::Debug for Accesses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accesses").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Accesses {
    pub(super) fn new(client: Client, namespace: &str, extra_ca: Vec<reqwest::Certificate>) -> Self {
        let secrets = Api::namespaced(client, namespace);
        Self { secrets, namespace: namespace.to_owned(), extra_ca, known: Arc::default() }
    }

    /// What a Secret gives for a server, or what is wrong with it.
    pub(super) async fn of(&self, name: &str, server: &str) -> Result<Access, String> {
        let access = self.read(name).await?;
        access.allows(server).map_err(|why| format!("{}: {why}", self.place(name)))?;
        Ok(access)
    }

    fn place(&self, name: &str) -> String {
        format!("Secret {}/{name}", self.namespace)
    }

    async fn read(&self, name: &str) -> Result<Access, String> {
        if let Some(known) = self.known_of(name) {
            return known;
        }
        let place = self.place(name);
        let access = match self.secrets.get_opt(name).await {
            Ok(Some(secret)) => {
                access(&secret.data.unwrap_or_default(), &self.extra_ca).map_err(|why| format!("{place}: {why}"))
            }
            Ok(None) => Err(format!("{place} (spec.health.prometheusSecret) is not there")),
            Err(error) => Err(format!("{place} can't be read: {}", crate::one_line(&error))),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(name.to_owned(), (Instant::now(), access.clone()));
        access
    }

    fn known_of(&self, name: &str) -> Option<Result<Access, String>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, access) = known.get(name)?;
        // What is wrong may be mended at any time.
        let serves = if access.is_ok() { FRESH } else { AGAIN };
        (at.elapsed() < serves).then(|| access.clone())
    }

    /// Reads the Secret anew soon: the server did not take what it held, as it seems.
    pub(super) fn forget(&self, name: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.get(name).is_some_and(|(at, _)| at.elapsed() >= AGAIN) {
            known.remove(name);
        }
    }
}

fn access(data: &BTreeMap<String, ByteString>, extra_ca: &[reqwest::Certificate]) -> Result<Access, String> {
    let text = |key: &str| -> Result<Option<&str>, String> {
        let Some(bytes) = data.get(key) else { return Ok(None) };
        // Many a file ends with a new line that is not meant.
        let text = std::str::from_utf8(&bytes.0).map_err(|_| format!("{key} is no text"))?;
        Ok(Some(text.trim_end_matches(['\r', '\n'])))
    };
    let mut headers = HeaderMap::new();
    let mut secret = None;
    match (text("token")?, text("username")?, text("password")?) {
        (None, None, None) => {}
        (Some(token), None, None) => {
            secret = Some("token".to_owned());
            headers.insert(AUTHORIZATION, sensitive("token", &format!("Bearer {token}"))?);
        }
        (None, Some(user), Some(password)) => {
            secret = Some("password".to_owned());
            headers.insert(AUTHORIZATION, sensitive("password", &basic(user, password)?)?);
        }
        (Some(_), _, _) => return Err("it holds a token and a username or password: keep one of the two".to_owned()),
        _ => return Err("username and password belong together".to_owned()),
    }
    for key in data.keys().filter(|key| key.starts_with(HEADER)) {
        let name = key.strip_prefix(HEADER).unwrap_or_default();
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{key} names no HTTP header"))?;
        let value = text(key)?.unwrap_or_default();
        if [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(&name) {
            secret = Some(key.clone());
        }
        headers.insert(name, sensitive(key, value)?);
    }
    let mut client = super::client_builder().redirect(reqwest::redirect::Policy::none());
    client = match data.get("ca.crt") {
        Some(pem) => {
            let found = reqwest::Certificate::from_pem_bundle(&pem.0).unwrap_or_default();
            if found.is_empty() {
                return Err("ca.crt holds no PEM certificate".to_owned());
            }
            client.tls_certs_only(found)
        }
        None => client.tls_certs_merge(extra_ca.to_vec()),
    };
    match (data.get("tls.crt"), data.get("tls.key")) {
        (None, None) => {}
        (Some(certificate), Some(key)) => {
            let pem = [certificate.0.as_slice(), b"\n", key.0.as_slice()].concat();
            let identity = reqwest::Identity::from_pem(&pem)
                .map_err(|_| "tls.crt and tls.key are no PEM certificate and key".to_owned())?;
            client = client.identity(identity);
        }
        _ => return Err("tls.crt and tls.key belong together".to_owned()),
    }
    if headers.is_empty() && !["ca.crt", "tls.crt"].iter().any(|key| data.contains_key(*key)) {
        let keys = "token, username and password, header.<name>, ca.crt, tls.crt and tls.key";
        return Err(format!("it holds nothing of what may stand there: {keys}"));
    }
    let client = client.build().map_err(|error| crate::one_line(&error))?;
    let servers = text(SERVER)?.unwrap_or_default().lines().filter(|line| !line.trim().is_empty());
    let servers = servers.map(|line| base(line).map_err(|why| format!("in its key {SERVER}, '{}' {why}", line.trim())));
    Ok(Access { client, headers, servers: servers.collect::<Result<_, _>>()?, secret })
}

fn sensitive(key: &str, text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|_| format!("{key} holds what no HTTP header can"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// RFC 7617.
fn basic(user: &str, password: &str) -> Result<String, String> {
    if user.contains(':') {
        return Err("username holds a colon, which HTTP has no way to send".to_owned());
    }
    Ok(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(entries: &[(&str, &str)]) -> BTreeMap<String, ByteString> {
        entries.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec()))).collect()
    }

    fn install() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }

    #[tokio::test]
    async fn a_secret_is_read_anew_soon_and_not_for_each_question() {
        install();
        let client = Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap();
        let accesses = Accesses::new(client, "bascule-system", Vec::new());
        let works = || access(&secret(&[("token", "abc"), ("server", "https://p")]), &[]);
        let read = |age: Duration, access: Result<Access, String>| {
            let at = Instant::now().checked_sub(age).unwrap();
            accesses.known.lock().unwrap().insert("prometheus".to_owned(), (at, access));
        };
        let known = || accesses.known_of("prometheus").map(|known| known.is_ok());
        for (age, kept) in [(Duration::ZERO, Some(true)), (AGAIN, None)] {
            read(age, works());
            assert_eq!(known(), Some(true));
            accesses.forget("prometheus");
            assert_eq!(known(), kept, "a server that answers nobody, {age:?} after it was read");
        }
        read(FRESH, works());
        assert_eq!(known(), None);
        for (age, kept) in [(Duration::ZERO, Some(false)), (AGAIN, None)] {
            read(age, Err("it is not there".to_owned()));
            assert_eq!(known(), kept);
        }
    }

    #[test]
    fn keys_become_headers_and_what_is_secret_is_not_sent_in_the_clear() {
        install();
        let shown = |entries: &[(&str, &str)]| {
            let own = [("server", "https://p\nhttp://p\n")];
            let access = access(&secret(&[entries, &own].concat()), &[]).unwrap();
            let text = access.headers.get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
            (text, access)
        };
        let (bearer, access) = shown(&[("token", "abc\n"), ("header.X-Scope-OrgID", "team-a")]);
        assert_eq!(bearer.as_deref(), Some("Bearer abc"));
        assert_eq!(access.headers["x-scope-orgid"], "team-a");
        assert!(access.allows("https://p").is_ok() && access.allows("http://p").unwrap_err().contains("token"));
        // RFC 7617, section 2.
        let (basic, access) = shown(&[("username", "Aladdin"), ("password", "open sesame")]);
        assert_eq!(basic.as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert!(access.allows("http://p").is_err());
        let (_, tenant) = shown(&[("header.X-Scope-OrgID", "team-a")]);
        assert!(tenant.allows("http://p").is_ok());
        let (_, own) = shown(&[("header.authorization", "Token x")]);
        assert!(own.allows("http://p").unwrap_err().contains("header.authorization"));
    }

    #[test]
    fn a_secret_is_shown_to_the_servers_that_it_names_and_to_nobody_else() {
        install();
        let of = |server: &str| access(&secret(&[("token", "abc"), ("server", server)]), &[]).unwrap();
        let named = of("https://prometheus.example:9090/team-a/\n\nhttps://other.example");
        for same in [
            "https://prometheus.example:9090/team-a",
            "https://prometheus.example:9090/team-a/",
            "https://PROMETHEUS.example:9090/./team-a",
            "https://other.example:443",
            "https://other.example/",
        ] {
            assert_eq!(named.allows(same), Ok(()), "{same}");
        }
        for other in [
            "https://evil.example",
            "https://prometheus.example",
            "http://prometheus.example:9090/team-a",
            "https://prometheus.example:9091/team-a",
            "https://prometheus.example:9090",
            "https://prometheus.example:9090/team-b",
            "https://prometheus.example:9090/team-a/../team-b",
            "https://prometheus.example:9090/team-a/%2e%2e/team-b",
            "https://prometheus.example:9090/team-a@evil.example",
            "https://prometheus.example:9090\\@evil.example/team-a",
            "https://other.example.evil.example",
            "https://other.example:443@evil.example",
        ] {
            let why = named.allows(other).unwrap_err();
            assert!(why.contains("it is not for") || why.contains("without user"), "{other}: {why}");
        }
        // One that names nobody is for nobody.
        let nobody = access(&secret(&[("token", "abc")]), &[]).unwrap();
        assert!(nobody.allows("https://other.example").unwrap_err().contains("its key server"));
    }

    #[test]
    fn a_secret_that_can_not_be_used_says_what_is_wrong() {
        install();
        for (entries, part) in [
            (&[][..], "holds nothing"),
            (&[("tokem", "x")], "holds nothing"),
            (&[("token", "x"), ("username", "y")], "keep one"),
            (&[("username", "y")], "belong together"),
            (&[("tls.crt", "y")], "belong together"),
            (&[("tls.crt", "y"), ("tls.key", "z")], "no PEM"),
            (&[("ca.crt", "y")], "no PEM"),
            (&[("token", "a\u{7}b")], "no HTTP header can"),
            (&[("header.", "x")], "names no HTTP header"),
            (&[("username", "a:b"), ("password", "c")], "colon"),
            (&[("token", "x"), ("server", "prometheus:9090")], "in its key server"),
            (&[("token", "x"), ("server", "https://u:p@prometheus")], "without user"),
        ] {
            let why = access(&secret(entries), &[]).unwrap_err();
            assert!(why.contains(part), "{entries:?}: {why}");
        }
    }
}
