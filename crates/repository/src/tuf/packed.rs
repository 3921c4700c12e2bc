//! What metadata may hold very many of, kept small or bounded: lists of short texts in one piece of memory, maps as sorted lists,
//! lists that end at a bound. A file of 2 MiB made of one-letter texts would take 30 MiB as a list of separate ones.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// A list of texts, one behind the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Texts {
    joined: String,
    ends: Vec<u32>,
}

impl Texts {
    /// The texts in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).filter_map(|(begin, end)| self.joined.get(begin as usize..*end as usize))
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

/// A list of at most so many elements. A longer one is refused at the first element beyond, before the rest is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AtMost<T, const MOST: usize>(Vec<T>);

impl<T, const MOST: usize> Default for AtMost<T, MOST> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MOST: usize> Deref for AtMost<T, MOST> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for AtMost<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
            type Value = AtMost<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MOST} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    if list.len() == MOST {
                        return Err(A::Error::custom(format!("a list has more than {MOST} elements")));
                    }
                    list.push(item);
                }
                list.shrink_to_fit();
                Ok(AtMost(list))
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// A map from texts to values, as a sorted list; of at most so many members, where that is said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sorted<T, const MOST: usize = { usize::MAX }>(Vec<(Box<str>, T)>);

impl<T, const MOST: usize> Default for Sorted<T, MOST> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, const MOST: usize> Sorted<T, MOST> {
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

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Sorted<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Map<T, MOST> {
            type Value = Sorted<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries: Vec<(Box<str>, T)> = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    if entries.len() == MOST {
                        return Err(A::Error::custom(format!("an object has more than {MOST} members")));
                    }
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
    }

    #[test]
    fn maps_are_found_in_and_hold_each_name_once() {
        let map: Sorted<u32> = serde_json::from_str(r#"{"b": 2, "a": 1}"#).unwrap();
        assert_eq!((map.get("a"), map.get("b"), map.get("c")), (Some(&1), Some(&2), None));
        assert_eq!(map.iter().collect::<Vec<_>>(), [("a", &1), ("b", &2)]);
        assert!(serde_json::from_str::<Sorted<u32>>(r#"{"b": 2, "b": 2}"#).is_err());
    }

    #[test]
    fn what_is_longer_than_its_bound_is_refused() {
        assert_eq!(*serde_json::from_str::<AtMost<u32, 2>>("[1, 2]").unwrap(), [1, 2]);
        // The rest is not read: it is no JSON.
        let refused = serde_json::from_str::<AtMost<u32, 2>>("[1, 2, 3, x").unwrap_err();
        assert!(refused.to_string().contains("more than 2 elements"), "{refused}");
        let refused = serde_json::from_str::<Sorted<u32, 1>>(r#"{"b": 2, "a": 1, x"#).unwrap_err();
        assert!(refused.to_string().contains("more than 1 members"), "{refused}");
    }
}
