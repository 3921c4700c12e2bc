//! Why a cluster can't be reached, where the fault is on this side: a kubeconfig, credentials, a certificate. In words that say what
//! to do, without the libraries' own names for it.

use anyhow::Error;
use bascule_kubeconfig::{ConnectError, cause};
use kube::client::{AuthError, RustlsTlsError};
use kube::config::{InferConfigError, KubeconfigError, LoadDataError};
use rustls::CertificateError;
use std::error::Error as StdError;
use std::io::ErrorKind;

const NO_CLUSTER: &str = "no cluster is configured: give --kubeconfig or set KUBECONFIG";
/// The kubeconfig that is used where none is named on the command line.
pub(super) const OWN: &str = "the kubeconfig of $KUBECONFIG, or else ~/.kube/config, can't be used";

/// Why there are no settings to reach a cluster with.
pub(super) fn without_settings(error: ConnectError) -> Error {
    match error {
        ConnectError::Kubeconfig(error) => of_kubeconfig(&error),
        ConnectError::Nowhere(error) => nowhere(&error),
        proxy @ ConnectError::Proxy { .. } => Error::new(proxy),
    }
}

/// What is wrong with a kubeconfig.
pub(super) fn of_kubeconfig(error: &KubeconfigError) -> Error {
    Error::msg(says(error))
}

/// Neither a kubeconfig that can be used, nor a pod.
fn nowhere(error: &InferConfigError) -> Error {
    match error.source().and_then(|cause| cause.downcast_ref::<KubeconfigError>()) {
        None | Some(KubeconfigError::FindPath) => Error::msg(NO_CLUSTER),
        Some(missing @ KubeconfigError::ReadConfig(why, _)) if why.kind() == ErrorKind::NotFound => {
            of_kubeconfig(missing).context(NO_CLUSTER)
        }
        Some(other) => of_kubeconfig(other).context(OWN),
    }
}

fn says(error: &KubeconfigError) -> String {
    match error {
        KubeconfigError::ReadConfig(why, path) if why.kind() == ErrorKind::NotFound => {
            format!("there is no file {}", path.display())
        }
        KubeconfigError::ReadConfig(why, path) => format!("{} can't be read: {why}", path.display()),
        KubeconfigError::Parse(why) => {
            let why = why.to_string();
            let why = why.lines().next().unwrap_or_default().trim_start_matches("error: ");
            format!("it is no YAML of the form that kubectl takes: {why}")
        }
        KubeconfigError::CurrentContextNotSet => {
            "it has no current context: give --context; `kubectl config get-contexts` lists those that it has"
                .to_owned()
        }
        KubeconfigError::LoadContext(name) => {
            format!("it has no context {name}: `kubectl config get-contexts` lists those that it has")
        }
        KubeconfigError::LoadClusterOfContext(name) => {
            format!("its context leads to the cluster {name}, which it does not have")
        }
        KubeconfigError::MissingClusterUrl => "its cluster has no server".to_owned(),
        KubeconfigError::ParseClusterUrl(_) => {
            "the server of its cluster is no address: it begins with https:// and a host".to_owned()
        }
        KubeconfigError::LoadCertificateAuthority(why) => {
            format!("the certificate authority of its cluster can't be used: {}", data(why))
        }
        KubeconfigError::LoadClientCertificate(why) => {
            format!("the certificate of its user can't be used: {}", data(why))
        }
        KubeconfigError::LoadClientKey(why) => format!("the key of its user can't be used: {}", data(why)),
        KubeconfigError::ParseCertificates(_) => "the certificate authority of its cluster is no PEM".to_owned(),
        other => other.to_string(),
    }
}

fn data(error: &LoadDataError) -> String {
    match error {
        LoadDataError::ReadFile(why, path) => format!("{}: {why}", path.display()),
        LoadDataError::DecodeBase64(_) => "what stands there is no base64".to_owned(),
        LoadDataError::NoBase64DataOrFile => "nothing stands there".to_owned(),
    }
}

/// Something on this side because of which the API server was not even asked, or did not get to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// There are no credentials: why.
    Credentials(String),
    /// What the kubeconfig says of the user is of no use: why.
    Kubeconfig(String),
    /// The server's certificate is not trusted: why.
    Certificate(String),
}

impl Obstacle {
    /// What stands in the way of a request that failed, if it is on this side.
    pub(crate) fn of(error: &kube::Error) -> Option<Self> {
        if let Some(error) = cause::<AuthError>(error) {
            return Some(Self::Credentials(credentials(error)));
        }
        if let Some(error) = cause::<KubeconfigError>(error) {
            return Some(Self::Kubeconfig(says(error)));
        }
        if let Some(error) = cause::<RustlsTlsError>(error) {
            return Some(Self::Kubeconfig(error.to_string()));
        }
        match cause::<rustls::Error>(error) {
            Some(rustls::Error::InvalidCertificate(why)) => Some(Self::Certificate(certificate(why))),
            _ => None,
        }
    }

    /// The same in a sentence.
    pub(crate) fn sentence(&self) -> String {
        match self {
            Self::Credentials(why) => format!("there are no credentials to ask with: {why}"),
            Self::Kubeconfig(why) => format!("the kubeconfig can't be used: {why}"),
            Self::Certificate(why) => format!("the certificate of the API server is not trusted: {why}"),
        }
    }

    /// What to do about it.
    pub(super) const fn advice(&self) -> &'static str {
        match self {
            Self::Credentials(_) => "log in again, or give another --context",
            Self::Kubeconfig(_) => "give another kubeconfig, or another --context",
            Self::Certificate(_) => "is it the right cluster (--context), and the kubeconfig of it as it is now?",
        }
    }
}

fn credentials(error: &AuthError) -> String {
    const PROGRAM: &str = "the program that the kubeconfig names for them";
    match error {
        AuthError::AuthExecStart(why) => format!("{PROGRAM} does not start: {why}"),
        // What it printed may be a token.
        AuthError::AuthExecRun { out, .. } => {
            let said = String::from_utf8_lossy(&out.stderr);
            let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty());
            let last = last.map_or_else(String::new, |line| format!(": {line}"));
            format!("{PROGRAM} failed ({}){last}", out.status)
        }
        AuthError::ExecPluginFailed | AuthError::AuthExecParse(_) => {
            format!("{PROGRAM} answers with something that is none")
        }
        AuthError::ReadTokenFile(why, path) => format!("{} can't be read: {why}", path.display()),
        other => other.to_string(),
    }
}

fn certificate(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "it is from an authority that the kubeconfig does not name".to_owned(),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "it is for another server".to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired, by this machine's clock".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it does not hold yet, by this machine's clock".to_owned()
        }
        _ => "it can't be verified".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::config::{KubeConfigOptions, Kubeconfig};
    use std::io;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{ExitStatus, Output};

    fn program(stderr: &str) -> kube::Error {
        let out = Output { status: ExitStatus::from_raw(256), stdout: b"a-token".to_vec(), stderr: stderr.into() };
        kube::Error::Auth(AuthError::AuthExecRun { cmd: "login".to_owned(), out: Box::new(out) })
    }

    #[test]
    fn what_is_in_the_way_on_this_side_is_told_from_a_server_that_does_not_answer() {
        let said = Obstacle::of(&program("one line\nnot logged in\n\n")).unwrap();
        let Obstacle::Credentials(why) = &said else { panic!("{said:?}") };
        assert_eq!(why, "the program that the kubeconfig names for them failed (exit status: 1): not logged in");
        assert!(said.advice().contains("log in again"));
        // As it is when they are asked for anew.
        let late = AuthError::ReadTokenFile(ErrorKind::NotFound.into(), "/run/token".into());
        let said = Obstacle::of(&kube::Error::Service(Box::new(late))).unwrap().sentence();
        assert!(said.contains("/run/token can't be read"), "{said}");

        let key = KubeconfigError::LoadClientKey(LoadDataError::NoBase64DataOrFile);
        let said = Obstacle::of(&kube::Error::InferKubeconfig(key)).unwrap().sentence();
        assert_eq!(said, "the kubeconfig can't be used: the key of its user can't be used: nothing stands there");

        let refused = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let said = Obstacle::of(&kube::Error::Service(Box::new(io::Error::other(refused)))).unwrap().sentence();
        assert!(said.contains("not trusted: it is from an authority"), "{said}");
        let away = io::Error::from(ErrorKind::ConnectionRefused);
        assert_eq!(Obstacle::of(&kube::Error::Service(Box::new(away))), None);
    }

    #[tokio::test]
    async fn a_kubeconfig_that_can_not_be_used_is_told_what_it_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("none");
        let error = Kubeconfig::read_from(&missing).unwrap_err();
        assert_eq!(of_kubeconfig(&error).to_string(), format!("there is no file {}", missing.display()));
        std::fs::write(&missing, "clusters: [").unwrap();
        let said = of_kubeconfig(&Kubeconfig::read_from(&missing).unwrap_err()).to_string();
        assert!(said.starts_with("it is no YAML") && !said.contains('\n'), "{said}");

        const WHOLE: &str = "current-context: c\nclusters: [{name: c, cluster: {server: 'https://a.example'}}]\n\
                             users: [{name: u, user: {token: t}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n";
        for (from, to, part) in [
            ("current-context: c\n", "", "it has no current context: give --context"),
            ("current-context: c", "current-context: d", "it has no context d: `kubectl config get-contexts`"),
            ("context: {cluster: c,", "context: {cluster: d,", "leads to the cluster d, which it does not have"),
            ("server: 'https://a.example'", "", "its cluster has no server"),
            ("https://a.example", "a b", "no address: it begins with https://"),
            (
                "server: 'https://a.example'",
                "server: 'https://a.example', certificate-authority: /none/ca.crt",
                "the certificate authority of its cluster can't be used: /none/ca.crt: No such file",
            ),
            (
                "server: 'https://a.example'",
                "server: 'https://a.example', certificate-authority-data: '?'",
                "what stands there is no base64",
            ),
        ] {
            let text = WHOLE.replace(from, to);
            assert_ne!(text, WHOLE, "{from}");
            let file = Kubeconfig::from_yaml(&text).unwrap();
            let error = bascule_kubeconfig::from_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap_err();
            let said = without_settings(error).to_string();
            assert!(said.contains(part), "{to}: {said}");
        }
    }
}
