//! File names of boot entries with their counters (UAPI Boot Loader Specification, "Boot counting").

/// How often an entry would still be tried, and was tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Tries left; 0 is a bad entry.
    pub left: u32,
    /// Tries done; absent in a name that only has the first number.
    pub done: Option<u32>,
}

/// A file name taken apart: `<base>[+LEFT[-DONE]].efi`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryName {
    /// Without counters and ending.
    pub base: String,
    /// The counters.
    pub counters: Option<Counters>,
}

impl EntryName {
    /// Takes a file name apart. `None` if it does not end in `.efi`.
    ///
    /// A `+` that no counter follows belongs to the base.
    pub fn parse(file: &str) -> Option<Self> {
        Self::with_ending(file, "efi")
    }

    /// The same for an entry of type #1, whose name ends in `.conf`.
    pub fn parse_text(file: &str) -> Option<Self> {
        Self::with_ending(file, "conf")
    }

    /// Takes apart what the boot loader calls an entry of type #2: a file name, and behind an `@` the profile from the second on.
    pub fn parse_id(id: &str) -> Option<Self> {
        const ENDING: &str = ".efi";
        let without_profile = || {
            let at = id.to_ascii_lowercase().rfind(&format!("{ENDING}@"))?;
            Self::parse(id.get(..at + ENDING.len())?)
        };
        Self::parse(id).or_else(without_profile)
    }

    fn with_ending(file: &str, wanted: &str) -> Option<Self> {
        let (stem, ending) = file.rsplit_once('.')?;
        if !ending.eq_ignore_ascii_case(wanted) || stem.is_empty() {
            return None;
        }
        let counted = stem.rsplit_once('+').and_then(|(base, tail)| {
            let (left, done) = match tail.split_once('-') {
                Some((left, done)) => (left, Some(done)),
                None => (tail, None),
            };
            let number = |text: &str| -> Option<u32> {
                let digits = !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
                if digits { text.parse().ok() } else { None }
            };
            let done = match done {
                Some(done) => Some(number(done)?),
                None => None,
            };
            Some((base, Counters { left: number(left)?, done }))
        });
        Some(match counted {
            Some((base, counters)) if !base.is_empty() => Self { base: base.to_owned(), counters: Some(counters) },
            _ => Self { base: stem.to_owned(), counters: None },
        })
    }

    /// The permanent name.
    pub fn good(base: &str) -> String {
        format!("{base}.efi")
    }

    /// The name with counters, always with both numbers: then counting down does not change its length.
    pub fn counted(base: &str, left: u32, done: u32) -> String {
        format!("{base}+{left}-{done}.efi")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_names_apart_and_puts_them_together() {
        let counters = |left, done| Some(Counters { left, done });
        for (file, base, expected) in [
            ("acme_1.0.efi", "acme_1.0", None),
            ("acme_1.0+3-0.efi", "acme_1.0", counters(3, Some(0))),
            ("acme_1.0+3.efi", "acme_1.0", counters(3, None)),
            ("acme+x_1.0+0-3.EFI", "acme+x_1.0", counters(0, Some(3))),
            ("acme+x.efi", "acme+x", None),
            ("acme+3-x.efi", "acme+3-x", None),
            ("+3-0.efi", "+3-0", None),
        ] {
            let name = EntryName::parse(file).unwrap();
            assert_eq!((name.base.as_str(), name.counters), (base, expected), "{file}");
        }
        assert_eq!(bascule_names::entry_base("acme-os", "1.0~rc.1"), "acme-os_1.0~rc.1");
        assert_eq!(EntryName::parse("acme.conf"), None);
        for id in ["acme_1.0.efi", "acme_1.0.efi@1", "Acme_1.0.EFI@debug", "acme_1.0+2-1.efi@a.b"] {
            assert!(EntryName::parse_id(id).unwrap().base.eq_ignore_ascii_case("acme_1.0"), "{id}");
        }
        assert_eq!(EntryName::parse_id("acme_1.0.efi@b.efi").unwrap().base, "acme_1.0.efi@b");
        assert_eq!(EntryName::parse_id("auto-windows"), None);
        assert_eq!(EntryName::parse(".efi"), None);
        assert_eq!(EntryName::parse(&EntryName::counted("a", 2, 1)).unwrap().counters, counters(2, Some(1)));
    }
}
