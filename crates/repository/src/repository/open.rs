//! Opening a repository: the workflow of `tuf::Refresh` with its I/O around it. It says which file it wants; here the file is
//! fetched, and what is to be remembered is on the disk before the next one is asked for.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::DateTime;
use tokio::time::Instant;
use url::Url;

use super::{Metadata, OpenOptions, Repository, RoleExpiry, format_error};
use crate::datastore::Datastore;
use crate::error::Error;
use crate::http::FetchError;
use crate::limits;
use crate::time;
use crate::transport::Fetcher;
use crate::tuf::{Memory, Reached, Refresh, Role, Trusted};

impl Repository {
    /// Fetches and verifies the top-level metadata, and remembers what must never go back. Delegated roles are fetched when
    /// something is looked for through them.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::category`] tells the kind. On any error nothing of the repository may be used.
    pub async fn open(options: OpenOptions) -> Result<Self, Error> {
        let OpenOptions { trust_root, base, datastore: location, fetcher, now } = options;
        let (metadata_base, targets_base) = split_base(&base, &fetcher)?;
        let datastore = blocking(move || Datastore::open(&location)).await?;
        let time = time::effective(now, datastore.memory().verified_at)?;
        let refresh = Refresh::begin(&trust_root, datastore.memory().clone(), time, limits::UPDATE)?;
        let datastore_was_reset = datastore.was_reset;
        let trusted = update(refresh, datastore, &fetcher, &metadata_base).await?;
        let metadata = metadata_of(&trusted, datastore_was_reset);
        let top = Reached::top(Arc::new(trusted.targets.clone()));
        let roles = Mutex::default();
        Ok(Self { trusted, top, fetcher, metadata_base, targets_base, metadata, roles })
    }
}

async fn update(
    mut refresh: Refresh,
    mut datastore: Datastore,
    fetcher: &Fetcher,
    folder: &Url,
) -> Result<Trusted, Error> {
    let begun = Instant::now();
    loop {
        let next = refresh.step(begun.elapsed());
        datastore = save(datastore, refresh.unsaved()).await?;
        let Some(request) = next? else { break };
        let within = left(limits::UPDATE.time, begun);
        let came = match fetcher.get_small(folder, &request.name, request.limit, within).await {
            Ok(bytes) => refresh.came(Some(&bytes)),
            // Only a server that says so has no newer root: an attacker who breaks that one connection must not be able to keep a
            // revoked key in use.
            Err(error) if request.may_be_absent && error.is_not_found() => refresh.came(None),
            Err(error) => return Err(error.into()),
        };
        // Also where the rest failed: what was learnt on the way, such as a root that revokes a key, is kept.
        datastore = save(datastore, refresh.unsaved()).await?;
        came?;
    }
    let Some((trusted, memory)) = refresh.finish() else {
        return Err(Error::Absent { what: "complete metadata".to_owned(), hint: String::new() });
    };
    save(datastore, Some(&memory)).await?;
    Ok(trusted)
}

/// Writes what is to be remembered. Going on without memory would open the door that the datastore closes, so an error ends
/// the update.
async fn save(mut datastore: Datastore, memory: Option<&Memory>) -> Result<Datastore, Error> {
    let Some(memory) = memory.filter(|memory| *memory != datastore.memory()).cloned() else { return Ok(datastore) };
    blocking(move || datastore.save(memory).map(|()| datastore)).await
}

fn metadata_of(trusted: &Trusted, datastore_was_reset: bool) -> Metadata {
    let signed_at = trusted.timestamp.signed_at.as_deref();
    let signed_at = signed_at.and_then(|text| DateTime::parse_from_rfc3339(text).ok()).map(|time| time.to_utc());
    Metadata {
        roles: vec![
            expiry_of("root", &trusted.root),
            expiry_of("timestamp", &trusted.timestamp),
            expiry_of("snapshot", &trusted.snapshot),
            expiry_of("targets", &trusted.targets),
        ],
        verified_at: trusted.now,
        signed_at,
        datastore_was_reset,
        root: trusted.root_bytes.clone().into_bytes(),
    }
}

pub(super) fn expiry_of(name: &str, role: &impl Role) -> RoleExpiry {
    RoleExpiry { role: name.to_owned(), version: role.version(), expires: role.expires() }
}

/// The two folders of a repository. Only https, a local folder where the caller asked for one, or the caller's own way.
fn split_base(base: &Url, fetcher: &Fetcher) -> Result<(Url, Url), Error> {
    let accepted = match fetcher {
        Fetcher::Http(_) => base.scheme() == "https",
        Fetcher::Directory => base.scheme() == "file",
        Fetcher::Custom(_) => !base.cannot_be_a_base(),
    };
    if !accepted {
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

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Only when the runtime shuts down, or the work panicked.
        Err(_) => Err(Error::Cancelled),
    }
}

/// The time that is left of a budget.
pub(super) fn left(time: Duration, begun: Instant) -> Duration {
    time.saturating_sub(begun.elapsed())
}
