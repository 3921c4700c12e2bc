//! Who asked the API server for what: its audit log, read back as counts. The proof that a component is quiet, or
//! writes no more than it may, comes from the server and not from the component.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::ControlPlaneError;

/// Metadata of every request once it is answered, and of a watch when it starts: a watch ends long after a test
/// wants to count it. What KWOK does for thousands of nodes and pods nobody counts.
pub(super) const POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1",
  "kind": "Policy",
  "omitStages": ["RequestReceived"],
  "rules": [
    {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*", "/metrics"]},
    {"level": "None", "users": ["kwok"]},
    {"level": "Metadata"}
  ]
}
"#;

/// One answered request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The user as authenticated.
    pub user: String,
    /// The account as which it asked, where it is not its own.
    pub impersonated: Option<String>,
    /// The Kubernetes verb: get, list, watch, create, update, patch, delete, …
    pub verb: String,
    /// `resource` or `resource/subresource`; the path for requests that name no resource.
    pub resource: String,
    /// The resource's group; empty for the core group, and where no resource is named.
    pub group: String,
    /// The namespace; empty where the request is for none or for all.
    pub namespace: String,
    /// The object's name where the request names one.
    pub name: String,
    /// What stands behind the path, as `limit=500&watch=true`; empty where nothing does.
    pub query: String,
    /// The HTTP status code.
    pub code: u16,
    /// When it was answered; for a watch, when it began.
    pub at: Option<DateTime<Utc>>,
}

impl Request {
    /// Whether it asks the server to change something.
    #[must_use]
    pub fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// Requests by user, then by "verb resource".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestCounts(pub BTreeMap<String, BTreeMap<String, u64>>);

impl RequestCounts {
    /// Counts `requests`.
    #[must_use]
    pub fn of(requests: &[Request]) -> Self {
        let mut counts = Self::default();
        for request in requests {
            let by_kind = counts.0.entry(request.user.clone()).or_default();
            *by_kind.entry(format!("{} {}", request.verb, request.resource)).or_default() += 1;
        }
        counts
    }

    /// All requests of one user.
    #[must_use]
    pub fn of_user(&self, user: &str) -> u64 {
        self.0.get(user).map_or(0, |by_kind| by_kind.values().sum())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    #[serde(rename = "auditID")]
    audit_id: String,
    verb: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    user: User,
    impersonated_user: Option<User>,
    object_ref: Option<ObjectRef>,
    response_status: Option<Status>,
    stage_timestamp: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ObjectRef {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    api_group: String,
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    code: u16,
}

/// Reads the audit log in `folder`, rotated files included, in the order of the answers.
pub(super) fn read(folder: &Path) -> Result<Vec<Request>, ControlPlaneError> {
    let mut seen = BTreeSet::new();
    let mut requests = Vec::new();
    for path in files(folder)? {
        let failed = |source| ControlPlaneError::Folder { path: path.clone(), source };
        for line in BufReader::new(File::open(&path).map_err(failed)?).lines() {
            // The last line may be half written: the server is still at it.
            let Ok(event) = serde_json::from_str::<Event>(&line.map_err(failed)?) else { continue };
            if !seen.insert(event.audit_id) {
                continue;
            }
            let (path, query) = event.request_uri.split_once('?').unwrap_or((event.request_uri.as_str(), ""));
            let query = query.to_owned();
            let object =
                event.object_ref.unwrap_or_else(|| ObjectRef { resource: path.to_owned(), ..ObjectRef::default() });
            let ObjectRef { resource, subresource, name, namespace, api_group: group } = object;
            let resource = if subresource.is_empty() { resource } else { format!("{resource}/{subresource}") };
            let code = event.response_status.map_or(0, |status| status.code);
            let (user, at) = (event.user.username, event.stage_timestamp);
            let impersonated = event.impersonated_user.map(|user| user.username);
            let verb = event.verb;
            requests.push(Request { user, impersonated, verb, resource, group, namespace, name, query, code, at });
        }
    }
    Ok(requests)
}

/// The server names rotated files `audit-<time>.log` and the current one `audit.log`, which sorts after them.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ControlPlaneError> {
    let failed = |source| ControlPlaneError::Folder { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "log") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_counts_once_and_a_half_written_line_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let watch = |stage: &str| {
            format!(
                r#"{{"auditID":"w","stage":"{stage}","verb":"watch","requestURI":"/api/v1/nodes?watch=1","user":{{"username":"u"}},"objectRef":{{"resource":"nodes"}},"responseStatus":{{"code":200}}}}"#
            )
        };
        let status = r#"{"auditID":"p","verb":"patch","requestURI":"/x","user":{"username":"u"},"objectRef":{"resource":"nodeupdates","subresource":"status","name":"n1"},"responseStatus":{"code":200},"stageTimestamp":"2026-11-22T13:20:17.000001Z"}"#;
        let text = format!("{}\n{status}\n{}\n{{\"auditID\":\"ha", watch("ResponseStarted"), watch("ResponseComplete"));
        std::fs::write(folder.path().join("audit.log"), text).unwrap();
        let requests = read(folder.path()).unwrap();
        assert_eq!(requests.len(), 2);
        assert_eq!((requests[0].query.as_str(), requests[1].query.as_str()), ("watch=1", ""));
        assert_eq!(requests[1].resource, "nodeupdates/status");
        assert_eq!(requests[1].at.map(|at| at.timestamp_subsec_micros()), Some(1));
        assert!(requests[1].writes() && !requests[0].writes());
        assert_eq!(RequestCounts::of(&requests).of_user("u"), 2);
    }
}
