//! What a request that failed means for the person at the terminal, and what to do about it.

use super::reach::Obstacle;
use anyhow::Error;

/// The role that a person needs for something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Looks, stops, goes back.
    OnCall,
    /// Writes policies.
    Admin,
}

impl Role {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::OnCall => "bascule-on-call",
            Self::Admin => "bascule-admin",
        }
    }
}

/// The error, under a sentence that says what could not be done and how it can.
pub(super) fn told(error: kube::Error, verb: &str, what: &str, role: Role) -> Error {
    let sentence = match &error {
        kube::Error::Api(status) => match status.code {
            401 => "the API server does not know you: log in again, or give another --context".to_owned(),
            403 if !lacks_a_right(status) => format!(
                "a rule of the cluster does not take it; can't {verb} {what}. What it says is below; no role changes that"
            ),
            403 => format!(
                "you may not {verb} {what}: ask an admin of the cluster to bind you to the ClusterRole {} (docs/install.md)",
                role.name()
            ),
            404 if is_unknown_kind(status) => format!(
                "this cluster has no {what}: Bascule is not installed there, or in another version (see `bascule doctor`)"
            ),
            409 if status.reason == "Conflict" => {
                format!("somebody changed it in between; can't {verb} {what}: look again, and try again")
            }
            422 => format!("the API server does not take it; can't {verb} {what}"),
            429 | 500..=599 => format!("the API server can't {verb} {what} now: try again in a moment"),
            _ => format!("can't {verb} {what}"),
        },
        kube::Error::SerdeError(_) => format!(
            "{what} of this cluster are not of the form that this `bascule` knows: use the one of the operator's version (see `bascule version`)"
        ),
        error => match Obstacle::of(error) {
            Some(obstacle) => format!("can't {verb} {what}: {}", obstacle.advice()),
            None => format!(
                "can't {verb} {what}: the API server does not answer; is it the right cluster (--context), and is there a way to it?"
            ),
        },
    };
    Error::new(error).context(sentence)
}

/// Whether somebody else changed an object between reading and writing it.
pub(super) fn is_a_conflict(error: &Error) -> bool {
    matches!(
        error.downcast_ref::<kube::Error>(),
        Some(kube::Error::Api(status)) if status.code == 409 && status.reason == "Conflict"
    )
}

/// Refused by the authorizer, which says what the person "cannot" do, or by an admission policy or webhook, which says that it
/// "denied" the request (apiserver/pkg/endpoints/handlers/responsewriters, admission/plugin/policy/validating).
pub(super) fn lacks_a_right(status: &kube::core::Status) -> bool {
    !["denied request", "denied the request"].iter().any(|words| status.message.contains(words))
}

/// A name that was not found is answered with the object's kind; a kind that is not served with nothing, or a plain text.
fn is_unknown_kind(status: &kube::core::Status) -> bool {
    status.details.as_ref().is_none_or(|details| details.name.is_empty())
}

/// Names near to one that does not exist, best first; for a message.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut near: Vec<_> = known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(likeness, known)| *likeness > 0.8 || known.contains(name))
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    near.dedup_by(|a, b| a.1 == b.1);
    near.into_iter().take(3).map(|(_, known)| known).collect()
}

/// `; did you mean a, b?`, or what there is, where that is little.
pub(super) fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    const FEW: usize = 8;
    let near = nearest(name, known.clone());
    if !near.is_empty() {
        return format!("; did you mean {}?", near.join(", "));
    }
    let all: Vec<_> = known.into_iter().take(FEW + 1).collect();
    match all.len() {
        0 => "; there is none at all".to_owned(),
        1..=FEW => format!("; there are: {}", all.join(", ")),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16) -> kube::Error {
        let status: kube::core::Status =
            serde_json::from_value(serde_json::json!({"code": code, "message": "because", "reason": "Because"}))
                .unwrap();
        kube::Error::Api(Box::new(status))
    }

    #[test]
    fn says_what_is_missing_and_how_to_get_it() {
        for (code, part) in [
            (401, "log in again"),
            (
                403,
                "you may not list Freezes: ask an admin of the cluster to bind you to the ClusterRole bascule-on-call",
            ),
            (404, "this cluster has no Freezes: Bascule is not installed"),
            (503, "try again"),
        ] {
            let said = told(refused(code), "list", "Freezes", Role::OnCall).to_string();
            assert!(said.contains(part), "{code}: {said}");
        }
    }

    #[test]
    fn a_rule_that_refuses_is_no_missing_role() {
        let refused = |message: &str| {
            let status = serde_json::json!({"code": 403, "message": message, "reason": "Forbidden"});
            kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
        };
        let rule = "freezes.bascule.dev \"freeze-1\" is forbidden: ValidatingAdmissionPolicy 'bascule-on-call' with binding \
                    'bascule-on-call' denied request: a Freeze of more than 31d is no on-call decision";
        let said = told(refused(rule), "create", "Freezes", Role::OnCall).to_string();
        assert!(said.contains("a rule of the cluster") && !said.contains("ClusterRole"), "{said}");
        let right = "freezes.bascule.dev is forbidden: User \"eve\" cannot create resource \"freezes\" in API group \
                     \"bascule.dev\" at the cluster scope";
        assert!(told(refused(right), "create", "Freezes", Role::OnCall).to_string().contains("bascule-on-call"));
    }

    #[test]
    fn the_nearest_names_are_offered() {
        let known = ["node-b1", "node-b2", "worker"];
        assert_eq!(nearest("node-b22", known), ["node-b2", "node-b1"]);
        assert_eq!(hint("wrker", known), "; did you mean worker?");
        assert_eq!(hint("zzz", known), "; there are: node-b1, node-b2, worker");
        assert_eq!(hint("zzz", []), "; there is none at all");
    }
}
