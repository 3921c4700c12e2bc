//! Reading the sources: files in a fixed order, drop-ins after them, the credential that comes with the machine, the environment last.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{KEYS, Key, Kind, comes_with_the_machine};

/// Longest settings file in bytes.
const MAX_FILE: u64 = 256 << 10;
/// Most drop-ins of a folder.
const MAX_DROP_INS: usize = 64;
/// Name of the credential with settings for one machine (systemd.exec(5), "Credentials").
pub const CREDENTIAL: &str = "bascule.agent.toml";
/// Where systemd puts the credentials of a service, named by this variable in its environment.
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";
/// Where those of the agent's own unit are, for a command that is typed beside it.
const SERVICE_CREDENTIALS: &str = "/run/credentials/bascule-agent.service";
/// What every variable of ours begins with.
const PREFIX: &str = "BASCULE_";
/// Variables with that beginning that are no settings.
const NOT_SETTINGS: &[&str] = &["BASCULE_SIM_MACHINE", "BASCULE_SETTINGS"];

/// Where settings come from. Later ones win.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Files; one that is missing is skipped. `<file>.d/*.toml` are read after each, sorted by name.
    pub files: Vec<PathBuf>,
    /// Files that must be there.
    pub required: Vec<PathBuf>,
    /// A file that came with the machine; skipped where it is missing. It sets less than the others ([`comes_with_the_machine`]).
    pub credential: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Sources {
    /// The usual places: the OS image, the node, the credential, the environment; or only `file` and the environment, where one is
    /// named.
    pub fn usual(file: Option<PathBuf>, environment: Vec<(OsString, OsString)>) -> Self {
        if let Some(file) = file {
            return Self { required: vec![file], environment, ..Self::default() };
        }
        let folder = environment.iter().find(|(name, _)| name.as_os_str() == CREDENTIALS_VARIABLE);
        let folder = folder.map_or_else(|| PathBuf::from(SERVICE_CREDENTIALS), |(_, folder)| PathBuf::from(folder));
        Self {
            files: vec!["/usr/lib/bascule/agent.toml".into(), "/etc/bascule/agent.toml".into()],
            required: Vec::new(),
            credential: Some(folder.join(CREDENTIAL)),
            environment,
        }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave one.
    Default,
    /// A line of a file, from 1.
    File(PathBuf, usize),
    /// A variable of the environment.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "${name}"),
        }
    }
}

/// Why settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file can't be read.
    #[error("the settings file {} can't be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no TOML.
    #[error("{}:{line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: there is no setting '{key}'{hint}")]
    Unknown {
        /// Where.
        origin: Origin,
        /// The key.
        key: String,
        /// A key that may have been meant.
        hint: String,
    },
    /// A value that can't be used.
    #[error("{origin}: {key} {message}")]
    Value {
        /// Where.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// What is wrong and what would be accepted.
        message: String,
    },
}

/// A value as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text, also for numbers and flags: what they mean depends on the key.
    Text(String),
    /// A list.
    List(Vec<String>),
}

/// What was given, by setting.
pub type Found = BTreeMap<&'static str, (Value, Origin)>;

/// Reads all sources.
///
/// # Errors
/// One can't be read, is no TOML, or has a key or a variable that does not exist. Whether the values can be used is another
/// question ([`super::Values`]).
pub fn read(sources: &Sources) -> Result<Found, SettingsError> {
    let mut found = Found::new();
    for path in &sources.files {
        read_file(path, false, &mut found)?;
        for drop_in in drop_ins(path)? {
            read_file(&drop_in, true, &mut found)?;
        }
    }
    for path in &sources.required {
        read_file(path, true, &mut found)?;
        for drop_in in drop_ins(path)? {
            read_file(&drop_in, true, &mut found)?;
        }
    }
    if let Some(path) = &sources.credential
        && let Some(text) = text_of(path, false)?
    {
        keep(of_credential(entries(path, &text)?), &mut found)?;
    }
    for (name, value) in &sources.environment {
        read_variable(name, value, &mut found)?;
    }
    Ok(found)
}

/// Reads one file that must be there, without its drop-ins.
pub(super) fn read_one(path: &Path) -> Result<(String, Found), SettingsError> {
    let text = text_of(path, true)?.unwrap_or_default();
    let mut found = Found::new();
    keep(entries(path, &text)?, &mut found)?;
    Ok((text, found))
}

/// The same without what is wrong: a file that can't be read or parsed, a key that does not exist, a variable that means
/// nothing. Whether the values can be used is another question.
pub fn read_what_can_be_used(sources: &Sources) -> Found {
    let mut found = Found::new();
    for path in sources.files.iter().chain(&sources.required) {
        for path in std::iter::once(path.clone()).chain(drop_ins(path).unwrap_or_default()) {
            let Ok(Some(text)) = text_of(&path, false) else { continue };
            for (key, entry) in entries(&path, &text).unwrap_or_default().into_iter().flatten() {
                found.insert(key, entry);
            }
        }
    }
    if let Some(path) = &sources.credential
        && let Ok(Some(text)) = text_of(path, false)
    {
        for (key, entry) in of_credential(entries(path, &text).unwrap_or_default()).into_iter().flatten() {
            found.insert(key, entry);
        }
    }
    for (name, value) in &sources.environment {
        // What is wrong with it was said.
        let _ = read_variable(name, value, &mut found);
    }
    found
}

/// Refuses what may not come with the machine.
fn of_credential(entries: Vec<Result<Entry, SettingsError>>) -> Vec<Result<Entry, SettingsError>> {
    let judged = |entry: Result<Entry, SettingsError>| {
        let (key, (value, origin)) = entry?;
        if comes_with_the_machine(key) {
            return Ok((key, (value, origin)));
        }
        let message = "can't come as a credential: set it in the OS image".to_owned();
        Err(SettingsError::Value { origin, key, message })
    };
    entries.into_iter().map(judged).collect()
}

fn keep(entries: Vec<Result<Entry, SettingsError>>, found: &mut Found) -> Result<(), SettingsError> {
    for entry in entries {
        let (key, value) = entry?;
        found.insert(key, value);
    }
    Ok(())
}

fn read_variable(name: &OsString, value: &OsString, found: &mut Found) -> Result<(), SettingsError> {
    let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { return Ok(()) };
    // Kubernetes puts variables for a Service of ours into every pod of its namespace.
    let from_service = ["_SERVICE_", "_PORT"].iter().any(|part| name.contains(part));
    if NOT_SETTINGS.contains(&name) || from_service {
        return Ok(());
    }
    let origin = Origin::Environment(name.to_owned());
    let Some(key) = KEYS.iter().find(|key| key.variable() == name) else {
        let hint = nearest(name, KEYS.iter().map(Key::variable));
        return Err(SettingsError::Unknown { origin, key: name.to_owned(), hint });
    };
    let Some(text) = value.to_str() else {
        let message = "is not UTF-8".to_owned();
        return Err(SettingsError::Value { origin, key: key.name, message });
    };
    let value = match key.kind {
        Kind::List => {
            Value::List(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
        }
        _ => Value::Text(text.to_owned()),
    };
    found.insert(key.name, (value, origin));
    Ok(())
}

fn drop_ins(path: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let mut folder = path.as_os_str().to_owned();
    folder.push(".d");
    let folder = PathBuf::from(folder);
    let failed = |source| SettingsError::Read { path: folder.clone(), source };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries.take(MAX_DROP_INS) {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|ending| ending == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path, required: bool, found: &mut Found) -> Result<(), SettingsError> {
    match text_of(path, required)? {
        Some(text) => keep(entries(path, &text)?, found),
        None => Ok(()),
    }
}

/// The text of a settings file; `None` where one that need not be there is not.
fn text_of(path: &Path, required: bool) -> Result<Option<String>, SettingsError> {
    use io::Read as _;
    let failed = |source| SettingsError::Read { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(Some(text))
}

type Entry = (&'static str, (Value, Origin));

/// Key by key; an error of its own for each that can't be used, and one for all where the text is no TOML.
fn entries(path: &Path, text: &str) -> Result<Vec<Result<Entry, SettingsError>>, SettingsError> {
    let line_of = |offset: usize| text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| SettingsError::Syntax {
        path: path.to_owned(),
        line: line_of(error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    let mut found = Vec::new();
    for (section, content) in table.get_ref() {
        let DeValue::Table(keys) = content.get_ref() else {
            let origin = Origin::File(path.to_owned(), line_of(section.span().start));
            let key = section.get_ref().to_string();
            let hint = ": settings stand in sections".to_owned();
            found.push(Err(SettingsError::Unknown { origin, key, hint }));
            continue;
        };
        for (name, value) in keys {
            let origin = Origin::File(path.to_owned(), line_of(name.span().start));
            let full = format!("{}.{}", section.get_ref(), name.get_ref());
            let Some(key) = KEYS.iter().find(|key| key.name == full) else {
                let hint = nearest(&full, KEYS.iter().map(|key| key.name.to_owned()));
                found.push(Err(SettingsError::Unknown { origin, key: full, hint }));
                continue;
            };
            found.push(match value_of(value.get_ref()) {
                Some(value) => Ok((key.name, (value, origin))),
                None => {
                    let message = format!("can't be a {}", value.get_ref().type_str());
                    Err(SettingsError::Value { origin, key: key.name, message })
                }
            });
        }
    }
    Ok(found)
}

fn value_of(value: &DeValue<'_>) -> Option<Value> {
    let text = match value {
        DeValue::String(text) => text.to_string(),
        DeValue::Integer(number) => number.as_str().replace('_', ""),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Array(items) => {
            let texts = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned));
            return Some(Value::List(texts.collect::<Option<_>>()?));
        }
        _ => return None,
    };
    Some(Value::Text(text))
}

/// A name that may have been meant: the one with the fewest letters that differ.
fn nearest(wrong: &str, names: impl Iterator<Item = String>) -> String {
    let distance = |name: &str| {
        let same = name.bytes().zip(wrong.bytes()).filter(|(a, b)| a == b).count();
        name.len().max(wrong.len()) - same
    };
    match names.min_by_key(|name| distance(name)) {
        Some(name) if distance(&name) <= 3 => format!("; did you mean '{name}'?"),
        _ => "; docs/agent.md lists them".to_owned(),
    }
}
