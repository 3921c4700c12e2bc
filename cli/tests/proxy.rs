//! Which way `bascule` goes to the API server: the program itself, and a listener that notes what a proxy is asked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

/// What a proxy hears while `bascule status` runs, if anything. `environment` may speak of it as PROXY; so may the
/// kubeconfig's cluster.
fn heard(cluster: &str, environment: &[(&str, &str)]) -> Option<String> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            let _ = sender.send(line.trim().to_owned());
            let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n");
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let kubeconfig = folder.path().join("kubeconfig");
    let cluster = cluster.replace("PROXY", &address);
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{{cluster}}}}}]\n\
         users: [{{name: u, user: {{token: t}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
    );
    fs::write(&kubeconfig, text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bascule"));
    command.arg("status").arg("--kubeconfig").arg(&kubeconfig);
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY"] {
        command.env_remove(name);
    }
    command.envs(environment.iter().map(|(name, value)| (*name, value.replace("PROXY", &address))));
    let output = command.output().unwrap();
    assert!(!output.status.success(), "there is no API server to answer");
    receiver.recv_timeout(Duration::from_millis(100)).ok()
}

#[test]
fn the_api_server_is_reached_as_kubectl_reaches_it() {
    const SERVER: &str = "server: 'https://api.invalid:6443'";
    let asked = Some("CONNECT api.invalid:6443 HTTP/1.1".to_owned());
    assert_eq!(heard(SERVER, &[("HTTPS_PROXY", "http://PROXY")]), asked);
    assert_eq!(heard(SERVER, &[("HTTPS_PROXY", "http://PROXY"), ("NO_PROXY", "127.0.0.1")]), asked);
    assert_eq!(heard(SERVER, &[("HTTPS_PROXY", "http://PROXY"), ("NO_PROXY", ".invalid")]), None);
    let named = format!("{SERVER}, proxy-url: 'http://PROXY'");
    assert_eq!(heard(&named, &[("NO_PROXY", "*")]), asked);
    // This machine needs no proxy.
    assert_eq!(heard("server: 'https://127.0.0.1:1'", &[("HTTPS_PROXY", "http://PROXY")]), None);
}
