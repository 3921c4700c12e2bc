//! Opening a repository: tough verifies, the datastore remembers, and expiry is judged by the guarded clock.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::DateTime;
use tough::{ExpirationEnforcement, Limits, RepositoryLoader};
use url::Url;

use super::{Metadata, OpenOptions, Repository, SIGNED_AT, TOP_LEVEL_ROLES, format_error};
use crate::datastore::{Datastore, State, read_scratch};
use crate::error::Error;
use crate::http::FetchError;
use crate::limits;
use crate::time;
use crate::transport::{Fetcher, MetadataTransport};
use crate::trust::{self, RoleExpiry, RootChain};

impl Repository {
    /// Fetches and verifies the metadata, and remembers what must never go back.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::category`] tells the kind. On any error nothing of the repository may be used.
    pub async fn open(options: OpenOptions) -> Result<Self, Error> {
        let OpenOptions { trust_root, base, datastore: location, fetcher, now } = options;
        let (metadata_base, targets_base) = split_base(&base, &fetcher)?;
        let mut chain = RootChain::start(&trust_root)?;
        let datastore = blocking(move || Datastore::open(&location)).await?;
        let time = time::effective(now, datastore.state.verified_at)?;
        let remembered: BTreeMap<u64, String> = datastore.state.roots.clone();
        if chain.follow(|version| remembered.get(&version).map(String::as_bytes)) {
            tracing::warn!("a remembered root is not signed by the one before it and is left out");
        }
        let transport = MetadataTransport::new(fetcher.clone());
        let (datastore, scratch) = blocking(move || datastore.scratch().map(|scratch| (datastore, scratch))).await?;

        // tough's own expiry check trusts the system clock alone and lets one expired delegated role block all others;
        // `trust::refuse_expired` below does the same work with the guarded time, for the roles that matter.
        let loaded = RepositoryLoader::new(&chain.newest, metadata_base, targets_base.clone())
            .transport(transport.clone())
            .datastore(scratch.path())
            .expiration_enforcement(ExpirationEnforcement::Unsafe)
            .limits(Limits {
                max_root_size: limits::MAX_ROOT,
                max_targets_size: limits::MAX_TARGETS,
                max_timestamp_size: limits::MAX_TIMESTAMP,
                max_snapshot_size: limits::MAX_SNAPSHOT,
                max_root_updates: limits::MAX_ROOT_UPDATES,
            })
            .load()
            .await
            .map_err(trust::sort_tough_error);

        // Also a failed update leaves verified knowledge behind (a new root that revokes a key, say), and an attacker who
        // blocks the rest must not be able to make us forget it.
        let fetched = transport.fetched_roots();
        chain.follow(|version| fetched.get(&version).map(Bytes::as_ref));
        let mut outcome = loaded.and_then(|inner| {
            if trust::count_roles(&inner.targets().signed) > limits::MAX_ROLES {
                return Err(Error::Invalid {
                    what: "the targets metadata".to_owned(),
                    reason: format!("it delegates to more than {} roles", limits::MAX_ROLES),
                });
            }
            let roles = roles_of(&inner);
            trust::refuse_expired(roles.get(..TOP_LEVEL_ROLES).unwrap_or_default(), time)?;
            Ok((inner, roles))
        });
        let verified_at = if outcome.is_ok() { Some(time) } else { datastore.state.verified_at };
        let was_reset = datastore.was_reset;
        let links = chain.links.clone();
        let saved = blocking(move || {
            let mut datastore = datastore;
            let mut state = State::default();
            state.verified_at = verified_at;
            state.roots = links;
            state.timestamp = read_scratch(scratch.path(), "timestamp.json");
            state.snapshot = read_scratch(scratch.path(), "snapshot.json");
            datastore.save(state)
        })
        .await;
        if let Err(error) = saved {
            // Going on without memory would open the door that the datastore closes.
            outcome = outcome.and(Err(error));
        }
        let (inner, roles) = outcome?;
        let signed_at = inner
            .timestamp()
            .signed
            ._extra
            .get(SIGNED_AT)
            .and_then(|value| DateTime::parse_from_rfc3339(value.as_str()?).ok())
            .map(|time| time.to_utc());
        let metadata =
            Metadata { roles, verified_at: time, signed_at, datastore_was_reset: was_reset, root: chain.newest };
        Ok(Self { inner, fetcher, targets_base, metadata })
    }
}

/// The two folders of a repository. Only https, or a local folder where the caller asked for one.
fn split_base(base: &Url, fetcher: &Fetcher) -> Result<(Url, Url), Error> {
    let scheme = match fetcher {
        Fetcher::Http(_) => "https",
        Fetcher::Directory => "file",
    };
    if base.scheme() != scheme {
        return Err(FetchError::Insecure { url: crate::http::shown(base) }.into());
    }
    let mut base = base.clone();
    base.set_query(None);
    base.set_fragment(None);
    if !base.path().ends_with('/') {
        base.set_path(&format!("{}/", base.path()));
    }
    let join = |folder| base.join(folder).map_err(|error| format_error("the repository's address", error));
    Ok((join("metadata/")?, join("targets/")?))
}

fn roles_of(repository: &tough::Repository) -> Vec<RoleExpiry> {
    let mut roles = vec![
        trust::expiry_of("root", &repository.root().signed),
        trust::expiry_of("timestamp", &repository.timestamp().signed),
        trust::expiry_of("snapshot", &repository.snapshot().signed),
        trust::expiry_of("targets", &repository.targets().signed),
    ];
    for name in repository.targets().signed.role_names() {
        if let Ok(signed) = repository.targets().signed.delegated_targets(name) {
            roles.push(trust::expiry_of(name, &signed.signed));
        }
    }
    roles
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Only when the runtime shuts down, or the work panicked.
        Err(_) => Err(Error::Cancelled),
    }
}
