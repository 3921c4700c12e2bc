//! Which Kubernetes a component is of: what its version skew policy speaks of.

use crate::NameError;
use serde::{Deserialize, Serialize};

/// Major and minor version of a Kubernetes component, e.g. `1.36`. That is all that Kubernetes' version skew policy looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KubernetesVersion {
    /// The major version.
    pub major: u16,
    /// The minor version.
    pub minor: u16,
}

impl KubernetesVersion {
    /// Reads the first two numbers of a version as API servers, kubelets and packages of them show it: `v1.36.2`,
    /// `1.36.2-1.1`, `v1.36.2+k3s1`, `1.36`.
    ///
    /// # Errors
    /// [`NameError`] when there are none.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let refuse =
            || NameError::shape("Kubernetes version", text, "two numbers joined by a dot, like 1.36 or v1.36.2");
        let (major, rest) = text.strip_prefix('v').unwrap_or(text).split_once('.').ok_or_else(refuse)?;
        let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let ends = rest.get(minor.len()..).is_none_or(|rest| rest.is_empty() || rest.starts_with(['.', '-', '+', '~']));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|_| digits)
        };
        match (number(major), number(&minor)) {
            (Some(major), Some(minor)) if ends => Ok(Self { major, minor }),
            _ => Err(refuse()),
        }
    }
}

impl std::fmt::Display for KubernetesVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl std::str::FromStr for KubernetesVersion {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl TryFrom<String> for KubernetesVersion {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text)
    }
}

impl From<KubernetesVersion> for String {
    fn from(version: KubernetesVersion) -> Self {
        version.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_components_and_packages_show_is_read() {
        for text in ["1.36", "v1.36.2", "1.36.2-1.1", "v1.36.2+k3s1", "v1.36.0-standin", "1.36~rc1"] {
            assert_eq!(KubernetesVersion::parse(text), Ok(KubernetesVersion { major: 1, minor: 36 }), "{text}");
        }
        for text in ["", "1", "1.", ".1", "v", "1.x", "one.two", "1.36x", "1.-1", "70000.1", "1.99999"] {
            assert!(KubernetesVersion::parse(text).is_err(), "{text}");
        }
        let (old, new) = (KubernetesVersion::parse("1.9").unwrap(), KubernetesVersion::parse("1.10").unwrap());
        assert!(old < new);
    }
}
