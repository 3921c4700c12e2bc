//! What metadata may hold very many of, kept small: lists of short texts in one piece of memory, maps as sorted lists. A file
//! of 2 MiB made of one-letter texts would take 30 MiB as a list of separate ones.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// A list of texts, one behind the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    joined: String,
    ends: Vec<u32>,
}

impl Texts {
    /// The texts in their order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).filter_map(|(begin, end)| self.joined.get(begin as usize..*end as usize))
    }

    /// Whether one of them is this text.
    pub fn contains(&self, text: &str) -> bool {
        self.iter().any(|own| own == text)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Texts, A::Error> {
                let mut texts = Texts::default();
                while let Some(text) = items.next_element::<std::borrow::Cow<'_, str>>()? {
                    texts.joined.push_str(&text);
                    let end = u32::try_from(texts.joined.len()).map_err(A::Error::custom)?;
                    texts.ends.push(end);
                }
                Ok(texts)
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// A map from texts to values, as a sorted list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sorted<T>(Vec<(Box<str>, T)>);

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Sorted<T> {
    /// An empty map.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&T> {
        let at = self.0.binary_search_by(|(own, _)| (**own).cmp(name)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// Names and values in order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(name, value)| (&**name, value))
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Sorted<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Map<T> {
            type Value = Sorted<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Sorted<T>, A::Error> {
                let mut entries: Vec<(Box<str>, T)> = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                entries.sort_by(|(one, _), (other, _)| one.cmp(other));
                let twice = entries.windows(2).any(|pair| matches!(pair, [(one, _), (other, _)] if one == other));
                if twice {
                    return Err(A::Error::custom("a name occurs twice"));
                }
                entries.shrink_to_fit();
                Ok(Sorted(entries))
            }
        }
        deserializer.deserialize_map(Map(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_out_as_they_went_in() {
        let texts: Texts = serde_json::from_str(r#"["a", "", "bc\n"]"#).unwrap();
        assert_eq!(texts.iter().collect::<Vec<_>>(), ["a", "", "bc\n"]);
        assert!(texts.contains("") && !texts.contains("b") && texts.len() == 3 && !texts.is_empty());
    }

    #[test]
    fn maps_are_found_in_and_hold_each_name_once() {
        let map: Sorted<u32> = serde_json::from_str(r#"{"b": 2, "a": 1}"#).unwrap();
        assert_eq!((map.get("a"), map.get("b"), map.get("c")), (Some(&1), Some(&2), None));
        assert_eq!(map.iter().collect::<Vec<_>>(), [("a", &1), ("b", &2)]);
        assert!(serde_json::from_str::<Sorted<u32>>(r#"{"b": 2, "b": 2}"#).is_err());
    }
}
