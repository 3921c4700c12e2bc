//! Label selectors with bounds, matched here so that the planner needs no client.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Selects objects by their labels. All of `matchLabels` and `matchExpressions` must hold; an empty selector matches
/// everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Labels that must have exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub match_expressions: Vec<Requirement>,
}

/// One requirement on a label.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Requirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// How the label's value is compared.
    pub operator: Operator,
    /// The values for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// The label is there and its value is one of `values`.
    In,
    /// The label is absent or its value is none of `values`.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// Why a selector can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// `In` or `NotIn` without a value.
    #[error("the requirement on label '{0}' needs at least one value")]
    NoValues(String),
    /// `Exists` or `DoesNotExist` with values.
    #[error("the requirement on label '{0}' takes no values")]
    Values(String),
}

impl Selector {
    /// Whether an object with these labels is selected.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|requirement| requirement.matches(labels))
    }

    /// Checks what the schema can't say.
    ///
    /// # Errors
    /// [`SelectorError`] for a requirement whose values don't fit its operator.
    pub fn validate(&self) -> Result<(), SelectorError> {
        for requirement in &self.match_expressions {
            match (requirement.operator, requirement.values.is_empty()) {
                (Operator::In | Operator::NotIn, true) => return Err(SelectorError::NoValues(requirement.key.clone())),
                (Operator::Exists | Operator::DoesNotExist, false) => {
                    return Err(SelectorError::Values(requirement.key.clone()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The same selector from Kubernetes' own type (of a PodDisruptionBudget, a DaemonSet, …). An unknown operator
    /// selects nothing, which is what the API server's own validation would have refused.
    #[must_use]
    pub fn from_kubernetes(selector: &LabelSelector) -> Self {
        Self {
            match_labels: selector.match_labels.clone().unwrap_or_default(),
            match_expressions: selector.match_expressions.iter().flatten().map(Requirement::from_kubernetes).collect(),
        }
    }
}

impl Requirement {
    /// Whether an object with these labels fulfils it.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        match self.operator {
            Operator::In => value.is_some_and(|value| self.values.contains(value)),
            Operator::NotIn => value.is_none_or(|value| !self.values.contains(value)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }

    fn from_kubernetes(requirement: &LabelSelectorRequirement) -> Self {
        let operator = match requirement.operator.as_str() {
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            _ => Operator::In,
        };
        Self { key: requirement.key.clone(), operator, values: requirement.values.clone().unwrap_or_default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn requirement(operator: Operator, values: &[&str]) -> Selector {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        Selector {
            match_expressions: vec![Requirement { key: "zone".into(), operator, values }],
            ..Selector::default()
        }
    }

    #[test]
    fn matches_like_kubernetes() {
        let (a, none) = (labels(&[("zone", "a")]), labels(&[]));
        for (operator, values, with_a, without) in [
            (Operator::In, &["a", "b"][..], true, false),
            (Operator::NotIn, &["a"], false, true),
            (Operator::Exists, &[], true, false),
            (Operator::DoesNotExist, &[], false, true),
        ] {
            let selector = requirement(operator, values);
            assert_eq!((selector.matches(&a), selector.matches(&none)), (with_a, without), "{operator:?}");
            assert!(selector.validate().is_ok());
        }
        assert!(Selector::default().matches(&none), "an empty selector matches everything");
    }

    #[test]
    fn values_must_fit_the_operator() {
        assert!(requirement(Operator::In, &[]).validate().is_err());
        assert!(requirement(Operator::Exists, &["a"]).validate().is_err());
    }
}
