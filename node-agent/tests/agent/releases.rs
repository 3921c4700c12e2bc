//! Release repositories as the shipped agent reads them: published ones, from a folder and over HTTPS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bascule_agent::host::{FetchError, ReleaseQuery, Releases as _, ResolvedRelease, TransferOptions};
use bascule_agent::releases::{RepositoryOptions, RepositoryReleases};
use bascule_api::{Architecture, NodeError};
use bascule_image::Sha256;
use bascule_image::release::names::Severity;
use bascule_repository::publish::Notes;
use bascule_repository::{Error, HttpSettings, ProxySetting, download_error};
use bascule_sim::host::SimClock;
use bascule_tests::https::{Fault, HttpsServer};
use bascule_tests::vendor::{CHANNEL, Vendor, root_hash, start, version};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A vendor's repository, and a node's memory of it.
struct Reader {
    vendor: Vendor,
    runtime: Runtime,
    state: TempDir,
}

impl Reader {
    fn of(vendor: Vendor) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { vendor, runtime: Runtime::new().unwrap(), state: tempfile::tempdir().unwrap() }
    }

    /// As an agent that runs 1.0 gets a release.
    fn resolve(&self, repository: &str, wanted: &str, http: HttpSettings) -> Arc<dyn ResolvedRelease> {
        let options = RepositoryOptions {
            trust_root: self.vendor.repository().join("metadata/1.root.json"),
            datastore: self.state.path().join("repositories"),
            http,
            allow_local: true,
            not_before: None,
        };
        let manifest = self.vendor.published(&format!("releases/{wanted}/x86-64/release.json"));
        let query = ReleaseQuery {
            repository: repository.to_owned(),
            channel: CHANNEL.parse().unwrap(),
            version: version(wanted),
            digest: Sha256::of(&std::fs::read(manifest).unwrap()).into(),
            product: "acme-os".parse().unwrap(),
            architecture: Architecture::X86_64,
            booted: Some((version("1.0"), root_hash("1.0"))),
            other: None,
        };
        let clock = Arc::new(SimClock::starting_at(start()));
        RepositoryReleases::new(options, clock, self.runtime.handle().clone()).resolve(&query).unwrap()
    }

    fn in_its_folder(&self, wanted: &str) -> Arc<dyn ResolvedRelease> {
        self.resolve(&folder_url(&self.vendor.repository()), wanted, HttpSettings::default())
    }
}

fn folder_url(folder: &Path) -> String {
    format!("file://{}/", folder.display())
}

#[test]
fn how_much_a_release_matters_is_the_channels_word() {
    let reader = Reader::of(Vendor::with_two_releases());
    let notes = Notes { severity: Severity::Critical, ..Notes::default() };
    reader.vendor.publish_noted("1.2", Some("1.1"), &notes);
    assert_eq!(reader.in_its_folder("1.2").severity(), Severity::Critical);
    assert_eq!(reader.in_its_folder("1.1").severity(), Severity::None);
}

#[test]
fn a_boot_image_that_ends_early_on_the_server_is_no_fault_of_this_machine() {
    let reader = Reader::of(Vendor::with_two_releases());
    let image = reader.vendor.published("releases/1.1/x86-64/uki.efi");
    let release = reader.in_its_folder("1.1");
    let mut start = [0; 4096];
    let read = |release: &dyn ResolvedRelease, start: &mut [u8]| {
        release.open_uki(&TransferOptions::default()).unwrap().read_at(start, 0)
    };
    read(&*release, &mut start).unwrap();
    assert_eq!(start[..], std::fs::read(&image).unwrap()[..4096]);
    std::fs::OpenOptions::new().write(true).open(&image).unwrap().set_len(5000).unwrap();
    let error = read(&*release, &mut start).unwrap_err();
    let error = error.get_ref().and_then(|inner| inner.downcast_ref::<FetchError>()).unwrap();
    assert_eq!((error.category, error.transient), (NodeError::Network, true), "{error}");

    // The same of a connection that breaks, which the client tries again first.
    let reader = Reader::of(Vendor::with_two_releases());
    let server = reader.runtime.block_on(HttpsServer::start(reader.vendor.repository())).unwrap();
    let http = HttpSettings {
        connect_timeout: Duration::from_secs(20),
        retries: 1,
        backoff: Duration::from_millis(5),
        proxy: ProxySetting::Direct,
        extra_ca_pem: vec![server.ca_pem().as_bytes().to_vec()],
        only_extra_ca: true,
        ..HttpSettings::default()
    };
    let release = reader.resolve(&server.url(), "1.1", http);
    read(&*release, &mut start).unwrap();
    server.misbehave("uki.efi", Fault::BreakAfter(3000));
    let error = read(&*release, &mut start).unwrap_err();
    let error = download_error(&error).unwrap();
    assert!(matches!(error, Error::Fetch(_)) && error.is_transient(), "{error}");
}
