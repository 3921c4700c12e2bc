//! The repository as it is published now, verified before anything is signed on top of it.

use std::collections::BTreeMap;

use tough::schema::{RoleKeys, RoleType, Root, Signed, Snapshot, Targets, Timestamp};

use super::document::Document;
use super::error::PublishError;
use super::folder::Folder;
use crate::error::in_one_line;
use crate::limits::MAX_ROOT_UPDATES;

/// All roles as published.
#[derive(Debug, Clone)]
pub(super) struct Current {
    pub(super) root: Document<Root>,
    pub(super) timestamp: Document<Timestamp>,
    pub(super) snapshot: Document<Snapshot>,
    pub(super) targets: Document<Targets>,
    /// Delegated roles by name. Their `targets.signed.delegations` entries say who may sign them.
    pub(super) delegated: BTreeMap<String, Document<Targets>>,
}

impl Current {
    /// Reads and verifies. Expiry is not judged: signing afresh is what mends it.
    ///
    /// # Errors
    /// [`PublishError::Folder`] when there is no repository, [`PublishError::Broken`] for anything that does not verify.
    pub(super) fn load(folder: &Folder) -> Result<Self, PublishError> {
        let (root, before) = load_root(folder)?;
        // A publisher that was killed while it replaced keys may have left files that only the root before verifies.
        let roots: Vec<&Signed<Root>> = [Some(&root.signed), before.as_ref()].into_iter().flatten().collect();
        let signed_by = |check: &dyn Fn(&Signed<Root>) -> bool| roots.iter().any(|root| check(root));
        let read =
            |name: &str| folder.read_metadata(name)?.ok_or_else(|| PublishError::broken(name, "the file is missing"));
        let refuse_unless = |good: bool, name: &str| {
            if good { Ok(()) } else { Err(PublishError::broken(name, "it is not signed by the keys of its role")) }
        };

        let timestamp: Document<Timestamp> = Document::parse("timestamp.json", read("timestamp.json")?)?;
        refuse_unless(signed_by(&|root| root.signed.verify_role(&timestamp.signed).is_ok()), "timestamp.json")?;
        let described = timestamp.signed.signed.meta.get("snapshot.json");
        let version = described.map(|meta| meta.version.get()).unwrap_or_default();
        let name = format!("{version}.snapshot.json");
        let snapshot: Document<Snapshot> = Document::parse(&name, read(&name)?)?;
        refuse_unless(signed_by(&|root| root.signed.verify_role(&snapshot.signed).is_ok()), &name)?;
        refuse_unless(described == Some(&snapshot.metafile()), &name)?;

        let load_targets = |role: &str| -> Result<Document<Targets>, PublishError> {
            let described = snapshot.signed.signed.meta.get(&format!("{role}.json"));
            let version = described.map(|meta| meta.version.get()).unwrap_or_default();
            let name = format!("{version}.{role}.json");
            let document: Document<Targets> = Document::parse(&name, read(&name)?)?;
            refuse_unless(described == Some(&document.metafile()), &name)?;
            Ok(document)
        };
        let targets = load_targets("targets")?;
        refuse_unless(signed_by(&|root| root.signed.verify_role(&targets.signed).is_ok()), "targets.json")?;
        let mut delegated = BTreeMap::new();
        if let Some(delegations) = &targets.signed.signed.delegations {
            for role in &delegations.roles {
                let document = load_targets(&role.name)?;
                refuse_unless(delegations.verify_role(&document.signed, &role.name).is_ok(), &role.name)?;
                delegated.insert(role.name.clone(), document);
            }
        }
        Ok(Self { root, timestamp, snapshot, targets, delegated })
    }

    /// The keys that may sign a delegated role.
    pub(super) fn delegated_keys(&self, name: &str) -> Option<RoleKeys> {
        let delegations = self.targets.signed.signed.delegations.as_ref()?;
        delegations.roles.iter().find(|role| role.name == name).map(|role| role.keys())
    }
}

/// The keys of a top-level role in a root.
pub(super) fn keys_of(root: &Root, role: RoleType) -> Result<&RoleKeys, PublishError> {
    root.roles.get(&role).ok_or_else(|| PublishError::broken("root", format!("it names no keys for {role}")))
}

/// The newest root that is linked to the first, and the one before it.
fn load_root(folder: &Folder) -> Result<(Document<Root>, Option<Signed<Root>>), PublishError> {
    let Some(first) = folder.read_metadata("1.root.json")? else {
        let reason = "holds no repository; make one with `bascule release init`";
        return Err(PublishError::Folder { path: folder.path().to_owned(), reason });
    };
    let mut root: Document<Root> = Document::parse("1.root.json", first)?;
    let check = |by: &Signed<Root>, of: &Signed<Root>, name: &str| {
        by.signed.verify_role(of).map_err(|error| PublishError::broken(name, in_one_line(&error)))
    };
    check(&root.signed, &root.signed, "1.root.json")?;
    let mut before = None;
    for version in 2..=MAX_ROOT_UPDATES {
        let name = format!("{version}.root.json");
        let Some(bytes) = folder.read_metadata(&name)? else { break };
        let next: Document<Root> = Document::parse(&name, bytes)?;
        check(&root.signed, &next.signed, &name)?;
        check(&next.signed, &next.signed, &name)?;
        if next.signed.signed.version.get() != version {
            return Err(PublishError::broken(name, "its version is not that of its name"));
        }
        before = Some(root.signed);
        root = next;
    }
    Ok((root, before))
}
