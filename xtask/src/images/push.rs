//! Puts an OCI layout into a registry (OCI Distribution Specification 1.1).

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};

/// Pushes the image of a layout under a name, and returns the name by digest.
///
/// # Errors
/// When the layout can't be read, or the registry refuses.
pub(crate) fn push(layout: &Path, name: &str, ca: Option<&Path>) -> anyhow::Result<String> {
    bascule_tests::install_tls_provider();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting")?;
    runtime.block_on(push_to(layout, name, ca))
}

async fn push_to(layout: &Path, name: &str, ca: Option<&Path>) -> anyhow::Result<String> {
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
    let auth = match (std::env::var("REGISTRY_USER"), std::env::var("REGISTRY_PASSWORD")) {
        (Ok(user), Ok(password)) => RegistryAuth::Basic(user, password),
        _ => RegistryAuth::Anonymous,
    };
    client.auth(&reference, &auth, RegistryOperation::Push).await.context("signing in at the registry")?;

    let index: ImageIndex = read(&layout.join("index.json"))?;
    let manifest = index.manifests().first().context("the layout holds no image")?;
    let bytes = blob(layout, manifest)?;
    let parts: ImageManifest = serde_json::from_slice(&bytes).context("reading the image's manifest")?;
    for part in parts.layers().iter().chain([parts.config()]) {
        let digest = part.digest().to_string();
        client
            .push_blob(&reference, blob(layout, part)?, &digest)
            .await
            .with_context(|| format!("pushing {digest}"))?;
    }
    let kind = manifest.media_type().to_string().parse().context("the manifest's media type")?;
    client.push_manifest_raw(&reference, bytes, kind).await.with_context(|| format!("pushing {name}"))?;
    Ok(format!("{}/{}@{}", reference.registry(), reference.repository(), manifest.digest()))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))
}

fn blob(layout: &Path, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>> {
    let path = layout.join("blobs/sha256").join(descriptor.digest().digest());
    fs::read(&path).with_context(|| format!("reading {}", path.display()))
}
