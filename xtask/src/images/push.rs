//! Puts an OCI layout into a registry (OCI Distribution Specification 1.1).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};

/// Who pushes, from the environment.
///
/// # Errors
/// When only half of it is there: nobody means to push without a name then.
pub(crate) fn user() -> anyhow::Result<RegistryAuth> {
    let read = |name: &str| match std::env::var(name) {
        // A secret that a build server does not have is empty there.
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => bail!("{name} is not written in UTF-8"),
    };
    user_of(read("REGISTRY_USER")?, read("REGISTRY_PASSWORD")?)
}

fn user_of(user: Option<String>, password: Option<String>) -> anyhow::Result<RegistryAuth> {
    match (user, password) {
        (Some(user), Some(password)) => Ok(RegistryAuth::Basic(user, password)),
        (None, None) => Ok(RegistryAuth::Anonymous),
        (Some(_), None) => bail!("REGISTRY_USER is set and REGISTRY_PASSWORD is not: set both, or neither"),
        (None, Some(_)) => bail!("REGISTRY_PASSWORD is set and REGISTRY_USER is not: set both, or neither"),
    }
}

/// Pushes the image of a layout under a name, and returns the name by digest.
///
/// # Errors
/// When the layout can't be read, or the registry refuses.
pub(crate) fn push(layout: &Path, name: &str, ca: Option<&Path>, user: &RegistryAuth) -> anyhow::Result<String> {
    bascule_tests::install_tls_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    runtime.block_on(push_to(layout, name, ca, user))
}

async fn push_to(layout: &Path, name: &str, ca: Option<&Path>, user: &RegistryAuth) -> anyhow::Result<String> {
    let reference: Reference = name.parse().with_context(|| format!("{name} is no name of an image"))?;
    let mut config = ClientConfig {
        user_agent: concat!("bascule/", env!("CARGO_PKG_VERSION")),
        // Programs go through the same proxies as everything else.
        https_proxy: std::env::var("HTTPS_PROXY").ok(),
        no_proxy: std::env::var("NO_PROXY").ok(),
        ..ClientConfig::default()
    };
    if let Some(path) = ca {
        let data = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        config.extra_root_certificates = vec![Certificate { encoding: CertificateEncoding::Pem, data }];
    }
    let client = Client::try_from(config).context("making a client for the registry")?;
    match push_with(&client, layout, &reference, user).await {
        // With its cause: a token server that is broken is told as one that refuses.
        Err(error) if is_about_the_user(&error) => Err(error.context(format!(
            "the registry {} {}",
            reference.registry(),
            match user {
                RegistryAuth::Basic(user, _) =>
                    format!("does not let {user} (REGISTRY_USER) push with the password in REGISTRY_PASSWORD"),
                _ => "lets nobody push without a name: set REGISTRY_USER and REGISTRY_PASSWORD".to_owned(),
            }
        ))),
        done => done,
    }
}

/// Whether a registry would do it for somebody else.
fn is_about_the_user(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| match cause.downcast_ref() {
        Some(OciDistributionError::AuthenticationFailure(_) | OciDistributionError::UnauthorizedError { .. }) => true,
        Some(OciDistributionError::ServerError { code, .. }) => matches!(code, 401 | 403),
        Some(OciDistributionError::RegistryError { envelope, .. }) => {
            envelope.errors.iter().any(|one| matches!(one.code, OciErrorCode::Unauthorized | OciErrorCode::Denied))
        }
        _ => false,
    })
}

async fn push_with(
    client: &Client,
    layout: &Path,
    reference: &Reference,
    user: &RegistryAuth,
) -> anyhow::Result<String> {
    client.auth(reference, user, RegistryOperation::Push).await.context("signing in at the registry")?;
    let index: ImageIndex = read(&layout.join("index.json"))?;
    let tagged = index.manifests().first().context("the layout holds no image")?;
    if *tagged.media_type() == MediaType::ImageIndex {
        let several: ImageIndex =
            serde_json::from_slice(&blob(layout, tagged)?).context("reading the index of the images")?;
        for one in several.manifests() {
            push_image(client, layout, one, &reference.clone_with_digest(one.digest().to_string())).await?;
        }
        push_manifest(client, layout, tagged, reference).await?;
    } else {
        push_image(client, layout, tagged, reference).await?;
    }
    Ok(format!("{}/{}@{}", reference.registry(), reference.repository(), tagged.digest()))
}

/// The parts of an image, and then what names them.
async fn push_image(
    client: &Client,
    layout: &Path,
    manifest: &Descriptor,
    reference: &Reference,
) -> anyhow::Result<()> {
    let parts: ImageManifest =
        serde_json::from_slice(&blob(layout, manifest)?).context("reading the image's manifest")?;
    for part in parts.layers().iter().chain([parts.config()]) {
        let digest = part.digest().to_string();
        client.push_blob(reference, blob(layout, part)?, &digest).await.with_context(|| format!("pushing {digest}"))?;
    }
    push_manifest(client, layout, manifest, reference).await
}

async fn push_manifest(
    client: &Client,
    layout: &Path,
    manifest: &Descriptor,
    reference: &Reference,
) -> anyhow::Result<()> {
    let kind = manifest.media_type().to_string().parse().context("the manifest's media type")?;
    let pushed = client.push_manifest_raw(reference, blob(layout, manifest)?, kind).await;
    pushed.map(drop).with_context(|| format!("pushing {reference}"))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))
}

fn blob(layout: &Path, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>> {
    let path = layout.join("blobs/sha256").join(descriptor.digest().digest());
    fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::layout::{self, Image, tests::image};
    use bascule_os_image::shipped::Architecture;
    use bascule_tests::registry::{PASSWORD, Registry, USER};
    use serde_json::Value;

    #[tokio::test]
    async fn a_registry_takes_several_architectures_under_one_tag() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start(folder.path()).await.unwrap();
        let images = [image(b"a"), Image { architecture: Architecture::Arm64, ..image(b"b") }];
        let written = layout::write(&images, &folder.path().join("layout"), "1").unwrap();
        let name = format!("{}/platform/program:1", registry.address());
        let layout = folder.path().join("layout");
        let pushed = push_to(&layout, &name, Some(registry.authority()), &RegistryAuth::Anonymous).await.unwrap();
        assert!(pushed.ends_with(&written.tagged), "{pushed}");
        let index = registry.get("platform/program/manifests/1").await.unwrap().error_for_status().unwrap();
        let index: Value = serde_json::from_str(&index.text().await.unwrap()).unwrap();
        for (one, digest) in index["manifests"].as_array().unwrap().iter().zip(&written.manifests) {
            assert_eq!(one["digest"].as_str(), Some(digest.as_str()));
            let manifest = registry.get(&format!("platform/program/manifests/{digest}")).await.unwrap();
            manifest.error_for_status().unwrap();
        }
    }

    #[tokio::test]
    async fn a_registry_that_wants_a_user_gets_one_and_says_so_in_a_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let registry = Registry::start_for_its_user(folder.path()).await.unwrap();
        let layout = folder.path().join("layout");
        let written = layout::write(&[image(b"a")], &layout, "1").unwrap();
        let name = format!("{}/platform/program:1", registry.address());
        let push = async |user: &RegistryAuth| push_to(&layout, &name, Some(registry.authority()), user).await;
        let [own, wrong] = [PASSWORD, "a guess"].map(|password| RegistryAuth::Basic(USER.into(), password.into()));
        for (user, sentence) in [
            (&wrong, "does not let publisher (REGISTRY_USER) push with the password in REGISTRY_PASSWORD"),
            (&RegistryAuth::Anonymous, "lets nobody push without a name: set REGISTRY_USER and REGISTRY_PASSWORD"),
        ] {
            let error = push(user).await.unwrap_err();
            assert_eq!(error.to_string(), format!("the registry {} {sentence}", registry.address()));
            assert!(error.chain().any(|cause| cause.is::<OciDistributionError>()), "{error:#}");
            let manifest = registry.get("platform/program/manifests/1").await.unwrap();
            assert_eq!(manifest.status(), reqwest::StatusCode::NOT_FOUND);
        }
        assert!(push(&own).await.unwrap().ends_with(&written.tagged));
        registry.get("platform/program/manifests/1").await.unwrap().error_for_status().unwrap();
    }

    #[test]
    fn half_a_user_is_none() {
        let some = |text: &str| Some(text.to_owned());
        assert!(matches!(user_of(None, None), Ok(RegistryAuth::Anonymous)));
        assert!(matches!(user_of(some("u"), some("p")), Ok(RegistryAuth::Basic(user, _)) if user == "u"));
        let said = user_of(some("u"), None).unwrap_err().to_string();
        assert!(said.starts_with("REGISTRY_USER is set and REGISTRY_PASSWORD is not"), "{said}");
        let said = user_of(None, some("secret")).unwrap_err().to_string();
        assert!(said.starts_with("REGISTRY_PASSWORD is set and REGISTRY_USER is not"), "{said}");
    }
}
