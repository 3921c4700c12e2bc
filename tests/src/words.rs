//! Words that changed, by the list in docs/glossary.md: texts for people do not say the old ones.

const GLOSSARY: &str = include_str!("../../docs/glossary.md");
/// Where the list begins in it.
const LIST: &str = "## Words that changed";

/// The old words of the list, each with where it was said. What stands in parentheses says which meaning of a word is gone.
fn old_words() -> impl Iterator<Item = (&'static str, &'static str)> {
    let list = GLOSSARY.split_once(LIST).map(|(_, list)| list).unwrap_or_default();
    let rows = list.lines().filter_map(|line| line.strip_prefix("| ")).skip(1);
    rows.flat_map(|row| {
        let mut cells = row.split('|').map(str::trim);
        let old = cells.next().unwrap_or_default();
        let place = cells.nth(1).unwrap_or_default();
        let old = old.split_once(" (").map_or(old, |(old, _)| old);
        old.split([',', ';']).map(move |word| (word.trim().trim_start_matches("gate "), place))
    })
}

/// The old words that a text says: a name of the API as it is written, other words at the beginning of one, and old headings in
/// headings.
#[must_use]
pub fn outdated(text: &str) -> Vec<&'static str> {
    // Lines are broken anywhere.
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let lower = joined.to_lowercase();
    let says = |(word, place): &(&str, &str)| {
        if *place == "headings" {
            return text.lines().any(|line| line.starts_with('#') && line.trim_start_matches(['#', ' ']) == *word);
        }
        let is_name = word.starts_with('`') || !word.contains(char::is_lowercase);
        let begins =
            |(at, _): (usize, &str)| !lower.get(..at).is_some_and(|before| before.ends_with(char::is_alphanumeric));
        if is_name { joined.contains(word) } else { lower.match_indices(&word.to_lowercase()).any(begins) }
    };
    old_words().filter(says).map(|(word, _)| word).collect()
}

/// What a program may say: the literals of a source in Rust, but for those of its tests.
#[must_use]
pub fn texts(source: &str) -> Vec<String> {
    let mut rest = source.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut texts = Vec::new();
    while let Some(letter) = rest.chars().next() {
        let after = rest.get(letter.len_utf8()..).unwrap_or_default();
        let hashes = after.len() - after.trim_start_matches('#').len();
        rest = match letter {
            '/' if after.starts_with('/') => after.split_once('\n').map_or("", |(_, next)| next),
            'r' if after.trim_start_matches('#').starts_with('"') => {
                let body = after.get(hashes + 1..).unwrap_or_default();
                let (text, next) = body.split_once(&format!("\"{}", "#".repeat(hashes))).unwrap_or((body, ""));
                texts.push(text.to_owned());
                next
            }
            '"' => {
                let (text, next) = quoted(after);
                texts.push(text.replace("\\\n", " "));
                next
            }
            '\'' => after_a_character(after),
            // A word that ends with an r begins no literal.
            _ if letter.is_alphanumeric() => {
                after.trim_start_matches(|next: char| next.is_alphanumeric() || next == '_')
            }
            _ => after,
        };
    }
    texts
}

/// Up to the end of a literal, and what follows it.
fn quoted(text: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = text.find(|letter| {
        let ends = letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        ends
    });
    end.and_then(|end| Some((text.get(..end)?, text.get(end + 1..)?))).unwrap_or((text, ""))
}

/// What follows a literal of one character, or the tick of a lifetime.
fn after_a_character(text: &str) -> &str {
    let rest = match text.strip_prefix('\\') {
        Some(escaped) => escaped.get(1..).and_then(|rest| rest.split_once('\'')).map(|(_, next)| next),
        None => {
            let mut letters = text.chars();
            letters.next();
            letters.as_str().strip_prefix('\'')
        }
    };
    rest.unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_words_are_found_in_their_meaning_and_no_others() {
        assert!(old_words().count() > 20, "the list in the glossary changed: {:?}", old_words().collect::<Vec<_>>());
        let cases: [(&str, &[&str]); 8] = [
            ("What\nmoves is finished.", &["what moves"]),
            ("a controller moves the workload", &[]),
            ("the reason `Soak`", &["`Soak`"]),
            ("the reason `WaveSoak`, while nodes soak", &[]),
            ("It was mended. A recommendation.", &["mend"]),
            ("## Settings", &["Settings"]),
            ("The settings of a node", &[]),
            ("POLICY MOVING", &["MOVING"]),
        ];
        for (text, found) in cases {
            assert_eq!(outdated(text), found, "{text}");
        }
    }

    #[test]
    fn the_texts_of_a_source_are_its_literals() {
        let source = r###"
// "A comment."
fn f<'a>(letter: &'a str) -> bool { letter == '"' || letter == '\'' || letter == 'r' }
const A: &str = "says \"this\" \
    and that";
const B: &str = r#"a "raw" one"#;
const C: (&str, &str) = (r"\d", for_"");
#[cfg(test)]
mod tests {
    const D: &str = "none";
}
"###;
        assert_eq!(texts(source), [r#"says \"this\"      and that"#, r#"a "raw" one"#, r"\d", ""]);
    }
}
