//! Which software is in an image: a CycloneDX list from dpkg's status, so that a scanner needs no image.
//!
//! No time and no serial number: both are optional (CycloneDX 1.6), and the same tree must give the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use bascule_image::release::manifest::Kubernetes;
use bascule_names::KubernetesVersion;
use bascule_release::Identity;
use serde_json::{Value, json};

/// dpkg's status of a full Debian installation has 3,000 packages and 5 MB.
const MAX_STATUS: u64 = 64 << 20;

/// The list for a root tree, or `None` where no dpkg status is found.
pub(crate) fn of_tree(tree: &Path, identity: &Identity<'_>) -> anyhow::Result<Option<Vec<u8>>> {
    let status = tree.join("var/lib/dpkg/status");
    if !status.is_file() {
        return Ok(None);
    }
    let size = fs::metadata(&status).with_context(|| format!("can't read {}", status.display()))?.len();
    ensure!(size <= MAX_STATUS, "{} has {size} bytes, accepted are {MAX_STATUS}", status.display());
    let text = fs::read(&status).with_context(|| format!("can't read {}", status.display()))?;
    let distribution = distribution(tree).unwrap_or_else(|| "debian".to_owned());
    let list = cyclonedx(&String::from_utf8_lossy(&text), &distribution, identity);
    let mut bytes = serde_json::to_vec_pretty(&list).context("can't make JSON of the package list")?;
    bytes.push(b'\n');
    Ok(Some(bytes))
}

/// `ID=` of os-release.
fn distribution(tree: &Path) -> Option<String> {
    let text = fs::read_to_string(tree.join("usr/lib/os-release")).ok()?;
    let id = text.lines().find_map(|line| line.strip_prefix("ID="))?;
    Some(id.trim_matches('"').to_owned())
}

/// The installed packages of a dpkg status file (deb822: stanzas of `Name: value`, continued lines begin with a space).
fn cyclonedx(status: &str, distribution: &str, identity: &Identity<'_>) -> Value {
    let mut components = Vec::new();
    for stanza in status.split("\n\n") {
        let fields: BTreeMap<&str, &str> = stanza
            .lines()
            .filter(|line| !line.starts_with([' ', '\t']))
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name, value.trim()))
            .collect();
        let installed = fields.get("Status").is_some_and(|status| status.ends_with(" installed"));
        let (Some(name), Some(version)) = (fields.get("Package"), fields.get("Version")) else { continue };
        if !installed {
            continue;
        }
        let architecture = fields.get("Architecture").copied().unwrap_or("all");
        let url = format!(
            "pkg:deb/{}/{}@{}?arch={}",
            encoded(distribution),
            encoded(name),
            encoded(version),
            encoded(architecture)
        );
        components.push(json!({
            "type": "library",
            "bom-ref": url,
            "name": name,
            "version": version,
            "purl": url,
        }));
    }
    components.sort_by(|a, b| a["purl"].as_str().cmp(&b["purl"].as_str()));
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {
            "type": "operating-system",
            "name": identity.product.as_str(),
            "version": identity.version.as_str(),
        }},
        "components": components,
    })
}

/// Percent-encoding as package URLs want it (purl specification, "Rules for each purl component").
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"._~-".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What of Kubernetes a package list (CycloneDX or SPDX) names: the kubelet, by itself or in a distribution's one program.
pub(crate) fn kubernetes(list: &[u8]) -> anyhow::Result<Option<Kubernetes>> {
    let list: Value = serde_json::from_slice(list).context("the package list is no JSON")?;
    let packages = [("components", "version"), ("packages", "versionInfo")].into_iter().flat_map(|(key, version)| {
        let listed = list.get(key).and_then(Value::as_array).into_iter().flatten();
        listed.filter_map(move |one| Some((one.get("name")?.as_str()?, one.get(version)?.as_str()?)))
    });
    let known: BTreeMap<&str, &str> = packages.collect();
    let whole = ["k3s", "rke2", "rke2-server"].into_iter().find_map(|name| known.get_key_value(name));
    let kubelet = known.get_key_value("kubelet");
    let Some((name, version)) = kubelet.or(whole) else { return Ok(None) };
    // Debian's epochs are no part of the version.
    let version = version.split_once(':').map_or(*version, |(_, version)| version);
    let kubelet = KubernetesVersion::parse(version).with_context(|| {
        format!("package {name} of the package list has a version that is none of Kubernetes; say --kubelet")
    })?;
    Ok(Some(Kubernetes { kubelet, api_server: whole.is_some() || known.contains_key("kube-apiserver") }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_names::Architecture;

    #[test]
    fn installed_packages_are_listed_in_a_stable_order() {
        let status = "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.3+b1\n\n\
                      Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                      Package: bash\nStatus: install ok installed\nVersion: 5.2-1\nDescription: shell\n more text: here\n\n\
                      Package: broken\nStatus: install ok installed\n";
        let (product, version) = ("acme-os".parse().unwrap(), "1.0".parse().unwrap());
        let identity = Identity { product: &product, version: &version, architecture: Architecture::X86_64 };
        let list = cyclonedx(status, "debian", &identity);
        let urls: Vec<&str> =
            list["components"].as_array().unwrap().iter().map(|one| one["purl"].as_str().unwrap()).collect();
        assert_eq!(urls, ["pkg:deb/debian/bash@5.2-1?arch=all", "pkg:deb/debian/zlib1g@1%3A1.3%2Bb1?arch=amd64"]);
    }

    #[test]
    fn the_kubelet_is_found_in_a_package_list() {
        let named = |list: Value| {
            let found = kubernetes(&serde_json::to_vec(&list).unwrap()).unwrap();
            found.map(|found| (found.kubelet.to_string(), found.api_server))
        };
        let cyclonedx = |name: &str, version: &str| json!({"components": [{"name": name, "version": version}]});
        assert_eq!(named(cyclonedx("kubelet", "1.36.2-1.1")), Some(("1.36".to_owned(), false)));
        assert_eq!(named(cyclonedx("k3s", "1:1.36.2+k3s1")), Some(("1.36".to_owned(), true)));
        let spdx = json!({"packages": [{"name": "kubelet", "versionInfo": "v1.36.2"}, {"name": "kube-apiserver", "versionInfo": "1"}]});
        assert_eq!(named(spdx), Some(("1.36".to_owned(), true)));
        assert_eq!(named(cyclonedx("bash", "5.2")), None);
        let odd = serde_json::to_vec(&cyclonedx("kubelet", "git")).unwrap();
        assert!(kubernetes(&odd).unwrap_err().to_string().contains("--kubelet"));
    }
}
