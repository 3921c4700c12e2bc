//! Turning what was given into typed values, with an error that names where it was given.

use std::path::PathBuf;
use std::time::Duration;

use bascule_api::Product;

use super::Listen;
use super::keys::{KEYS, Key, Kind};
use super::read::{Found, Origin, SettingsError, Value};

/// What was given, setting by setting; where nothing was, the default.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a> {
    found: &'a Found,
}

impl<'a> Values<'a> {
    /// Of what was read.
    pub const fn new(found: &'a Found) -> Self {
        Self { found }
    }

    /// Looks whether every value can be used, and those that belong together fit.
    ///
    /// # Errors
    /// The first that can't.
    pub fn check(&self) -> Result<(), SettingsError> {
        for key in KEYS {
            let name = key.name;
            let checked = match key.kind {
                Kind::Text => self.text(name).map(drop),
                Kind::Path => self.path(name).map(drop),
                Kind::Choice(_) => self.choice(name).map(drop),
                Kind::Product => self.product(name).map(drop),
                Kind::Listen => self.listen(name).map(drop),
                Kind::Flag => self.flag(name).map(drop),
                Kind::Whole(..) => self.whole(name).map(drop),
                Kind::Duration(..) => self.duration(name).map(drop),
                Kind::Percent => self.percent(name).map(drop),
                Kind::Bytes => self.bytes(name).map(drop),
                Kind::List => self.list(name).map(drop),
            };
            checked?;
        }
        self.slot_numbers()?;
        self.retries().map(drop)
    }

    fn key(name: &'static str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }

    fn origin(&self, name: &'static str) -> Origin {
        self.found.get(name).map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    fn wrong(&self, key: &'static str, message: impl Into<String>) -> SettingsError {
        SettingsError::Value { origin: self.origin(key), key, message: message.into() }
    }

    fn missing(&self, key: &'static str) -> SettingsError {
        self.wrong(key, "must be set: the four numbers under slots belong together")
    }

    /// A value that has to be there.
    ///
    /// # Errors
    /// There is none.
    pub fn need<T>(&self, value: Option<T>, key: &'static str) -> Result<T, SettingsError> {
        value.ok_or_else(|| self.wrong(key, "must be set"))
    }

    /// The text, given or by default; `None` if there is none.
    ///
    /// # Errors
    /// It is a list, too long, or has control characters.
    pub fn text(&self, name: &'static str) -> Result<Option<String>, SettingsError> {
        let text = match self.found.get(name) {
            Some((Value::Text(text), _)) => text.clone(),
            Some((Value::List(_), _)) => return Err(self.wrong(name, "is one value, not a list")),
            None => Self::key(name).map_or("", |key| key.default).to_owned(),
        };
        if text.len() > 4096 || text.chars().any(char::is_control) {
            return Err(self.wrong(name, "must be at most 4096 printable characters"));
        }
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    fn parsed<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, SettingsError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        parse(&text).map(Some).map_err(|message| self.wrong(name, format!("is '{text}': {message}")))
    }

    /// An absolute path.
    ///
    /// # Errors
    /// It is none.
    pub fn path(&self, name: &'static str) -> Result<Option<PathBuf>, SettingsError> {
        self.parsed(name, |text| {
            let path = PathBuf::from(text);
            if path.is_absolute() { Ok(path) } else { Err("write an absolute path".to_owned()) }
        })
    }

    /// Yes or no; no where there is none.
    ///
    /// # Errors
    /// It is neither.
    pub fn flag(&self, name: &'static str) -> Result<bool, SettingsError> {
        let flag = self.parsed(name, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("write true or false".to_owned()),
        })?;
        Ok(flag.unwrap_or(false))
    }

    /// A whole number within its bounds.
    ///
    /// # Errors
    /// It is none, or beyond them.
    pub fn whole(&self, name: &'static str) -> Result<Option<u32>, SettingsError> {
        let Some(Kind::Whole(least, most)) = Self::key(name).map(|key| key.kind) else { return Ok(None) };
        self.parsed(name, |text| {
            let number = text.parse::<u32>().ok().filter(|number| (least..=most).contains(number));
            number.ok_or_else(|| format!("write a whole number from {least} to {most}"))
        })
    }

    /// A number of bytes.
    ///
    /// # Errors
    /// It is none.
    pub fn bytes(&self, name: &'static str) -> Result<Option<u64>, SettingsError> {
        self.parsed(name, |text| text.parse::<u64>().map_err(|_| "write a number of bytes; 0 is no limit".to_owned()))
    }

    /// A share in percent.
    ///
    /// # Errors
    /// It is none from 1 to 100.
    pub fn percent(&self, name: &'static str) -> Result<f64, SettingsError> {
        let percent = self.parsed(name, |text| {
            let number = text.trim_end_matches('%').parse::<u8>().ok().filter(|number| (1..=100).contains(number));
            number.ok_or_else(|| "write a share from 1 to 100".to_owned())
        })?;
        Ok(percent.map_or(100.0, f64::from))
    }

    /// A span of time within its bounds.
    ///
    /// # Errors
    /// It is none, or beyond them.
    pub fn duration(&self, name: &'static str) -> Result<Duration, SettingsError> {
        let Some(Kind::Duration(least, most)) = Self::key(name).map(|key| key.kind) else {
            return Ok(Duration::ZERO);
        };
        let duration = self.parsed(name, |text| {
            let duration: bascule_api::Duration =
                text.parse().map_err(|error: bascule_api::DurationError| error.to_string())?;
            let seconds = duration.as_secs();
            if (least..=most).contains(&seconds) {
                Ok(duration.to_std())
            } else {
                Err(format!("write a time from {least} s to {most} s"))
            }
        })?;
        Ok(duration.unwrap_or_default())
    }

    /// Which of its words it is, from 0.
    ///
    /// # Errors
    /// It is another one.
    pub fn choice(&self, name: &'static str) -> Result<usize, SettingsError> {
        let Some(Kind::Choice(choices)) = Self::key(name).map(|key| key.kind) else { return Ok(0) };
        let chosen = self.parsed(name, |text| {
            let at = choices.iter().position(|choice| *choice == text);
            at.ok_or_else(|| format!("write one of {}", choices.join(", ")))
        })?;
        Ok(chosen.unwrap_or(0))
    }

    /// A product's name.
    ///
    /// # Errors
    /// It is none.
    pub fn product(&self, name: &'static str) -> Result<Option<Product>, SettingsError> {
        self.parsed(name, |text| Product::parse(text).map_err(|error| error.to_string()))
    }

    /// Where to listen.
    ///
    /// # Errors
    /// It is no such place.
    pub fn listen(&self, name: &'static str) -> Result<Option<Listen>, SettingsError> {
        self.parsed(name, listen)
    }

    /// The numbers of the slots' partitions where they are given: A's data and verity, B's data and verity.
    ///
    /// # Errors
    /// One is none, or only some are there.
    pub fn slot_numbers(&self) -> Result<Option<[u32; 4]>, SettingsError> {
        match (self.whole("slots.a-data")?, self.whole("slots.a-verity")?) {
            (Some(data), Some(verity)) => Ok(Some([
                data,
                verity,
                self.need(self.whole("slots.b-data")?, "slots.b-data")?,
                self.need(self.whole("slots.b-verity")?, "slots.b-verity")?,
            ])),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.missing("slots.a-verity")),
            (None, Some(_)) => Err(self.missing("slots.a-data")),
        }
    }

    /// First and longest wait after a failure.
    ///
    /// # Errors
    /// One is none, or the first is longer than the longest.
    pub fn retries(&self) -> Result<(Duration, Duration), SettingsError> {
        let (first, longest) = (self.duration("retry.first")?, self.duration("retry.max")?);
        if first > longest {
            return Err(self.wrong("retry.first", "must not be longer than retry.max"));
        }
        Ok((first, longest))
    }

    /// A list.
    ///
    /// # Errors
    /// It is none, or longer than 64.
    pub fn list(&self, name: &'static str) -> Result<Vec<String>, SettingsError> {
        match self.found.get(name) {
            None => Ok(Vec::new()),
            Some((Value::List(items), _)) if items.len() <= 64 => Ok(items.clone()),
            Some((Value::List(_), _)) => Err(self.wrong(name, "has more than 64 entries")),
            Some((Value::Text(_), _)) => Err(self.wrong(name, "is a list: write [\"…\"]")),
        }
    }

    /// Every key with its value and where that came from.
    pub fn origins(&self) -> Vec<(&'static str, String, Origin)> {
        let shown = |key: &Key| match self.found.get(key.name) {
            Some((Value::Text(text), _)) => text.clone(),
            Some((Value::List(items), _)) => items.join(","),
            None => key.default.to_owned(),
        };
        KEYS.iter().map(|key| (key.name, shown(key), self.origin(key.name))).collect()
    }
}

fn listen(text: &str) -> Result<Listen, String> {
    if text == "off" {
        return Ok(Listen::Off);
    }
    if let Some(path) = text.strip_prefix("unix:").filter(|path| path.starts_with('/')) {
        return Ok(Listen::Unix(path.into()));
    }
    if let Some(address) = text.strip_prefix("tcp:").and_then(|address| address.parse().ok()) {
        return Ok(Listen::Tcp(address));
    }
    Err("write unix:/path, tcp:address:port or off".to_owned())
}
