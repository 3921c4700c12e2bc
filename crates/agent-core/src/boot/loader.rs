//! What systemd-boot will do with an inventory: which entry it puts first, and what is picked instead of the first
//! (systemd, src/boot/boot.c: `boot_entry_compare`, `config_select_default_entry`; UAPI Boot Loader Specification,
//! "Sorting").

use std::cmp::Ordering;

use bascule_api::compare_versions;

use super::name::{Counters, EntryName};
use super::{BootFile, FileContent, Pin, ShownFacts, TextContent, TextEntry};

/// An entry as the loader sorts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoaderEntry {
    /// The whole file name in lower case.
    pub(crate) file: String,
    /// The same without counters: what the loader knows a file by, in its variables and in pins.
    pub(crate) id: String,
    /// Which profile of the file it starts, and what the loader calls that, from the second on.
    pub(crate) profile: Option<(usize, String)>,
    /// Whether the file was seen to be whole. The loader does not ask.
    pub(crate) is_whole: bool,
    pub(crate) sort_key: Option<String>,
    /// Only entries of type #1 have one.
    pub(crate) machine_id: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) counters: Option<Counters>,
}

impl LoaderEntry {
    /// The entries that the loader shows for a file, in its order. A file that could not be read may be one: the caller has to know.
    pub(crate) fn of(file: &BootFile) -> Vec<Self> {
        match &file.content {
            FileContent::Image(image) => {
                let first = Self::named(&file.name, image.sort_key.clone(), image.version.clone());
                let more = first.as_ref().map(|entry| entry.profiles(&image.profiles)).unwrap_or_default();
                first.into_iter().chain(more).collect()
            }
            FileContent::ShownOnly(shown) => {
                let entry = Self::named(&file.name, None, None).map(|entry| Self { is_whole: false, ..entry });
                entry.map(|entry| entry.profiles(shown)).unwrap_or_default()
            }
            FileContent::NotAnImage | FileContent::Placeholder | FileContent::Unread(_) => Vec::new(),
        }
    }

    /// Entries of the same file for these profiles.
    pub(crate) fn profiles(&self, shown: &[ShownFacts]) -> Vec<Self> {
        let entry = |shown: &ShownFacts| {
            let named = || shown.profile_id.clone().unwrap_or_else(|| shown.profile.to_string()).to_ascii_lowercase();
            let profile = (shown.profile > 0).then(|| (shown.profile, named()));
            let (sort_key, version) = (shown.sort_key.clone(), shown.version.clone());
            Self { profile, sort_key, version, ..self.clone() }
        };
        shown.iter().map(entry).collect()
    }

    /// An entry under a name.
    pub(crate) fn named(name: &str, sort_key: Option<String>, version: Option<String>) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        if is_passed_over(&lower) {
            return None;
        }
        let EntryName { base, counters } = EntryName::parse(&lower)?;
        let (id, machine_id, profile) = (EntryName::good(&base), None, None);
        Some(Self { id, file: lower, profile, is_whole: true, sort_key, machine_id, version, counters })
    }

    /// An entry of type #1, if the loader shows it. One that could not be read may be shown: the caller has to know.
    pub(crate) fn of_text(text: &TextEntry) -> Option<Self> {
        let TextContent::Shown(facts) = &text.content else { return None };
        let lower = text.name.to_ascii_lowercase();
        if is_passed_over(&lower) {
            return None;
        }
        let EntryName { base, counters } = EntryName::parse_text(&lower)?;
        // Nobody finds it on a partition.
        let lower = if text.partition.is_none() { text.place(&lower) } else { lower };
        let (sort_key, machine_id, version) = (facts.sort_key.clone(), facts.machine_id.clone(), facts.version.clone());
        let (id, profile) = (format!("{base}.conf"), None);
        Some(Self { id, file: lower, profile, is_whole: true, sort_key, machine_id, version, counters })
    }

    /// What the loader lists it as.
    pub(crate) fn listed(&self) -> String {
        self.with_profile(&self.id)
    }

    /// Its file, and the profile from the second on.
    pub(crate) fn in_words(&self) -> String {
        self.with_profile(&self.file)
    }

    fn with_profile(&self, name: &str) -> String {
        self.profile.as_ref().map_or_else(|| name.to_owned(), |(_, profile)| format!("{name}@{profile}"))
    }

    fn number(&self) -> usize {
        self.profile.as_ref().map_or(0, |(number, _)| *number)
    }

    fn is_bad(&self) -> bool {
        self.counters.is_some_and(|counters| counters.left == 0)
    }
}

/// Names, in lower case, that the loader passes over.
fn is_passed_over(lower: &str) -> bool {
    lower.starts_with('.') || lower.starts_with("auto-")
}

/// Bad entries last; then by sort key, machine ID (none first), version descending, name descending, the profiles of a file in their
/// order, more tries left, fewer done. (The loader gives the first profile no number, and it comes first since it was added first.)
pub(crate) fn compare(a: &LoaderEntry, b: &LoaderEntry) -> Ordering {
    let by_key = match (&a.sort_key, &b.sort_key) {
        (Some(key), Some(other)) => key.cmp(other).then_with(|| a.machine_id.cmp(&b.machine_id)).then_with(|| {
            let version = |entry: &LoaderEntry| entry.version.clone().unwrap_or_default();
            compare_versions(&version(b), &version(a))
        }),
        _ => Ordering::Equal,
    };
    a.is_bad()
        .cmp(&b.is_bad())
        .then_with(|| a.sort_key.is_none().cmp(&b.sort_key.is_none()))
        .then(by_key)
        .then_with(|| compare_versions(&b.id, &a.id))
        .then_with(|| a.number().cmp(&b.number()))
        .then_with(|| match (a.counters, b.counters) {
            (Some(a), Some(b)) => b.left.cmp(&a.left).then(a.done.unwrap_or(0).cmp(&b.done.unwrap_or(0))),
            _ => Ordering::Equal,
        })
}

/// The entries that the loader shows, in its order, by the names it knows them by. Equal ones stay in the order of `files`: the loader
/// reads the ESP first, and each folder in its own order.
pub fn loader_order(files: &[BootFile], texts: &[TextEntry]) -> Vec<String> {
    let texts = texts.iter().filter_map(LoaderEntry::of_text);
    let mut entries: Vec<_> = texts.chain(files.iter().flat_map(LoaderEntry::of)).collect();
    entries.sort_by(compare);
    entries.iter().map(LoaderEntry::listed).collect()
}

/// The entry that the order alone picks. Newer boot loaders (systemd #41681) pick no further profile by themselves. Which one a machine
/// has is not asked: where the first profile of a file comes before all others, it is picked by either.
pub(crate) fn first(entries: &[LoaderEntry]) -> Option<&LoaderEntry> {
    entries.iter().min_by(|a, b| compare(a, b))
}

/// The first pin that keeps the loader from taking an armed entry first, and the running one again once the tries are used up.
/// `ids` are all that have to be picked in their turn, `armed` the one that is to be picked first.
///
/// It may fit entries that nobody sees here (of type #1, on a partition that is not mounted). So a pin does no harm only where it
/// fits all of ours, which leaves it to the order; or where it is one that minds tries and names exactly the armed entry, which it
/// gives up with the last of them.
pub(crate) fn pin_in_the_way<'p>(pins: &'p [Pin], ids: &[String], armed: &str) -> Option<&'p Pin> {
    pins.iter().find(|pin| {
        let pattern = pin.pattern.to_ascii_lowercase();
        // `@saved` is what was booted last, and other words in `@` are the loader's own (loader.conf(5)).
        let fits_all = !pattern.starts_with('@')
            && ids.iter().all(|id| glob(pattern.as_bytes(), id.to_ascii_lowercase().as_bytes()));
        let gives_up = pin.minds_tries && pattern == armed.to_ascii_lowercase();
        !(fits_all || gives_up)
    })
}

/// `*` and `?`, as the loader's own fnmatch has them. Patterns are short: both sides are bounded by whoever read them.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // Where to go on when a match fails: the last star, and how much it has taken.
    let mut star: Option<(usize, usize)> = None;
    while from < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(wanted) if *wanted == b'?' || Some(wanted) == text.get(from) => {
                at += 1;
                from += 1;
            }
            _ => match star {
                Some((place, taken)) => {
                    star = Some((place, taken + 1));
                    at = place + 1;
                    from = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(at).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, key: Option<&str>, version: &str) -> LoaderEntry {
        LoaderEntry::named(name, key.map(str::to_owned), Some(version.to_owned())).unwrap()
    }

    #[test]
    fn bad_entries_are_last_then_sort_key_then_version() {
        let mut entries = vec![
            entry("acme_1.9+0-3.efi", Some("acme"), "1.9"),
            entry("acme_1.2.efi", Some("acme"), "1.2"),
            entry("acme_1.10+3-0.efi", Some("acme"), "1.10"),
            entry("old.efi", None, "9"),
            entry("zeta.efi", Some("zeta"), "99"),
        ];
        entries.sort_by(compare);
        let names: Vec<_> = entries.iter().map(|entry| entry.file.as_str()).collect();
        assert_eq!(names, ["acme_1.10+3-0.efi", "acme_1.2.efi", "zeta.efi", "old.efi", "acme_1.9+0-3.efi"]);
        assert_eq!(first(&entries).unwrap().id, "acme_1.10.efi");
        // Of one version, the name decides without its counter, which would put the other one first.
        let [plain, rebuilt] = ["acme_1.0+3-0.efi", "acme_1.0_2.efi"].map(|name| entry(name, Some("acme"), "1.0"));
        let without = entry("acme_1.0.efi", Some("acme"), "1.0");
        assert_eq!(compare(&plain, &rebuilt), compare(&without, &rebuilt));
        assert_eq!(LoaderEntry::named("auto-x.efi", None, None), None);
    }

    #[test]
    fn an_entry_of_type_1_is_sorted_among_the_images() {
        use super::super::{BootPartition, TextFacts};
        let text = |name: &str, key: &str, id: Option<&str>, version: &str| {
            let facts = TextFacts {
                sort_key: Some(key.to_owned()),
                machine_id: id.map(str::to_owned),
                version: Some(version.to_owned()),
            };
            let (partition, content) = (Some(BootPartition::Esp), TextContent::Shown(facts));
            LoaderEntry::of_text(&TextEntry { partition, name: name.to_owned(), content })
        };
        let mut entries = [
            text("used.up+0-3.conf", "acme", None, "9").unwrap(),
            text("of.a.machine.conf", "acme", Some("2f"), "8").unwrap(),
            entry("acme_1.1+3-0.efi", Some("acme"), "1.1"),
            text("Rescue+2.CONF", "acme", None, "1.2").unwrap(),
        ];
        entries.sort_by(compare);
        let ids: Vec<_> = entries.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids, ["rescue.conf", "acme_1.1.efi", "of.a.machine.conf", "used.up.conf"]);
        for name in ["auto-x.conf", ".hidden.conf", "entry.efi", "entry"] {
            assert_eq!(text(name, "acme", None, "1"), None, "{name}");
        }
    }

    #[test]
    fn what_is_cut_short_and_further_profiles_are_entries_like_any_other() {
        use super::super::{BootPartition, ImageFacts};
        let text = |text: &str| Some(text.to_owned());
        let shown = |profile, id: Option<&str>, version: &str| {
            let (profile_id, sort_key) = (id.map(str::to_owned), text("acme"));
            ShownFacts { profile, profile_id, sort_key, version: text(version) }
        };
        let file = |name: &str, content| {
            let (partition, name) = (BootPartition::Esp, name.to_owned());
            BootFile { partition, name, size: 1000, content, digest: None, start: None }
        };
        let profiles = vec![shown(1, Some("Debug"), "1.1"), shown(2, None, "1.3")];
        let image = ImageFacts { sort_key: text("acme"), version: text("1.1"), root_hash: None, profiles };
        let files = [
            file("acme_1.0.efi", FileContent::ShownOnly(vec![shown(0, None, "1.0")])),
            file("acme_1.2.efi", FileContent::ShownOnly(vec![shown(0, None, "1.2")])),
            file("acme_1.1+3-0.efi", FileContent::Image(image)),
            file("auto-acme.efi", FileContent::ShownOnly(vec![shown(0, None, "9")])),
            file("acme_9.efi", FileContent::NotAnImage),
        ];
        let order = ["acme_1.1.efi@2", "acme_1.2.efi", "acme_1.1.efi", "acme_1.1.efi@debug", "acme_1.0.efi"];
        assert_eq!(loader_order(&files, &[]), order);
        let entries: Vec<_> = files.iter().flat_map(LoaderEntry::of).collect();
        assert_eq!(first(&entries).unwrap().in_words(), "acme_1.1+3-0.efi@2");
        let cut = entries.iter().filter(|entry| !entry.is_whole).map(|entry| entry.file.as_str());
        assert_eq!(cut.collect::<Vec<_>>(), ["acme_1.0.efi", "acme_1.2.efi"]);
    }

    fn does_no_harm(pattern: &str, minds_tries: bool) -> bool {
        let ids = ["acme-os_1.0.efi".to_owned(), "acme-os_1.1.efi".to_owned()];
        let pin = Pin { place: "default", pattern: pattern.to_owned(), minds_tries };
        pin_in_the_way(&[pin], &ids, "acme-os_1.1.efi").is_none()
    }

    #[test]
    fn only_a_pin_that_fits_all_is_harmless() {
        for harmless in ["*", "acme-os_*", "ACME-OS_1.?*.efi"] {
            assert!(does_no_harm(harmless, false) && does_no_harm(harmless, true), "{harmless}");
        }
        for pins in ["acme-os_1.0*", "acme-os_1.0.efi", "@saved", "auto-windows", "acme-os_1.1*", "", "other*"] {
            assert!(!does_no_harm(pins, false) && !does_no_harm(pins, true), "{pins}");
        }
    }

    /// With the tries used up, `default` boots the bad entry for ever, and `preferred` what the order says.
    #[test]
    fn a_preferred_entry_that_is_the_armed_one_is_given_up_with_its_last_try() {
        for armed in ["acme-os_1.1.efi", "Acme-OS_1.1.efi"] {
            assert!(does_no_harm(armed, true) && !does_no_harm(armed, false), "{armed}");
        }
    }
}
