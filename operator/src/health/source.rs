//! Where the objects of a question come from: the requests, each of which is one as the account of gates.

use super::{
    follow::Room,
    held::{Listed, MOST_OBJECTS, Unread},
    needs::Needs,
    seen::Seen,
};
use crate::clock::Moment;
use futures::{AsyncReadExt as _, StreamExt as _, stream::BoxStream};
use k8s_openapi::api::authorization::v1::ResourceAttributes;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, ListParams, ObjectList, Request, TypeMeta, WatchEvent, WatchParams},
    discovery::verbs,
};
use std::{pin::pin, time::Duration};

/// How many are read at once, at most; where these are large, a quarter of it, and again.
const PAGE: u32 = 250;
/// How many are read at once, at least.
const FEW: u32 = 2;
/// How many bytes of them are taken at once: nothing says in advance how large objects are, and 250 may be hundreds of megabytes.
pub(super) const PAGE_BYTES: usize = 8 << 20;

/// Where objects come from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) api: Api<DynamicObject>,
    pub(super) resource: ApiResource,
    /// Where it is looked, if not everywhere.
    pub(super) namespace: Option<String>,
    /// Those that are selected, as the API server's query; empty for all.
    pub(super) labels: String,
    /// One object only.
    pub(super) name: Option<String>,
    /// Whether objects of this kind can be watched at all.
    pub(super) watchable: bool,
}

impl Source {
    /// All that is there now, with what is needed of it, as long as there is room for it. The answer is never one of the API server's
    /// cache that is late.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn read(&self, needs: &Needs, room: &Room) -> Result<Listed, Unread> {
        let fail = |error: kube::Error| format!("{} can't be read: {}", self.resource.kind, crate::one_line(&error));
        let mut listed = Listed::default();
        if let Some(name) = &self.name {
            if let Some(object) = self.api.get_opt(name).await.map_err(fail)? {
                listed.put(self.seen(object, needs)?);
            }
            return Ok(listed);
        }
        let mut limit = PAGE;
        let mut params = ListParams::default().labels(&self.labels).limit(limit);
        loop {
            let Some(page) = self.page(&params).await.map_err(fail)? else {
                if limit <= FEW {
                    return Err(Unread::TooLarge);
                }
                limit = (limit / 4).max(FEW);
                params = params.limit(limit);
                continue;
            };
            // The first page's: what changed while others were read is heard again, which changes nothing.
            if listed.version.is_none() {
                listed.version =
                    page.metadata.resource_version.as_deref().filter(|version| is_version(version)).map(str::to_owned);
            }
            for object in page.items {
                listed.put(self.seen(object, needs)?);
            }
            room.reads(listed.weight())?;
            if listed.len() > MOST_OBJECTS {
                return Err(Unread::TooMany);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(listed),
            }
        }
    }

    /// Some of the objects; `None` where they are more than [`PAGE_BYTES`].
    ///
    /// # Errors
    /// Of the API server, or what it says that is no list.
    async fn page(&self, params: &ListParams) -> kube::Result<Option<ObjectList<DynamicObject>>> {
        let request = Request::new(self.api.resource_url()).list(params).map_err(kube::Error::BuildRequest)?;
        let answer = self.api.clone().into_client().request_stream(request).await?;
        let most = u64::try_from(PAGE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        let mut answer = pin!(answer.take(most));
        let mut text = Vec::new();
        answer.read_to_end(&mut text).await.map_err(kube::Error::ReadEvents)?;
        if text.len() > PAGE_BYTES {
            return Ok(None);
        }
        serde_json::from_slice(&text).map(Some).map_err(kube::Error::SerdeError)
    }

    /// An object as expressions see it, whichever request brought it.
    ///
    /// # Errors
    /// Why they can't.
    pub(super) fn seen(&self, mut object: DynamicObject, needs: &Needs) -> Result<Seen, String> {
        // A list of Kubernetes' own kinds leaves out what each of its objects is.
        object.types.get_or_insert_with(|| TypeMeta {
            api_version: self.resource.api_version.clone(),
            kind: self.resource.kind.clone(),
        });
        Seen::of(&object, needs)
    }

    /// What changes from a version on, for so long.
    ///
    /// # Errors
    /// Of the API server.
    pub(super) async fn watch(
        &self,
        version: &str,
        period: Duration,
    ) -> kube::Result<BoxStream<'static, kube::Result<WatchEvent<DynamicObject>>>> {
        let seconds = u32::try_from(period.as_secs()).unwrap_or(u32::MAX).max(1);
        let params = WatchParams::default().labels(&self.labels).timeout(seconds);
        Ok(self.api.watch(&params, version).await?.boxed())
    }

    /// The version that the API server has, no earlier than the time that is told with it. It costs the server one object's
    /// metadata, whatever the selector: without one, it need not look for the first that is selected. `None` where versions
    /// are no numbers.
    ///
    /// # Errors
    /// Of the API server.
    pub(super) async fn probe(&self) -> kube::Result<(Moment, Option<u64>)> {
        let at = Moment::now();
        let one = self.api.list_metadata(&ListParams::default().limit(1)).await?;
        let version = one.metadata.resource_version.filter(|version| is_version(version));
        Ok((at, version.and_then(|version| version.parse().ok())))
    }

    /// What has to be allowed for it to be watched.
    pub(super) fn watching(&self) -> ResourceAttributes {
        right(&self.resource, self.namespace.as_deref(), self.name.as_deref(), verbs::WATCH)
    }
}

/// Whether it says which state of the objects it is: "0" asks for any (Kubernetes API concepts, "Resource versions").
fn is_version(text: &str) -> bool {
    !text.is_empty() && text != "0"
}

/// What has to be allowed for a verb: in a namespace or everywhere, of one object or of all.
pub(super) fn right(
    resource: &ApiResource,
    namespace: Option<&str>,
    name: Option<&str>,
    verb: &str,
) -> ResourceAttributes {
    ResourceAttributes {
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
        verb: Some(verb.to_owned()),
        group: Some(resource.group.clone()),
        resource: Some(resource.plural.clone()),
        ..ResourceAttributes::default()
    }
}
