//! Text from elsewhere on a terminal: a node's error, a reason that somebody typed, a gate's answer. Whoever wrote it must not
//! move the cursor, clear the screen, or make a line of his own look like one of this program's.

use std::borrow::Cow;

/// The styles that this program writes itself (`console`, the four tones). Whoever forges one colours a word.
const OWN_STYLES: [&str; 5] = ["\u{1b}[0m", "\u{1b}[1m", "\u{1b}[31m", "\u{1b}[32m", "\u{1b}[33m"];

/// Turns the order of what follows around without being seen (Unicode Standard Annex 9, "Explicit Formatting Characters").
const fn turns_around(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn moves_more_than_ink(character: char) -> bool {
    (character.is_control() && !matches!(character, '\n' | '\t')) || turns_around(character)
}

/// What a terminal is given: control characters are written out (`\u{1b}`), apart from new lines, tabs and this program's
/// own styles.
pub(crate) fn shown(text: &str) -> Cow<'_, str> {
    if !text.chars().any(moves_more_than_ink) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if let Some(style) = OWN_STYLES.iter().find(|style| rest.starts_with(**style)) {
            out.push_str(style);
            rest = rest.get(style.len()..).unwrap_or_default();
            continue;
        }
        if moves_more_than_ink(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
        rest = rest.get(character.len_utf8()..).unwrap_or_default();
    }
    Cow::Owned(out)
}

/// Puts every text of a document into one line.
pub(crate) fn in_one_line(document: &mut serde_json::Value) {
    match document {
        serde_json::Value::String(text) if text.contains(['\n', '\r', '\t']) => {
            *text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(in_one_line),
        serde_json::Value::Object(fields) => fields.values_mut().for_each(in_one_line),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_elsewhere_steers_a_terminal() {
        let clears = "\u{1b}[2J\u{1b}[Hworkers 40/40\r\u{7}\u{9b}1A\u{202e}";
        let seen = shown(clears);
        assert!(!seen.chars().any(moves_more_than_ink), "{seen:?}");
        assert!(seen.starts_with("\\u{1b}[2J\\u{1b}[Hworkers 40/40\\r\\u{7}"), "{seen}");
        let own = "\u{1b}[31m\u{1b}[1mFROZEN\u{1b}[0m until\n\tthen";
        assert!(matches!(shown(own), Cow::Borrowed(_)) || shown(own) == own);
        assert_eq!(shown("ü ✓ ░"), "ü ✓ ░");
        // An ESC at the very end, and one before what only begins like a style.
        assert_eq!(shown("a\u{1b}"), "a\\u{1b}");
        assert_eq!(shown("\u{1b}[3m"), "\\u{1b}[3m");
    }

    #[test]
    fn a_reason_is_one_line() {
        let mut document =
            serde_json::json!({"reason": "because\nFROZEN everywhere\r\n  by  root", "list": ["a\tb", "c d"]});
        in_one_line(&mut document);
        assert_eq!(
            document,
            serde_json::json!({"reason": "because FROZEN everywhere by root", "list": ["a b", "c d"]})
        );
    }
}
