//! Why a policy's spec can't be used.

use bascule_api::{Duration, QuantityError, Selector, SelectorError, Version};

/// A field of a policy that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {kind}")]
pub struct PolicyError {
    /// The field's path, e.g. `spec.maintenanceWindows[1].timeZone`.
    pub field: String,
    /// What is wrong with it and what would be accepted.
    pub kind: PolicyErrorKind,
}

impl PolicyError {
    /// An error about a field.
    #[must_use]
    pub fn new(field: impl Into<String>, kind: PolicyErrorKind) -> Self {
        Self { field: field.into(), kind }
    }

    /// The only error label in metrics.
    #[must_use]
    pub const fn category(&self) -> &'static str {
        match self.kind {
            PolicyErrorKind::TimeZone(_) => "time-zone",
            PolicyErrorKind::Schedule { .. } | PolicyErrorKind::NeverOpens => "schedule",
            PolicyErrorKind::Span { .. } => "duration",
            PolicyErrorKind::Selector(_) | PolicyErrorKind::LabelKey(_) => "selector",
            PolicyErrorKind::Quantity(_) | PolicyErrorKind::Percent | PolicyErrorKind::Zero => "quantity",
            PolicyErrorKind::Url { .. } => "url",
            PolicyErrorKind::PinnedIsBlocked(_) | PolicyErrorKind::AllowedIsBlocked(_) => "version",
            PolicyErrorKind::WaveTwice | PolicyErrorKind::WaveOfAllNotLast => "waves",
            PolicyErrorKind::Segment(_) => "name",
            PolicyErrorKind::TooMany { .. } | PolicyErrorKind::Empty | PolicyErrorKind::NameTwice(_) => "list",
            PolicyErrorKind::GateKind
            | PolicyErrorKind::Confidential(_)
            | PolicyErrorKind::NoComparison
            | PolicyErrorKind::NotFinite
            | PolicyErrorKind::Expression(_)
            | PolicyErrorKind::NoPrometheus => "gate",
            PolicyErrorKind::NoTemplate => "hook",
            PolicyErrorKind::Right(_) => "right",
            PolicyErrorKind::Refused(_) => "refused",
            PolicyErrorKind::Unreadable { .. } => "unreadable",
        }
    }
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyErrorKind {
    /// No such time zone.
    #[error("'{0}' is no IANA time zone: write one like Europe/Berlin or UTC")]
    TimeZone(String),
    /// Not a cron line.
    #[error(
        "'{found}' is no schedule ({why}): write minute, hour, day of month, month, day of week, like '0 22 * * Mon-Thu'"
    )]
    Schedule {
        /// What is there.
        found: String,
        /// The cron parser's word.
        why: String,
    },
    /// A cron line without any occurrence, like 31 February.
    #[error("the schedule has no occurrence within eight years")]
    NeverOpens,
    /// A span of time that is too short or too long.
    #[error("{found} is not between {min} and {max}")]
    Span {
        /// What is there.
        found: Duration,
        /// The shortest accepted.
        min: Duration,
        /// The longest accepted.
        max: Duration,
    },
    /// A selector whose values do not fit.
    #[error("{0}")]
    Selector(SelectorError),
    /// No label key.
    #[error("'{0}' is no label key: write one like topology.kubernetes.io/zone")]
    LabelKey(String),
    /// No name that can stand in the path of a request.
    #[error("'{0}' is no name of an object or a namespace: write it without '/', '?', '#', '%' and spaces")]
    Segment(String),
    /// Neither a number nor a percentage.
    #[error("{0}")]
    Quantity(QuantityError),
    /// A percentage out of range.
    #[error("must be from 1 to 100")]
    Percent,
    /// Zero where nothing could ever happen.
    #[error("must be at least 1")]
    Zero,
    /// A URL that can't be used.
    #[error("'{found}' is no URL that can be used here: write {} and a host, without user or password", .schemes.join(":// or ") + "://")]
    Url {
        /// What is there.
        found: String,
        /// The accepted schemes.
        schemes: &'static [&'static str],
    },
    /// The pinned version is blocked.
    #[error("{0} is also in spec.blockedVersions: remove it from one of the two")]
    PinnedIsBlocked(Version),
    /// A release is allowed and blocked.
    #[error("{0} is also in spec.blockedVersions: remove it from one of the two")]
    AllowedIsBlocked(Version),
    /// A wave that is given twice.
    #[error("a wave is given by selector, count or percent: keep one of them")]
    WaveTwice,
    /// A wave of all nodes before another one.
    #[error("a wave without selector, count and percent takes all remaining nodes: move it to the end")]
    WaveOfAllNotLast,
    /// Too many entries.
    #[error("has {found} entries, accepted are {max}")]
    TooMany {
        /// How many there are.
        found: usize,
        /// How many are accepted.
        max: usize,
    },
    /// No entry.
    #[error("must name at least one")]
    Empty,
    /// The same name twice.
    #[error("'{0}' occurs twice: give each its own name")]
    NameTwice(String),
    /// A gate of no kind or of several.
    #[error("a gate is one of promQL, object or http")]
    GateKind,
    /// An object gate of a kind that no gate reads.
    #[error(
        "no object gate reads a {0}: what it holds must not show in a status. Ask for an object that says what you wait for"
    )]
    Confidential(String),
    /// A PromQL gate that accepts everything.
    #[error("say what the samples must be: equals, max or min")]
    NoComparison,
    /// NaN or infinity.
    #[error("equals, max and min must be finite numbers")]
    NotFinite,
    /// A CEL expression that can't be parsed. Found by whoever can read CEL, which is not this crate.
    #[error("the CEL expression can't be parsed ({0}); `object` is the object and `node` the node's name")]
    Expression(String),
    /// A PromQL gate and nobody to ask.
    #[error("a promQL gate needs the URL of the Prometheus server that is asked")]
    NoPrometheus,
    /// A Job without its pods.
    #[error("a hook's job needs a template, as in batch/v1")]
    NoTemplate,
    /// The operator lacks a right that the policy needs. Found by asking the API server, not by validation.
    #[error("{0}")]
    Right(String),
    /// The operator said that it can't be used, for a reason that only it finds. Read in the policy's `Accepted` condition.
    #[error("the operator says: {0}")]
    Refused(String),
    /// The object says something that this version does not understand, in its spec or in its memory. Found when it is read, not by
    /// validation.
    #[error("can't be read by this version of the operator: {why}")]
    Unreadable {
        /// What was met in it.
        why: String,
        /// The nodes that it selects, as far as that can be read or was known before.
        selects: Option<Selector>,
    },
}
