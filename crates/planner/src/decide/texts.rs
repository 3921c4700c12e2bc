//! Small numbers for what nodes have in common.

use bascule_api::{Architecture, Version};
use std::{collections::BTreeMap, sync::Arc};

/// Nodes of one kind have the same policy, architecture and running release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind(usize);

impl Kind {
    pub(super) const fn index(self) -> usize {
        self.0
    }
}

/// A policy's index, an architecture, and the number of the running release: what makes a [`Kind`].
type KindKey = (Option<usize>, Option<Architecture>, Option<u32>);

/// Small numbers for the texts that nodes share (zones, domains, releases) and for the kinds of nodes.
#[derive(Debug, Default)]
pub(super) struct Texts {
    ids: BTreeMap<Arc<str>, u32>,
    texts: Vec<Arc<str>>,
    kinds: BTreeMap<KindKey, Kind>,
}

impl Texts {
    /// The text's number; a new one where it has none.
    pub(super) fn id(&mut self, text: &str) -> u32 {
        if let Some(id) = self.ids.get(text) {
            return *id;
        }
        let (id, text) = (u32::try_from(self.texts.len()).unwrap_or(u32::MAX), Arc::<str>::from(text));
        self.ids.insert(Arc::clone(&text), id);
        self.texts.push(text);
        id
    }

    /// The number of a text that some node has.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    pub(super) fn text(&self, id: u32) -> &str {
        usize::try_from(id).ok().and_then(|id| self.texts.get(id)).map_or("", |text| text)
    }

    /// The kind of a node that this policy alone selects.
    pub(super) fn kind(
        &mut self,
        policy: Option<usize>,
        architecture: Option<Architecture>,
        running: Option<&Version>,
    ) -> Kind {
        let running = running.map(|version| self.id(version.as_str()));
        let next = Kind(self.kinds.len());
        *self.kinds.entry((policy, architecture, running)).or_insert(next)
    }

    /// How many texts are known.
    pub(super) fn count(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn kinds(&self) -> usize {
        self.kinds.len()
    }
}
