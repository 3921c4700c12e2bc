//! What a change would change, a line each: what a person reads before he signs. Made from the documents that are signed and
//! nothing else.

use std::collections::{BTreeMap, BTreeSet};

use bascule_image::release::channel::{self, Channel, Release};
use bascule_image::release::names::TargetPath;
use bascule_names::{ChannelName, Digest};
use tough::TargetName;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{RoleKeys, RoleType, Root, Target, Targets};

use super::commit::Change;
use super::folder::Folder;
use super::keys::{names_in, shown};
use super::release::newest;
use super::state::{Current, digest_of, expires};

/// Most names of files that are listed one by one.
const MAX_NAMES: usize = 20;

/// The difference between what is published and a change.
pub(super) fn lines(folder: &Folder, current: &Current, change: &Change) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(root) = &change.root {
        of_root(&mut lines, &current.root.signed.signed, &root.signed.signed);
    }
    if let Some(targets) = &change.targets {
        of_targets(&mut lines, folder, "targets", Some(&current.targets.signed.signed), &targets.signed.signed);
    }
    for (name, own) in &change.delegated {
        let before = current.delegated.get(name).map(|document| &document.signed.signed);
        of_targets(&mut lines, folder, name, before, &own.signed.signed);
    }
    lines
}

fn of_root(lines: &mut Vec<String>, old: &Root, new: &Root) {
    lines.push(versions("root", Some((old.version.get(), expires(old))), (new.version.get(), expires(new))));
    let names: BTreeMap<_, _> = names_in(&old._extra).into_iter().chain(names_in(&new._extra)).collect();
    for role in [RoleType::Root, RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp] {
        of_keys(lines, &role.to_string(), old.roles.get(&role), new.roles.get(&role), &names);
    }
    let key = |id: &Decoded<Hex>| old.keys.get(id) != new.keys.get(id) && old.keys.contains_key(id);
    for id in new.keys.keys().filter(|id| key(id)) {
        lines.push(format!("~ key {} is ANOTHER KEY under the same id", shown(&id[..], &names)));
    }
    if old.consistent_snapshot != new.consistent_snapshot {
        lines.push("~ the names of files no longer hold their digests: readers would break".to_owned());
    }
}

fn of_keys(
    lines: &mut Vec<String>,
    role: &str,
    old: Option<&RoleKeys>,
    new: Option<&RoleKeys>,
    names: &BTreeMap<String, String>,
) {
    let ids = |keys: Option<&RoleKeys>| -> BTreeSet<Vec<u8>> {
        keys.into_iter().flat_map(|keys| &keys.keyids).map(|id| id.to_vec()).collect()
    };
    let (before, after) = (ids(old), ids(new));
    let added = after.difference(&before).map(|id| format!("+ {role}: key {} may sign", shown(id, names)));
    lines.extend(added);
    let removed = before.difference(&after).map(|id| format!("- {role}: key {} is revoked", shown(id, names)));
    lines.extend(removed);
    let threshold = |keys: Option<&RoleKeys>| keys.map(|keys| keys.threshold.get());
    let (was, is) = (threshold(old), threshold(new));
    if was != is {
        let number = |threshold: Option<u64>| threshold.map_or("none".to_owned(), |threshold| threshold.to_string());
        let lower = if was.zip(is).is_some_and(|(was, is)| is < was) { " (LOWER)" } else { "" };
        lines.push(format!("~ {role}: threshold {} -> {}{lower}", number(was), number(is)));
    }
}

fn versions(
    role: &str,
    old: Option<(u64, chrono::DateTime<chrono::Utc>)>,
    new: (u64, chrono::DateTime<chrono::Utc>),
) -> String {
    let time = |time: chrono::DateTime<chrono::Utc>| time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    match old {
        Some((version, until)) => {
            format!("  {role} {version} -> {}, expires {} (before: {})", new.0, time(new.1), time(until))
        }
        None => format!("  {role} {} (new), expires {}", new.0, time(new.1)),
    }
}

fn of_targets(lines: &mut Vec<String>, folder: &Folder, role: &str, old: Option<&Targets>, new: &Targets) {
    let before = old.map(|old| (old.version.get(), expires(old)));
    lines.push(versions(role, before, (new.version.get(), expires(new))));
    of_delegations(lines, old, new);
    let none = Default::default();
    let files = old.map_or(&none, |old| &old.targets);
    let (mut added, mut removed, mut changed) = (Vec::new(), Vec::new(), Vec::new());
    let all: BTreeSet<&str> = files.keys().chain(new.targets.keys()).map(TargetName::raw).collect();
    for name in all {
        let find = |targets: &std::collections::HashMap<TargetName, Target>| {
            targets.iter().find(|(known, _)| known.raw() == name).map(|(_, target)| target.clone())
        };
        let (was, is) = (find(files), find(&new.targets));
        if was == is {
            continue;
        }
        if let Some(channel) = name.strip_suffix(".json").and_then(|name| ChannelName::parse(name).ok()) {
            of_channel(lines, folder, &channel, name, was.as_ref(), is.as_ref());
            continue;
        }
        match (was, is) {
            (None, Some(_)) => added.push(name),
            (Some(_), None) => removed.push(name),
            _ => changed.push(name),
        }
    }
    for (sign, what, names) in [("+", "", &added), ("-", " is named no more", &removed)] {
        lines.extend(names.iter().take(MAX_NAMES).map(|name| format!("{sign} file {name}{what}")));
        if let Some(more) = names.len().checked_sub(MAX_NAMES).filter(|more| *more > 0) {
            lines.push(format!("{sign} and {more} files more"));
        }
    }
    // All of them: what is published never changes.
    lines.extend(changed.iter().map(|name| format!("~ file {name} IS REPLACED by another content")));
}

fn of_delegations(lines: &mut Vec<String>, old: Option<&Targets>, new: &Targets) {
    let roles = |targets: Option<&Targets>| -> BTreeMap<String, (RoleKeys, String)> {
        let delegations = targets.and_then(|targets| targets.delegations.as_ref());
        let roles = delegations.into_iter().flat_map(|delegations| &delegations.roles);
        roles.map(|role| (role.name.clone(), (role.keys(), format!("{:?}", role.paths)))).collect()
    };
    let (before, after) = (roles(old), roles(Some(new)));
    let mut names = old.map(|old| names_in(&old._extra)).unwrap_or_default();
    names.extend(names_in(&new._extra));
    for name in before.keys().chain(after.keys().filter(|name| !before.contains_key(*name))) {
        let (was, is) = (before.get(name), after.get(name));
        match (was, is) {
            (None, Some(_)) => lines.push(format!("+ {name} is signed with keys of its own")),
            (Some(_), None) => lines.push(format!("- {name} is not signed with keys of its own any more")),
            (Some((_, was)), Some((_, is))) if was != is => {
                lines.push(format!("~ {name} may speak for other files than before"));
            }
            _ => {}
        }
        of_keys(lines, name, was.map(|(keys, _)| keys), is.map(|(keys, _)| keys), &names);
    }
}

fn of_channel(
    lines: &mut Vec<String>,
    folder: &Folder,
    name: &ChannelName,
    file: &str,
    was: Option<&Target>,
    is: Option<&Target>,
) {
    let read = |target: Option<&Target>| -> Result<Option<Channel>, String> {
        let Some(target) = target else { return Ok(None) };
        let path: TargetPath = file.parse().map_err(|error| format!("{error}"))?;
        let digest: Digest = digest_of(file, target).map_err(|error| error.to_string())?;
        let bytes =
            folder.read_target(&path, &digest, channel::MAX_LENGTH as u64).map_err(|error| error.to_string())?;
        Channel::parse(&bytes).map(Some).map_err(|error| error.to_string())
    };
    let (before, after) = match (read(was), read(is)) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(error), _) | (_, Err(error)) => {
            lines.push(format!("~ channel {name} changes, BUT WHAT IS IN IT CAN'T BE SEEN: {error}"));
            return;
        }
    };
    let empty = Vec::new();
    let old = before.as_ref().map_or(&empty, |channel| &channel.releases);
    let new = after.as_ref().map_or(&empty, |channel| &channel.releases);
    for release in new {
        match old.iter().find(|known| known.version == release.version) {
            None => lines.push(format!("+ channel {name}: release {}", described(release))),
            Some(known) if known == release => {}
            Some(known) => lines.extend(changed(known, release).map(|text| format!("~ channel {name}: {text}"))),
        }
    }
    let gone = old.iter().filter(|known| new.iter().all(|release| release.version != known.version));
    lines.extend(gone.map(|known| format!("- channel {name}: release {} is left out", known.version)));
    let offer = |channel: Option<&Channel>| {
        channel.and_then(newest).map_or("nothing".to_owned(), |release| release.version.to_string())
    };
    let (was, is) = (offer(before.as_ref()), offer(after.as_ref()));
    let step = if was == is { format!("still offers {is}") } else { format!("offers {is} (before: {was})") };
    lines.push(format!("  channel {name} {step}"));
    if after.is_none() {
        lines.push(format!("- channel {name} is gone"));
    }
    if let (Some(before), Some(after)) = (&before, &after)
        && before.product != after.product
    {
        lines.push(format!("~ channel {name}: the product was {}, now {}", before.product, after.product));
    }
}

fn described(release: &Release) -> String {
    let mut text = release.version.to_string();
    let manifests = release.manifests.iter().map(|(architecture, file)| format!("{architecture} {}", file.digest));
    text.push_str(&format!(" ({})", manifests.collect::<Vec<_>>().join(", ")));
    if release.severity != Default::default() || !release.fixes.is_empty() {
        text.push_str(&format!(", severity {}, fixes {}", release.severity, release.fixes.len()));
    }
    if let Some(floor) = &release.floor {
        text.push_str(&format!(", minimum source version {floor}"));
    }
    if release.downgrade {
        text.push_str(", NODES MAY GO DOWN TO IT");
    }
    if let Some(withdrawn) = &release.withdrawn {
        text.push_str(&format!(", withdrawn: {}", withdrawn.reason));
    }
    text
}

fn changed<'a>(old: &'a Release, new: &'a Release) -> impl Iterator<Item = String> + 'a {
    let version = &new.version;
    let mut found = Vec::new();
    match (&old.withdrawn, &new.withdrawn) {
        (None, Some(withdrawn)) => found.push(format!("release {version} is withdrawn: {}", withdrawn.reason)),
        (Some(_), None) => found.push(format!("release {version} is NOT WITHDRAWN any more")),
        _ => {}
    }
    if old.manifests != new.manifests {
        found.push(format!("release {version} IS REPLACED: now {}", described(new)));
    }
    let rest = |release: &Release| Release { withdrawn: None, manifests: BTreeMap::new(), ..release.clone() };
    if rest(old) != rest(new) {
        found.push(format!("release {version} is described anew: {}", described(new)));
    }
    found.into_iter()
}
