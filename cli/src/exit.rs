//! Exit codes, which scripts rely on, and the one place that prints an error.

use std::io::Write as _;
use std::process::ExitCode;

use bascule_repository::publish::PublishError;

use crate::cluster::reach::Obstacle;

/// How a command ended. The help of `bascule` lists the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// 0: done, or what was asked for is so.
    Success,
    /// 1: it failed; the message says why.
    Failed,
    /// 3: what was looked at is refused (a signature, an expiry, a minimum source version, a disk that must not be written): the
    /// answer to the question is no.
    Refused,
    /// 4: the network, a server or another process is in the way; trying again later may help.
    TryAgain,
    /// 5: not done yet: it waits for signatures of people who hold other keys.
    Waiting,
    /// 130: interrupted by Ctrl-C.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        // 2 is taken by clap for a wrong command line.
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failed => 1,
            Exit::Refused => 3,
            Exit::TryAgain => 4,
            Exit::Waiting => 5,
            Exit::Interrupted => 130,
        })
    }
}

/// Prints an error with its causes on one line each, and gives the exit code for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Nobody can be told when stderr is gone.
    let _ = std::io::stderr().lock().write_all(crate::plain::shown(&text(error)).as_bytes());
    classify(error).into()
}

/// Each thing once: libraries like to print their cause within their own text.
fn text(error: &anyhow::Error) -> String {
    let mut shown: Vec<String> = Vec::new();
    for cause in error.chain() {
        let line = cause.downcast_ref::<kube::Error>().map_or_else(|| cause.to_string(), sentence);
        let line = line.trim().trim_end_matches('.').replace('\n', " ");
        if !line.is_empty() && !shown.iter().any(|before| before.contains(&line)) {
            shown.push(line);
        }
        if cause.is::<kube::Error>() {
            // What lies below is told by the sentence.
            break;
        }
    }
    let mut text = String::new();
    for (at, line) in shown.iter().enumerate() {
        text.push_str(if at == 0 { "bascule: " } else { "  because " });
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// What the API server or the way to it has to say, without the library's own names for it.
fn sentence(error: &kube::Error) -> String {
    match error {
        // Of a page of something else no word is meant for a terminal.
        kube::Error::Api(status) if status.message.trim_start().starts_with('<') => {
            format!("what answers {} there is no API server", status.code)
        }
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("the API server answers {} {}", status.code, status.reason),
        other => {
            if let Some(obstacle) = Obstacle::of(other) {
                return obstacle.sentence();
            }
            let mut innermost: &dyn std::error::Error = other;
            while let Some(cause) = innermost.source() {
                innermost = cause;
            }
            format!("no answer from the API server: {innermost}")
        }
    }
}

fn classify(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(error) = cause.downcast_ref::<bascule_repository::Error>() {
            return of_reading(error);
        }
        if let Some(error) = cause.downcast_ref::<PublishError>() {
            return match error {
                PublishError::Busy { .. } => Exit::TryAgain,
                PublishError::Verify(error) => of_reading(error),
                _ => Exit::Failed,
            };
        }
        if let Some(error) = cause.downcast_ref::<kube::Error>() {
            return of_cluster(error);
        }
        if cause.is::<bascule_image::release::channel::Refusal>() || cause.is::<bascule_disk::Refusal>() {
            return Exit::Refused;
        }
    }
    Exit::Failed
}

fn of_reading(error: &bascule_repository::Error) -> Exit {
    match error.fault() {
        error if error.is_transient() => Exit::TryAgain,
        // Nothing is wrong with the repository: what was asked for is not in it.
        bascule_repository::Error::Absent { .. } => Exit::Failed,
        bascule_repository::Error::Fetch(_) | bascule_repository::Error::Datastore { .. } => Exit::Failed,
        _ => Exit::Refused,
    }
}

fn of_cluster(error: &kube::Error) -> Exit {
    match error {
        // 429 and what a server says while it starts, stops or is behind a proxy that can't reach it.
        kube::Error::Api(status) if matches!(status.code, 429 | 500 | 502 | 503 | 504) => Exit::TryAgain,
        // Somebody else changed the object in between.
        kube::Error::Api(status) if status.code == 409 && status.reason == "Conflict" => Exit::TryAgain,
        error @ (kube::Error::HyperError(_) | kube::Error::Service(_)) if Obstacle::of(error).is_none() => {
            Exit::TryAgain
        }
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    fn status(code: u16, message: &str) -> kube::Error {
        let status: kube::core::Status =
            serde_json::from_value(serde_json::json!({"code": code, "message": message, "reason": "Because"})).unwrap();
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn an_error_of_the_api_server_is_said_once() {
        let error = Err::<(), _>(status(403, "nodes is forbidden: User \"a\" can't list it"))
            .context("can't list Nodes")
            .unwrap_err();
        assert_eq!(text(&error), "bascule: can't list Nodes\n  because nodes is forbidden: User \"a\" can't list it\n");
        assert_eq!(classify(&error), Exit::Failed);
        let mut conflict = status(409, "the object has been modified");
        if let kube::Error::Api(status) = &mut conflict {
            status.reason = "Conflict".to_owned();
        }
        assert_eq!(of_cluster(&conflict), Exit::TryAgain);
        assert_eq!(of_cluster(&status(409, "already exists")), Exit::Failed);
        for code in [429, 503] {
            assert_eq!(classify(&Err::<(), _>(status(code, "")).context("x").unwrap_err()), Exit::TryAgain);
        }
    }

    #[test]
    fn what_is_no_api_server_is_not_quoted_and_what_is_missing_here_is_not_tried_again() {
        let error =
            Err::<(), _>(status(404, "<!DOCTYPE html>\n<title>x</title>")).context("can't list Nodes").unwrap_err();
        assert_eq!(text(&error), "bascule: can't list Nodes\n  because what answers 404 there is no API server\n");
        let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let expired = kube::Error::Service(Box::new(std::io::Error::other(expired)));
        assert_eq!(of_cluster(&expired), Exit::Failed);
        assert!(text(&anyhow::Error::new(expired)).contains("not trusted: it has expired"));
        let away = kube::Error::Service(Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)));
        assert_eq!(of_cluster(&away), Exit::TryAgain);
    }

    #[test]
    fn another_publisher_at_work_is_no_failure_for_good() {
        let busy = PublishError::Busy { path: "repository".into() };
        assert_eq!(classify(&anyhow::Error::new(busy)), Exit::TryAgain);
    }
}
