//! Spans of time as people write them: `90s`, `15m`, `1h30m`, `14d`.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::{fmt, str::FromStr};

/// A span of whole seconds, written as days, hours, minutes and seconds in that order, at most 366 days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Duration(u64);

/// Why a text is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// Not of the shape `1d2h3m4s`.
    #[error("'{0}' is not a duration: write days, hours, minutes, seconds in this order, like 1h30m or 14d")]
    Shape(String),
    /// Longer than [`Duration::MAX`].
    #[error("'{0}' is longer than 366 days")]
    TooLong(String),
}

impl Duration {
    /// The longest span: 366 days.
    pub const MAX: Self = Self(366 * 86_400);
    /// No time.
    pub const ZERO: Self = Self(0);

    /// A span of seconds, cut to [`Duration::MAX`].
    #[must_use]
    pub const fn from_secs(seconds: u64) -> Self {
        if seconds > Self::MAX.0 { Self::MAX } else { Self(seconds) }
    }

    /// A span of minutes, cut to [`Duration::MAX`].
    #[must_use]
    pub const fn from_minutes(minutes: u64) -> Self {
        Self::from_secs(minutes.saturating_mul(60))
    }

    /// The span in seconds.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0
    }

    /// The span for arithmetic with the standard library.
    #[must_use]
    pub const fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_secs(self.0)
    }

    /// The span for arithmetic with timestamps.
    #[must_use]
    pub fn to_chrono(self) -> chrono::TimeDelta {
        chrono::TimeDelta::seconds(i64::try_from(self.0).unwrap_or(i64::MAX / 1_000))
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shape = || DurationError::Shape(text.chars().take(40).collect());
        if text.is_empty() || text.len() > 32 {
            return Err(shape());
        }
        let (mut rest, mut total) = (text, 0_u64);
        for (unit, seconds) in [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)] {
            let Some((number, after)) = rest.split_once(unit) else { continue };
            if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit()) {
                return Err(shape());
            }
            let number: u64 = number.parse().map_err(|_| DurationError::TooLong(text.to_owned()))?;
            total = number
                .checked_mul(seconds)
                .and_then(|part| total.checked_add(part))
                .ok_or_else(|| DurationError::TooLong(text.to_owned()))?;
            rest = after;
        }
        if !rest.is_empty() {
            return Err(shape());
        }
        if total > Self::MAX.0 { Err(DurationError::TooLong(text.to_owned())) } else { Ok(Self(total)) }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, seconds) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
            if rest >= seconds {
                write!(f, "{}{unit}", rest / seconds)?;
                rest %= seconds;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl schemars::JsonSchema for Duration {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string", "minLength": 2, "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^([0-9]{1,3}d)?([0-9]{1,4}h)?([0-9]{1,6}m)?([0-9]{1,8}s)?$')",
                "message": "write a duration as days, hours, minutes, seconds in this order, like 1h30m or 14d"
            }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints() {
        for (text, seconds, printed) in
            [("90s", 90, "1m30s"), ("1h30m", 5_400, "1h30m"), ("14d", 1_209_600, "14d"), ("0s", 0, "0s")]
        {
            let parsed: Duration = text.parse().unwrap();
            assert_eq!(parsed.as_secs(), seconds);
            assert_eq!(parsed.to_string(), printed);
        }
    }

    #[test]
    fn refuses() {
        for text in ["", "5", "m", "1s1m", "-1s", "1.5h", "1h 30m", "367d", "99999999999999999999s", "1hh"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }
}
