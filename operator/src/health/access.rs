//! How a Prometheus server that does not answer everybody is asked: with what a Secret of the operator's own namespace
//! holds, under fixed keys. A Secret is read anew after a while, so that a token may be changed at any time.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{Api, Client};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long what a Secret held is used.
const FRESH: Duration = Duration::from_secs(30);
/// How many Secrets are kept.
const MOST: usize = 64;
/// A header under its name, e.g. `header.X-Scope-OrgID`.
const HEADER: &str = "header.";

/// A client with what it has to show.
#[derive(Debug, Clone)]
pub(super) struct Access {
    pub(super) client: reqwest::Client,
    pub(super) headers: HeaderMap,
    /// What must not be sent in the clear: the key it stands under.
    secret: Option<&'static str>,
}

impl Access {
    /// That the server may be shown it.
    pub(super) fn allows(&self, server: &str) -> Result<(), String> {
        match self.secret {
            Some(key) if !server.starts_with("https://") => {
                Err(format!("{key} is not sent over plain http: spec.health.prometheus has to be an https:// URL"))
            }
            _ => Ok(()),
        }
    }
}

type Known = HashMap<String, (Instant, Access)>;

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

    /// What a Secret gives, or what is wrong with it.
    pub(super) async fn of(&self, name: &str) -> Result<Access, String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some((_, access)) = known.filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(access);
        }
        let place = format!("Secret {}/{name}", self.namespace);
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
        // What is wrong may be mended at any time.
        if let Ok(access) = &access {
            known.insert(name.to_owned(), (Instant::now(), access.clone()));
        }
        access
    }

    /// Reads the Secret anew next time: the server did not take what it held.
    pub(super) fn forget(&self, name: &str) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
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
            secret = Some("token");
            headers.insert(AUTHORIZATION, sensitive("token", &format!("Bearer {token}"))?);
        }
        (None, Some(user), Some(password)) => {
            secret = Some("password");
            headers.insert(AUTHORIZATION, sensitive("password", &basic(user, password)?)?);
        }
        (Some(_), _, _) => return Err("it holds a token and a username or password: keep one of the two".to_owned()),
        _ => return Err("username and password belong together".to_owned()),
    }
    for key in data.keys().filter(|key| key.starts_with(HEADER)) {
        let name = key.strip_prefix(HEADER).unwrap_or_default();
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{key} names no HTTP header"))?;
        let value = text(key)?.unwrap_or_default();
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
    Ok(Access { client, headers, secret })
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

    #[test]
    fn keys_become_headers_and_what_is_secret_is_not_sent_in_the_clear() {
        install();
        let shown = |entries: &[(&str, &str)]| {
            let access = access(&secret(entries), &[]).unwrap();
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
        ] {
            let why = access(&secret(entries), &[]).unwrap_err();
            assert!(why.contains(part), "{entries:?}: {why}");
        }
    }
}
