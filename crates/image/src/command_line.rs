//! The kernel's command line, read as systemd reads it: the one place that says which root hash a line names.
//!
//! What counts are systemd's rules (src/basic/proc-cmdline.c, src/veritysetup/veritysetup-generator.c): words are parted by
//! white space, single and double quotes hold a word together wherever they stand, a `rd.` in front is for the initrd,
//! which is where the root file system is set up, and of an option that is given twice the last one counts.

use std::fmt;

use bascule_names::{NameError, RootHash};

/// Which file system a root hash is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerityOption {
    /// `roothash=`: the root file system.
    Root,
    /// `usrhash=`: `/usr`.
    Usr,
}

impl VerityOption {
    /// The option's name, without `=`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "roothash",
            Self::Usr => "usrhash",
        }
    }
}

/// A kernel command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine(String);

impl From<String> for CommandLine {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for CommandLine {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl CommandLine {
    /// As it was read.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The words, without their quotes.
    pub fn words(&self) -> impl Iterator<Item = String> {
        let mut rest = self.0.chars();
        std::iter::from_fn(move || {
            let (mut word, mut quote, mut begun) = (String::new(), None, false);
            for letter in rest.by_ref() {
                match (quote, letter) {
                    (Some(open), letter) if letter == open => quote = None,
                    (None, '"' | '\'') => (quote, begun) = (Some(letter), true),
                    (None, ' ' | '\t' | '\n' | '\r') if begun => break,
                    (None, ' ' | '\t' | '\n' | '\r') => {}
                    (_, letter) => {
                        word.push(letter);
                        begun = true;
                    }
                }
            }
            begun.then_some(word)
        })
    }

    /// Every value of an option, in words of the form `name=value`. What counts is the last.
    pub fn values(&self, name: &str) -> impl Iterator<Item = String> {
        self.words().filter_map(move |word| {
            let word = word.strip_prefix("rd.").unwrap_or(&word);
            word.strip_prefix(name)?.strip_prefix('=').map(str::to_owned)
        })
    }

    /// The last value of an option.
    pub fn value(&self, name: &str) -> Option<String> {
        self.values(name).last()
    }

    /// The root hash that an option names, `None` where it is not given.
    ///
    /// # Errors
    /// What is named last is no SHA-256 root hash.
    pub fn root_hash(&self, option: VerityOption) -> Result<Option<RootHash>, NameError> {
        // systemd takes digits of both cases; a name of ours has one spelling.
        self.value(option.name()).map(|value| RootHash::parse(&value.to_ascii_lowercase())).transpose()
    }

    /// The root hash of the root file system, else of `/usr`: what the line boots.
    ///
    /// # Errors
    /// As of [`Self::root_hash`].
    pub fn verity_hash(&self) -> Result<Option<RootHash>, NameError> {
        match self.root_hash(VerityOption::Root)? {
            Some(hash) => Ok(Some(hash)),
            None => self.root_hash(VerityOption::Usr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        CommandLine::from(text).words().collect()
    }

    #[test]
    fn words_are_those_of_systemd() {
        assert_eq!(words("  a=1\tb \n"), ["a=1", "b"]);
        assert_eq!(words("dyndbg=\"file a.c +p\" x='y z'w \"\" 'q"), ["dyndbg=file a.c +p", "x=y zw", "", "q"]);
        assert!(words(" ").is_empty());
    }

    #[test]
    fn the_last_root_hash_counts() {
        let (a, b) = ("aa".repeat(32), "bb".repeat(32));
        let named = |text: String| CommandLine::from(text).verity_hash().map(|hash| hash.map(|hash| hash.to_string()));
        assert_eq!(named(format!("roothash={a} quiet roothash={b}")), Ok(Some(b.clone())));
        assert_eq!(named(format!("rd.roothash={a}")), Ok(Some(a.clone())));
        assert_eq!(named(format!("roothash=\"{}\" \"x roothash={b}\"", a.to_uppercase())), Ok(Some(a.clone())));
        assert_eq!(named(format!("usrhash={a} roothash={b}")), Ok(Some(b.clone())));
        assert_eq!(named(format!("usrhash={a} xroothash={b}")), Ok(Some(a.clone())));
        assert_eq!(named("quiet roothash".to_owned()), Ok(None));
        for bad in ["roothash=", "roothash=deadbeef", &format!("roothash={a} roothash=")] {
            assert!(named(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
