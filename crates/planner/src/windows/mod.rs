//! Maintenance windows in time, with daylight saving rules that are written down.
//!
//! A window opens at each occurrence of its schedule and stays open for its duration, which is elapsed time: an hour
//! is an hour, whatever the clocks on the wall do meanwhile. The schedule is read on the wall clock of the time zone:
//!
//! 1. A wall clock time that exists once: the window opens then.
//! 2. A wall clock time that is skipped (clocks go forward): the window opens at the moment the clocks change. It is
//!    never left out.
//! 3. A wall clock time that occurs twice (clocks go back): the window opens at the first of the two, once.
//!
//! Several windows are a union. Windows that touch or overlap are one span.

#[cfg(test)]
mod tests;

use crate::{
    validate::PolicyErrorKind,
    zones::{Moment, TimeZones, Zone},
};
use bascule_api::{Duration, MaintenanceWindow, Time};
use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};

/// How many spans are joined before a union counts as open without end. Reached only by windows that follow each
/// other seamlessly; the furthest of them is then at least this many occurrences away.
const MAX_JOINED: usize = 64;
/// How often a step over wall clock times is repeated around a change of clocks.
const MAX_STEPS: usize = 400;
/// No zone's wall clock differs from another moment's by more than this because of a change of rules (Samoa skipped
/// a whole day in 2011).
const MAX_SHIFT: TimeDelta = TimeDelta::hours(26);

/// One maintenance window, parsed.
#[derive(Debug, Clone)]
pub struct Window {
    cron: Cron,
    duration: Duration,
    zone: Zone,
}

/// A span of time in which nodes may be disrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// When it opens or opened.
    pub start: Time,
    /// When it closes; `None` where windows follow each other without end.
    pub end: Option<Time>,
}

/// Where a moment stands between windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// There are no windows: always open.
    Always,
    /// A window is open.
    Open(Span),
    /// None is open; this is the next, if there is one within the years that schedules are searched.
    Closed(Option<Span>),
}

impl Window {
    /// Parses a window.
    ///
    /// # Errors
    /// The field's name below the window, and what is wrong with it.
    pub(crate) fn parse(
        window: &MaintenanceWindow,
        zones: &TimeZones,
    ) -> Result<Self, (&'static str, PolicyErrorKind)> {
        let zone = zones.get(&window.time_zone).ok_or_else(|| {
            let found = window.time_zone.chars().take(64).collect();
            ("timeZone", PolicyErrorKind::TimeZone(found))
        })?;
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .dom_and_dow(both_days_hold(&window.schedule))
            .build();
        let cron = parser.parse(&window.schedule).map_err(|error| {
            let found = window.schedule.chars().take(128).collect();
            ("schedule", PolicyErrorKind::Schedule { found, why: error.to_string() })
        })?;
        let (min, max) = (Duration::from_secs(60), Duration::MAX);
        if !(min..=max).contains(&window.duration) {
            return Err(("duration", PolicyErrorKind::Span { found: window.duration, min, max }));
        }
        // Any fixed moment does: a schedule without an occurrence in eight years after it never has one.
        let probe = DateTime::<Utc>::from_timestamp(1_767_225_600, 0).unwrap_or_default();
        if cron.find_next_occurrence(&probe, true).is_err() {
            return Err(("schedule", PolicyErrorKind::NeverOpens));
        }
        Ok(Self { cron, duration: window.duration, zone })
    }

    /// The zone in which the schedule is read.
    #[must_use]
    pub const fn zone(&self) -> &Zone {
        &self.zone
    }

    fn wall(&self, at: DateTime<Utc>) -> NaiveDateTime {
        self.zone.wall(at)
    }

    /// The moment at which the wall clock shows a time, by the rules above.
    fn moment(&self, wall: NaiveDateTime) -> Option<DateTime<Utc>> {
        match self.zone.moment(wall)? {
            Moment::Shown(at) => Some(at),
            Moment::Skipped => self.end_of_gap(wall),
        }
    }

    /// The moment at which the clocks went forward over a wall clock time that never was.
    fn end_of_gap(&self, wall: NaiveDateTime) -> Option<DateTime<Utc>> {
        // Seen as UTC, the wall time is at most a day away from the change; the offset differs on its two sides.
        let (mut before, mut after) = (wall.and_utc() - MAX_SHIFT, wall.and_utc() + MAX_SHIFT);
        let shows_less = |at: DateTime<Utc>| self.wall(at) < wall;
        if !shows_less(before) || shows_less(after) {
            return None;
        }
        while after - before > TimeDelta::seconds(1) {
            let middle = before + (after - before) / 2;
            if shows_less(middle) { before = middle } else { after = middle }
        }
        Some(DateTime::from_timestamp(after.timestamp(), 0).unwrap_or(after))
    }

    fn previous_wall(&self, wall: NaiveDateTime, inclusive: bool) -> Option<NaiveDateTime> {
        self.cron.find_previous_occurrence(&wall.and_utc(), inclusive).ok().map(|at| at.naive_utc())
    }

    fn next_wall(&self, wall: NaiveDateTime, inclusive: bool) -> Option<NaiveDateTime> {
        self.cron.find_next_occurrence(&wall.and_utc(), inclusive).ok().map(|at| at.naive_utc())
    }

    /// How far the wall clock may be turned back within a day of a moment; zero nearly always.
    fn turned_back(&self, at: DateTime<Utc>) -> TimeDelta {
        (self.zone.offset(at - TimeDelta::hours(36)) - self.zone.offset(at + TimeDelta::hours(36))).abs()
    }

    /// The last opening at or before a moment.
    fn last_opening(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Wall times up to a change of clocks ahead may have been shown already, so the search starts there.
        let mut wall = self.previous_wall(self.wall(at) + self.turned_back(at), true)?;
        for _ in 0..MAX_STEPS {
            match self.moment(wall) {
                Some(opening) if opening <= at => return Some(opening),
                _ => wall = self.previous_wall(wall, false)?,
            }
        }
        None
    }

    /// The first opening after a moment.
    fn next_opening(&self, at: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut wall = self.next_wall(self.wall(at) - self.turned_back(at), true)?;
        for _ in 0..MAX_STEPS {
            match self.moment(wall) {
                Some(opening) if opening > at => return Some(opening),
                _ => wall = self.next_wall(wall, false)?,
            }
        }
        None
    }

    /// The span that is open at a moment because of this window alone: from its latest opening.
    fn open_at(&self, at: DateTime<Utc>) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let start = self.last_opening(at)?;
        let end = start + self.duration.to_chrono();
        (end > at).then_some((start, end))
    }
}

/// Whether day of month and day of week must both fit. As crontab(5) has it, either is enough only where both are
/// restricted, and a field that begins with `*` (`*/2` too) is no restriction in that sense.
fn both_days_hold(schedule: &str) -> bool {
    let mut fields = schedule.split_whitespace();
    let open = |field: Option<&str>| field.is_some_and(|field| field.starts_with(['*', '?']));
    open(fields.nth(2)) || open(fields.nth(1))
}

/// Where a moment stands between the windows of a policy.
#[must_use]
pub fn opening(windows: &[Window], now: Time) -> Opening {
    if windows.is_empty() {
        return Opening::Always;
    }
    let at = now.get();
    let open = windows.iter().filter_map(|window| window.open_at(at));
    if let Some((start, end)) = open.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) {
        return Opening::Open(Span { start: start.into(), end: joined_end(windows, end).map(Time::from) });
    }
    let next = windows.iter().filter_map(|window| window.next_opening(at)).min();
    Opening::Closed(next.map(|start| Span { start: start.into(), end: joined_end(windows, start).map(Time::from) }))
}

/// The zone of the window that opens at a moment; of several the first that the policy lists.
pub(crate) fn zone_at(windows: &[Window], start: Time) -> Zone {
    let opens = |window: &&Window| window.last_opening(start.get()).map(Time::from) == Some(start);
    let opening = if windows.len() > 1 { windows.iter().find(opens) } else { None };
    opening.or(windows.first()).map_or(Zone::UTC, |window| window.zone.clone())
}

/// Follows windows that touch or overlap from a moment on; `None` when they follow each other without end.
fn joined_end(windows: &[Window], mut end: DateTime<Utc>) -> Option<DateTime<Utc>> {
    for _ in 0..MAX_JOINED {
        match windows.iter().filter_map(|window| window.open_at(end)).map(|(_, end)| end).max() {
            Some(further) => end = further,
            None => return Some(end),
        }
    }
    None
}
