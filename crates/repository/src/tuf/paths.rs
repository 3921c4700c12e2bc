//! Which paths a delegation covers: 4.5 of TUF 1.0. A wildcard never matches `/`, so that `releases/*` is one folder and no
//! tree.

use ring::digest::{SHA256, digest};

use super::schema::Delegation;

impl Delegation {
    /// Whether the role may speak for a path. A delegation without any pattern covers nothing.
    pub fn covers(&self, path: &str) -> bool {
        if let Some(patterns) = &self.paths {
            return patterns.iter().any(|pattern| matches(pattern, path));
        }
        let Some(prefixes) = &self.path_hash_prefixes else { return false };
        let hash = hex::encode(digest(&SHA256, path.as_bytes()));
        prefixes.iter().any(|prefix| hash.starts_with(&prefix.to_ascii_lowercase()))
    }

    /// The patterns that name one path each, such as a channel's file.
    pub fn literal_paths(&self) -> impl Iterator<Item = &str> {
        let patterns = self.paths.iter().flat_map(|patterns| patterns.iter());
        patterns.filter(|pattern| !pattern.contains(['*', '?', '[']))
    }
}

/// A pattern as in glob(7): `*`, `?` and `[…]` within a folder, everything else itself.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut patterns, mut names) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) if matches_name(pattern, name) => {}
            _ => return false,
        }
    }
}

/// One folder or file name. A star that matched too little is tried again one character further; only the last star has
/// to be, so the time is bounded by the product of the lengths.
fn matches_name(pattern: &str, name: &str) -> bool {
    let (mut pattern, mut name) = (pattern, name);
    let mut retry: Option<(&str, &str)> = None;
    loop {
        if let Some(after) = pattern.strip_prefix('*') {
            retry = Some((after, name));
            pattern = after;
            continue;
        }
        let mut rest = name.chars();
        match (rest.next(), one(pattern, name.chars().next())) {
            (None, _) if pattern.is_empty() => return true,
            (Some(_), Some(after)) => (pattern, name) = (after, rest.as_str()),
            _ => {
                let Some((after, from)) = retry else { return false };
                let mut from = from.chars();
                if from.next().is_none() {
                    return false;
                }
                retry = Some((after, from.as_str()));
                (pattern, name) = (after, from.as_str());
            }
        }
    }
}

/// The pattern behind its first element, if that matches the character.
fn one(pattern: &str, character: Option<char>) -> Option<&str> {
    let character = character?;
    let mut rest = pattern.chars();
    match rest.next()? {
        '?' => Some(rest.as_str()),
        '[' => match set(rest.as_str()) {
            Some((negated, members, after)) => (contains(members, character) != negated).then_some(after),
            None => (character == '[').then_some(rest.as_str()),
        },
        own => (own == character).then_some(rest.as_str()),
    }
}

/// Splits `!abc]rest`. A `]` right after the beginning is a member; without an end it is no set.
fn set(text: &str) -> Option<(bool, &str, &str)> {
    let (negated, text) = text.strip_prefix('!').map_or((false, text), |rest| (true, rest));
    let from = text.chars().next()?.len_utf8();
    let end = from + text.get(from..)?.find(']')?;
    Some((negated, text.get(..end)?, text.get(end + 1..)?))
}

fn contains(members: &str, character: char) -> bool {
    let members: Vec<char> = members.chars().collect();
    let mut at = 0;
    while let Some(first) = members.get(at) {
        match (members.get(at + 1), members.get(at + 2)) {
            (Some('-'), Some(last)) => {
                if (*first..=*last).contains(&character) {
                    return true;
                }
                at += 3;
            }
            _ => {
                if *first == character {
                    return true;
                }
                at += 1;
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_specification() {
        for (pattern, path, expected) in [
            ("targets/*.tgz", "targets/foo.tgz", true),
            ("targets/*.tgz", "targets/foo.txt", false),
            ("foo-version-?.tgz", "foo-version-2.tgz", true),
            ("foo-version-?.tgz", "foo-version-alpha.tgz", false),
            ("*.tgz", "foo.tgz", true),
            ("*.tgz", "targets/foo.tgz", false),
            ("foo.tgz", "foo.tgz", true),
            ("foo.tgz", "foo.tgz/", false),
            ("*", "a/b", false),
            ("a?b", "a/b", false),
            ("a[/]b", "a/b", false),
            ("releases/*/*/*", "releases/1.0/x86-64/full.pack", true),
            ("releases/*/*/*", "releases/1.0/full.pack", false),
            ("*a*b*c", "xxaxxbxxbxxc", true),
            ("*a*b*c", "xxaxxbxxbxx", false),
            ("README.md", "readme.md", false),
            ("*", "", true),
            ("", "", true),
            ("?", "é", true),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]x", "]x", true),
            ("[ax", "[ax", true),
            ("**", "abc", true),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn no_pattern_takes_long() {
        let pattern = "*a".repeat(2000);
        let path = format!("{}b", "a".repeat(4000));
        assert!(!matches(&pattern, &path));
    }

    #[test]
    fn prefixes_of_hashes() {
        let delegation = |rules: serde_json::Value| -> Delegation {
            let mut role = serde_json::json!({"name": "r", "keyids": [], "threshold": 1});
            role.as_object_mut().unwrap().extend(rules.as_object().unwrap().clone());
            serde_json::from_value(role).unwrap()
        };
        let hash = hex::encode(digest(&SHA256, b"a/b"));
        assert!(delegation(serde_json::json!({"path_hash_prefixes": ["zz", hash[..3].to_uppercase()]})).covers("a/b"));
        assert!(!delegation(serde_json::json!({"path_hash_prefixes": []})).covers("a/b"));
        assert!(!delegation(serde_json::json!({})).covers("a/b"));
        assert!(delegation(serde_json::json!({"paths": ["x", "a/*"]})).covers("a/b"));
        let literal = delegation(serde_json::json!({"paths": ["edge.json", "releases/*/*/*"]}));
        assert_eq!(literal.literal_paths().collect::<Vec<_>>(), ["edge.json"]);
    }
}
