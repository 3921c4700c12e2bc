//! A number of nodes or a share of them.

use serde::{Deserialize, Serialize};

/// A count, or a percentage of the nodes in question such as `10%`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum IntOrPercent {
    /// A count of nodes.
    Int(u32),
    /// A percentage, as text that ends in `%`.
    Percent(String),
}

/// Why a text is no percentage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is neither a number nor a percentage from 0% to 100%")]
pub struct QuantityError(String);

impl IntOrPercent {
    /// How many of `total` nodes this is. A percentage is rounded down, but never below 1 unless it is `0%`: a budget
    /// of `10%` in a policy of 5 nodes must still let one of them move.
    ///
    /// # Errors
    /// [`QuantityError`] when the text is no percentage (an object that the API server's schema did not check).
    pub fn of(&self, total: u32) -> Result<u32, QuantityError> {
        match self {
            Self::Int(count) => Ok(*count),
            Self::Percent(text) => {
                let percent: u32 = text
                    .strip_suffix('%')
                    .filter(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))
                    .and_then(|digits| digits.parse().ok())
                    .filter(|percent| *percent <= 100)
                    .ok_or_else(|| QuantityError(text.chars().take(20).collect()))?;
                let share = u64::from(total) * u64::from(percent) / 100;
                let share = u32::try_from(share).unwrap_or(total);
                Ok(if percent > 0 && total > 0 { share.max(1) } else { share })
            }
        }
    }
}

impl schemars::JsonSchema for IntOrPercent {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "IntOrPercent".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "minimum": 0, "maximum": 100_000, "maxLength": 4,
            "x-kubernetes-validations": [{
                "rule": "type(self) == int || self.matches('^(100|[0-9]{1,2})%$')",
                "message": "write a number of nodes, like 2, or a percentage from 0% to 100%, like 10%"
            }]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_rounds_down_but_lets_one_move() {
        let ten = IntOrPercent::Percent("10%".into());
        assert_eq!((ten.of(0), ten.of(5), ten.of(40), ten.of(49)), (Ok(0), Ok(1), Ok(4), Ok(4)));
        assert_eq!(IntOrPercent::Percent("0%".into()).of(40), Ok(0));
        assert!(IntOrPercent::Percent("101%".into()).of(4).is_err());
        assert!(IntOrPercent::Percent("%".into()).of(4).is_err());
    }
}
