//! Why a step was not carried out.

use bascule_planner::Mismatch;

/// Why a step was not carried out. Nothing is retried here: the next plan starts from what is then known.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The world is not what the plan expected.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The object is gone.
    #[error("{0} does not exist any more")]
    Gone(String),
    /// Somebody wrote the object meanwhile.
    #[error("{0} was changed meanwhile")]
    Conflict(String),
    /// What has to be looked at before the write could not be read. Nothing was written.
    #[error("cannot read {object}")]
    Unread {
        /// What was to be read.
        object: String,
        /// What happened.
        source: Box<kube::Error>,
    },
    /// The operator's RBAC is incomplete, or an admission policy refused.
    #[error("the API server refuses to let the operator write {object}")]
    Refused {
        /// What was to be written.
        object: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// The API server could not be reached or failed.
    #[error("cannot write {object}")]
    Api {
        /// What was to be written.
        object: String,
        /// What happened.
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("the API server did not answer {action} in time")]
    TooSlow {
        /// The action.
        action: &'static str,
    },
    /// A hook can't be run as it stands in the policy.
    #[error("hook {hook}: {reason}")]
    Hook {
        /// The hook.
        hook: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ApplyError {
    /// Sorts an answer of the API server.
    #[must_use]
    pub fn of(object: impl Into<String>, error: kube::Error) -> Self {
        let object = object.into();
        match &error {
            kube::Error::Api(status) => match status.code {
                404 => Self::Gone(object),
                409 => Self::Conflict(object),
                400 | 401 | 403 | 422 => Self::Refused { object, source: Box::new(error) },
                _ => Self::Api { object, source: Box::new(error) },
            },
            _ => Self::Api { object, source: Box::new(error) },
        }
    }

    /// That something could not be read.
    #[must_use]
    pub fn unread(object: impl Into<String>, error: kube::Error) -> Self {
        Self::Unread { object: object.into(), source: Box::new(error) }
    }

    /// What people are told: the API server's own words, where it said some.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Unread { source, .. } | Self::Refused { source, .. } | Self::Api { source, .. } => {
                crate::hooks::why(source)
            }
            Self::Hook { reason, .. } => reason.clone(),
            _ => crate::one_line(self),
        }
    }

    /// The only label in metrics.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self {
            Self::Mismatch(mismatch) => mismatch.category(),
            Self::Gone(_) => "gone",
            Self::Conflict(_) => "conflict",
            Self::Unread { .. } => "unread",
            Self::Refused { .. } => "refused",
            Self::Api { .. } => "api",
            Self::TooSlow { .. } => "too-slow",
            Self::Hook { .. } => "hook",
        }
    }

    /// Whether it is not known what became of the write. Nobody answered, or the object was changed meanwhile, perhaps by this very
    /// write: the client repeats a request after a gateway's timeout.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        match self {
            Self::TooSlow { .. } | Self::Conflict(_) => true,
            Self::Api { source, .. } => match &**source {
                kube::Error::Api(status) => match status.code {
                    // What etcd did not confirm in time ("etcdserver: request timed out") it may carry out yet. A webhook is asked before.
                    500 => !status.message.contains("failed calling webhook"),
                    // Neither does a gateway know it, nor the API server when its time ran out.
                    code => matches!(code, 502 | 504),
                },
                _ => true,
            },
            _ => false,
        }
    }

    /// Whether the next plan will see something new at once, so that no pause is needed before it.
    #[must_use]
    pub const fn is_stale(&self) -> bool {
        matches!(self, Self::Mismatch(_) | Self::Gone(_) | Self::Conflict(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_sorted_by_what_to_do() {
        for (code, category, stale, unknown) in [
            (404, "gone", true, false),
            (409, "conflict", true, true),
            (403, "refused", false, false),
            (422, "refused", false, false),
            (429, "api", false, false),
            (500, "api", false, true),
            (502, "api", false, true),
            (503, "api", false, false),
            (504, "api", false, true),
        ] {
            let status: kube::core::Status = serde_json::from_value(serde_json::json!({"code": code})).unwrap();
            let error = ApplyError::of("Node n1", kube::Error::Api(Box::new(status)));
            let found = (error.category(), error.is_stale(), error.is_unknown());
            assert_eq!(found, (category, stale, unknown), "{code}");
        }
        let webhook = "Internal error occurred: failed calling webhook \"updates.example.com\": connection refused";
        let status = serde_json::from_value(serde_json::json!({"code": 500, "message": webhook})).unwrap();
        assert!(!ApplyError::of("Node n1", kube::Error::Api(Box::new(status))).is_unknown(), "etcd was not asked");
        assert!(ApplyError::TooSlow { action: "Grant" }.is_unknown());
        assert!(ApplyError::of("Node n1", kube::Error::LinesCodecMaxLineLengthExceeded).is_unknown(), "no answer");
        assert!(!ApplyError::from(Mismatch::BootId).is_unknown(), "nothing was written");
    }

    #[test]
    fn people_read_what_the_api_server_says_and_nothing_around_it() {
        let said = "admission webhook \"cordons.example.com\" denied the request: not before the audit";
        let answer = |status: serde_json::Value| -> kube::Error {
            kube::Error::Api(Box::new(serde_json::from_value(status).unwrap()))
        };
        for code in [403, 500] {
            let error = answer(serde_json::json!({"code": code, "reason": "Forbidden", "message": said}));
            assert_eq!(ApplyError::of("Node n1", error).words(), said);
        }
        let silent = ApplyError::of("Node n1", answer(serde_json::json!({"code": 403, "reason": "Forbidden"})));
        assert!(!silent.words().is_empty());
        assert!(ApplyError::TooSlow { action: "Cordon" }.words().contains("did not answer Cordon in time"));
    }
}
