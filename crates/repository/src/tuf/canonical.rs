//! The canonical form of what was received: the bytes that a signature is over.
//!
//! TUF 1.0, 4.1 and 4.2.1: undefined attributes belong to what is signed. So the form is made from the received text, not from
//! what this version understood of it: members sorted by code point, no spaces, only `"` and `\` escaped, no fractions
//! (<http://wiki.laptop.org/go/Canonical_JSON>). A member that occurs twice is refused, since two readers could take
//! different ones of the two.
//!
//! Nothing but the output and 12 bytes for each member of an open object is held: a tree of values would take 30 times
//! the text, and the text comes from a server.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The canonical form of the member `signed` of a metadata file.
///
/// # Errors
/// The text is no JSON object, has no `signed` or more than one, or holds what canonical JSON has no form for.
pub fn canonical_signed(bytes: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let canonical = deserializer.deserialize_map(File)?;
    deserializer.end()?;
    Ok(canonical)
}

/// The canonical form of a whole JSON text.
///
/// # Errors
/// As [`canonical_signed`].
pub fn canonical(bytes: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut out = Vec::new();
    Canonical(&mut out).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(out)
}

struct File;

impl<'de> Visitor<'de> for File {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `signed` and `signatures`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<u8>, A::Error> {
        let mut signed: Option<Vec<u8>> = None;
        while let Some(name) = map.next_key::<String>()? {
            if name != "signed" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let mut out = Vec::new();
            map.next_value_seed(Canonical(&mut out))?;
            if signed.replace(out).is_some() {
                return Err(A::Error::duplicate_field("signed"));
            }
        }
        signed.ok_or_else(|| A::Error::missing_field("signed"))
    }
}

/// Appends the canonical form of a value.
struct Canonical<'a>(&'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Canonical<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Canonical<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without fractions")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.extend_from_slice(b"null");
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.0.extend_from_slice(if value { b"true" } else { b"false" });
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.0.extend_from_slice(value.to_string().as_bytes());
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.0.extend_from_slice(value.to_string().as_bytes());
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        Err(E::custom(format!("the number {value} is no whole number of 64 bits")))
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        string(self.0, value);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.0.push(b'[');
        let start = self.0.len();
        loop {
            let before = self.0.len();
            if before > start {
                self.0.push(b',');
            }
            if items.next_element_seed(Canonical(self.0))?.is_none() {
                self.0.truncate(before);
                break;
            }
        }
        self.0.push(b']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let out = self.0;
        out.push(b'{');
        let start = out.len();
        let mut members: Vec<Member> = Vec::new();
        while let Some(name) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            let begin = out.len() - start;
            string(out, &name);
            let colon = out.len() - start;
            out.push(b':');
            map.next_value_seed(Canonical(out))?;
            let member = Member::new(begin, colon, out.len() - start);
            members.push(member.ok_or_else(|| A::Error::custom("an object of more than 4 GiB"))?);
        }
        let text = out.split_off(start);
        members.sort_by(|one, other| one.name(&text).cmp(other.name(&text)));
        for (number, member) in members.iter().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            out.extend_from_slice(member.whole(&text));
        }
        let twice = members.windows(2).find(|pair| match pair {
            [one, other] => one.name(&text).eq(other.name(&text)),
            _ => false,
        });
        if let Some([member, ..]) = twice {
            let name = String::from_utf8_lossy(member.whole(&text)).chars().take(80).collect::<String>();
            return Err(A::Error::custom(format!("a member occurs twice: {name}")));
        }
        out.push(b'}');
        Ok(())
    }
}

/// Where a member lies in the text of its object: its name from `begin` to `colon`, its value from there to `end`.
struct Member {
    begin: u32,
    colon: u32,
    end: u32,
}

impl Member {
    fn new(begin: usize, colon: usize, end: usize) -> Option<Self> {
        let narrow = |place: usize| u32::try_from(place).ok();
        Some(Self { begin: narrow(begin)?, colon: narrow(colon)?, end: narrow(end)? })
    }

    fn whole<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        text.get(self.begin as usize..self.end as usize).unwrap_or_default()
    }

    /// The bytes of the name without quotes and escapes: UTF-8 sorts like its code points.
    fn name<'a>(&self, text: &'a [u8]) -> impl Iterator<Item = u8> + 'a {
        let quoted = text.get(self.begin as usize..self.colon as usize).unwrap_or_default();
        let inner = quoted.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or_default();
        let mut escaped = false;
        inner.iter().copied().filter(move |byte| {
            escaped = *byte == b'\\' && !escaped;
            !escaped
        })
    }
}

fn string(out: &mut Vec<u8>, value: &str) {
    out.push(b'"');
    for byte in value.bytes() {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(text: &str) -> Option<String> {
        canonical(text.as_bytes()).ok().map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[test]
    fn members_are_sorted_and_nothing_is_escaped_without_need() {
        let text =
            r#" { "b" : [1, -2, null, true, {}, []], "a\"" : "x\ny\\\u00e9", "a" : {"z": 1, "y": 2}, "" : "" } "#;
        let expected = "{\"\":\"\",\"a\":{\"y\":2,\"z\":1},\"a\\\"\":\"x\ny\\\\é\",\"b\":[1,-2,null,true,{},[]]}";
        assert_eq!(form(text).as_deref(), Some(expected));
    }

    #[test]
    fn names_are_sorted_by_what_they_say_not_by_how_they_are_escaped() {
        // `"` (0x22) comes before `#` (0x23), although its escape begins with `\` (0x5C).
        assert_eq!(form(r##"{"#": 1, "\"": 2, "\\": 3}"##).as_deref(), Some(r##"{"\"":2,"#":1,"\\":3}"##));
    }

    #[test]
    fn what_has_no_canonical_form_is_refused() {
        for text in ["1.5", "1e2", "18446744073709551616", "{\"a\":1,\"a\":1}", "[1", "{} {}", "\"\\ud800\"", "-0.0"] {
            assert_eq!(form(text), None, "{text}");
        }
        assert_eq!(form("18446744073709551615").as_deref(), Some("18446744073709551615"));
        assert_eq!(form(&"[".repeat(100_000)), None, "no stack overflow");
    }

    #[test]
    fn the_form_is_of_signed_alone() {
        let signed = |text: &str| canonical_signed(text.as_bytes()).ok();
        assert_eq!(signed(r#"{"signatures": [0.5], "signed": {"b":1,"a":2}}"#), Some(b"{\"a\":2,\"b\":1}".to_vec()));
        assert_eq!(signed(r#"{"signatures": []}"#), None);
        assert_eq!(signed(r#"{"signed": {}, "signed": {}}"#), None);
    }
}
