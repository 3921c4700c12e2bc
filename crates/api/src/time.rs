//! Points in time as Kubernetes writes them: RFC 3339, UTC, whole seconds.

use chrono::{DateTime, SecondsFormat, SubsecRound as _, Utc};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A point in time, cut to whole seconds so that writing and reading it back gives the same value (a difference would
/// be a write without a change).
///
/// The default is the start of 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(DateTime<Utc>);

impl Time {
    /// The same moment with a resolution of a second.
    #[must_use]
    pub fn new(at: DateTime<Utc>) -> Self {
        Self(at.trunc_subsecs(0))
    }

    /// The moment for arithmetic.
    #[must_use]
    pub const fn get(self) -> DateTime<Utc> {
        self.0
    }

    /// The moment a span later; the last that can be expressed instead of an overflow.
    #[must_use]
    pub fn after(self, span: crate::Duration) -> Self {
        Self(self.0.checked_add_signed(span.to_chrono()).unwrap_or(DateTime::<Utc>::MAX_UTC))
    }

    /// Seconds since an earlier moment, negative when it is later.
    #[must_use]
    pub fn seconds_since(self, earlier: Self) -> i64 {
        self.0.signed_duration_since(earlier.0).num_seconds()
    }

    /// The moment as Kubernetes' own type.
    #[must_use]
    pub fn to_kubernetes(self) -> meta::Time {
        meta::Time(k8s_openapi::jiff::Timestamp::from_second(self.0.timestamp()).unwrap_or_default())
    }

    /// The moment of Kubernetes' own type, e.g. a creation timestamp.
    #[must_use]
    pub fn from_kubernetes(time: &meta::Time) -> Self {
        Self(DateTime::from_timestamp(time.0.as_second(), 0).unwrap_or_default())
    }
}

impl From<DateTime<Utc>> for Time {
    fn from(at: DateTime<Utc>) -> Self {
        Self::new(at)
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0.to_rfc3339_opts(SecondsFormat::Secs, true))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        DateTime::parse_from_rfc3339(&text).map(|at| Self::new(at.with_timezone(&Utc))).map_err(D::Error::custom)
    }
}

impl schemars::JsonSchema for Time {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "date-time", "maxLength": 40})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_cut_to_seconds_and_round_trips() {
        let time: Time = serde_json::from_str("\"2026-11-23T22:00:00.75+01:00\"").unwrap();
        let text = serde_json::to_string(&time).unwrap();
        assert_eq!(text, "\"2026-11-23T21:00:00Z\"");
        assert_eq!(serde_json::from_str::<Time>(&text).unwrap(), time);
    }
}
