//! Turning what was given into typed values, with an error that names where it was given.

use std::path::PathBuf;
use std::time::Duration;

use super::Listen;
use super::keys::{KEYS, Key, Kind};
use super::read::{Found, Origin, SettingsError, Value};

pub(super) struct Values<'a> {
    found: &'a Found,
}

impl<'a> Values<'a> {
    pub(super) const fn new(found: &'a Found) -> Self {
        Self { found }
    }

    fn key(name: &'static str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.name == name)
    }

    fn origin(&self, name: &'static str) -> Origin {
        self.found.get(name).map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    pub(super) fn wrong(&self, key: &'static str, message: impl Into<String>) -> SettingsError {
        SettingsError::Value { origin: self.origin(key), key, message: message.into() }
    }

    pub(super) fn missing(&self, key: &'static str) -> SettingsError {
        self.wrong(key, "must be set: the four numbers under slots belong together")
    }

    pub(super) fn need<T>(&self, value: Option<T>, key: &'static str) -> Result<T, SettingsError> {
        value.ok_or_else(|| self.wrong(key, "must be set"))
    }

    /// The text, given or by default; `None` if there is none.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<String>, SettingsError> {
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

    pub(super) fn parsed<T>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, SettingsError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        parse(&text).map(Some).map_err(|message| self.wrong(name, format!("is '{text}': {message}")))
    }

    pub(super) fn path(&self, name: &'static str) -> Result<Option<PathBuf>, SettingsError> {
        self.parsed(name, |text| {
            let path = PathBuf::from(text);
            if path.is_absolute() { Ok(path) } else { Err("write an absolute path".to_owned()) }
        })
    }

    pub(super) fn flag(&self, name: &'static str) -> Result<bool, SettingsError> {
        let flag = self.parsed(name, |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("write true or false".to_owned()),
        })?;
        Ok(flag.unwrap_or(false))
    }

    pub(super) fn whole(&self, name: &'static str) -> Result<Option<u32>, SettingsError> {
        let Some(Kind::Whole(least, most)) = Self::key(name).map(|key| key.kind) else { return Ok(None) };
        self.parsed(name, |text| {
            let number = text.parse::<u32>().ok().filter(|number| (least..=most).contains(number));
            number.ok_or_else(|| format!("write a whole number from {least} to {most}"))
        })
    }

    pub(super) fn bytes(&self, name: &'static str) -> Result<Option<u64>, SettingsError> {
        self.parsed(name, |text| text.parse::<u64>().map_err(|_| "write a number of bytes; 0 is no limit".to_owned()))
    }

    pub(super) fn percent(&self, name: &'static str) -> Result<f64, SettingsError> {
        let percent = self.parsed(name, |text| {
            let number = text.trim_end_matches('%').parse::<u8>().ok().filter(|number| (1..=100).contains(number));
            number.ok_or_else(|| "write a share from 1 to 100".to_owned())
        })?;
        Ok(percent.map_or(100.0, f64::from))
    }

    pub(super) fn duration(&self, name: &'static str) -> Result<Duration, SettingsError> {
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

    pub(super) fn choice(&self, name: &'static str, choices: &[&str]) -> Result<usize, SettingsError> {
        let chosen = self.parsed(name, |text| {
            let at = choices.iter().position(|choice| *choice == text);
            at.ok_or_else(|| format!("write one of {}", choices.join(", ")))
        })?;
        Ok(chosen.unwrap_or(0))
    }

    pub(super) fn list(&self, name: &'static str) -> Result<Vec<String>, SettingsError> {
        match self.found.get(name) {
            None => Ok(Vec::new()),
            Some((Value::List(items), _)) if items.len() <= 64 => Ok(items.clone()),
            Some((Value::List(_), _)) => Err(self.wrong(name, "has more than 64 entries")),
            Some((Value::Text(_), _)) => Err(self.wrong(name, "is a list: write [\"…\"]")),
        }
    }

    /// Every key with its value and where that came from.
    pub(super) fn origins(&self) -> Vec<(&'static str, String, Origin)> {
        let shown = |key: &Key| match self.found.get(key.name) {
            Some((Value::Text(text), _)) => text.clone(),
            Some((Value::List(items), _)) => items.join(","),
            None => key.default.to_owned(),
        };
        KEYS.iter().map(|key| (key.name, shown(key), self.origin(key.name))).collect()
    }
}

/// Where to listen.
pub(super) fn listen(text: &str) -> Result<Listen, String> {
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
