//! The rules, and every change of clocks of a year in every zone of the time zone database.

use super::{Opening, Span, Window, opening};
use bascule_api::{MaintenanceWindow, Time};
use chrono::{DateTime, Datelike as _, NaiveDateTime, Offset as _, TimeDelta, TimeZone as _, Timelike as _, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};

fn window(schedule: &str, duration: &str, zone: &str) -> Window {
    Window::parse(&MaintenanceWindow {
        schedule: schedule.to_owned(),
        duration: duration.parse().unwrap(),
        time_zone: zone.to_owned(),
    })
    .unwrap()
}

fn utc(text: &str) -> Time {
    DateTime::parse_from_rfc3339(text).unwrap().with_timezone(&Utc).into()
}

fn open(windows: &[Window], text: &str) -> Option<String> {
    match opening(windows, utc(text)) {
        Opening::Open(Span { end: Some(end), .. }) => Some(end.to_string()),
        Opening::Open(Span { end: None, .. }) => Some("without end".to_owned()),
        Opening::Closed(_) => None,
        Opening::Always => Some("always".to_owned()),
    }
}

#[test]
fn opens_and_closes_to_the_second() {
    let nightly = [window("0 22 * * Mon-Thu", "5h", "Europe/Berlin")];
    // Monday 2026-11-23, 22:00 CET is 21:00 UTC.
    assert_eq!(open(&nightly, "2026-11-23T20:59:59Z"), None);
    assert_eq!(open(&nightly, "2026-11-23T21:00:00Z").unwrap(), "2026-11-24T02:00:00Z");
    assert_eq!(open(&nightly, "2026-11-24T01:59:59Z").unwrap(), "2026-11-24T02:00:00Z");
    assert_eq!(open(&nightly, "2026-11-24T02:00:00Z"), None);
    let Opening::Closed(Some(next)) = opening(&nightly, utc("2026-11-27T12:00:00Z")) else { panic!("closed") };
    assert_eq!(next.start.to_string(), "2026-11-30T21:00:00Z");
    assert_eq!(opening(&[], utc("2026-11-27T12:00:00Z")), Opening::Always);
}

#[test]
fn windows_are_a_union() {
    let two = [window("0 1 * * *", "2h", "UTC"), window("0 3 * * *", "1h", "UTC")];
    assert_eq!(open(&two, "2026-01-10T01:30:00Z").unwrap(), "2026-01-10T04:00:00Z", "they touch");
    let round_the_clock = [window("0 * * * *", "1h", "UTC")];
    assert_eq!(open(&round_the_clock, "2026-01-10T01:30:00Z").unwrap(), "without end");
}

#[test]
fn a_skipped_start_opens_at_the_change() {
    // Berlin 2026-03-29: 02:00 CET becomes 03:00 CEST at 01:00 UTC.
    let skipped = [window("30 2 * * *", "1h", "Europe/Berlin")];
    assert_eq!(open(&skipped, "2026-03-29T00:59:59Z"), None);
    assert_eq!(open(&skipped, "2026-03-29T01:00:00Z").unwrap(), "2026-03-29T02:00:00Z");
    assert_eq!(open(&skipped, "2026-03-29T02:00:00Z"), None);
}

#[test]
fn a_start_that_occurs_twice_opens_once() {
    // Berlin 2026-10-25: 03:00 CEST becomes 02:00 CET at 01:00 UTC. 02:30 is at 00:30 and at 01:30 UTC.
    let twice = [window("30 2 * * *", "30m", "Europe/Berlin")];
    assert_eq!(open(&twice, "2026-10-25T00:30:00Z").unwrap(), "2026-10-25T01:00:00Z");
    assert_eq!(open(&twice, "2026-10-25T01:30:00Z"), None);
    // A window over the change is as long as it says.
    let over = [window("0 1 * * *", "4h", "Europe/Berlin")];
    assert_eq!(open(&over, "2026-10-24T23:00:00Z").unwrap(), "2026-10-25T03:00:00Z");
}

#[test]
fn refuses_with_the_field() {
    let refuse = |schedule: &str, duration: &str, zone: &str| {
        let window = MaintenanceWindow {
            schedule: schedule.to_owned(),
            duration: duration.parse().unwrap(),
            time_zone: zone.to_owned(),
        };
        Window::parse(&window).unwrap_err().0
    };
    assert_eq!(refuse("0 22 * * *", "1h", "Mars/Olympus"), "timeZone");
    assert_eq!(refuse("0 25 * * *", "1h", "UTC"), "schedule");
    assert_eq!(refuse("0 0 22 * * *", "1h", "UTC"), "schedule");
    assert_eq!(refuse("0 0 31 2 *", "1h", "UTC"), "schedule");
    assert_eq!(refuse("0 22 * * *", "0s", "UTC"), "duration");
}

fn shift(zone: Tz, at: DateTime<Utc>) -> i32 {
    zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc()
}

/// The moments of 2026 at which a zone's clocks change.
fn changes(zone: Tz) -> Vec<DateTime<Utc>> {
    let start = Utc.with_ymd_and_hms(2026, 1, 1, 0, 0, 0).unwrap();
    let mut found = Vec::new();
    for day in 0..365 {
        let (mut before, mut after) = (start + TimeDelta::days(day), start + TimeDelta::days(day + 1));
        if shift(zone, before) == shift(zone, after) {
            continue;
        }
        let old = shift(zone, before);
        while after - before > TimeDelta::seconds(1) {
            let middle = before + (after - before) / 2;
            if shift(zone, middle) == old { before = middle } else { after = middle }
        }
        found.push(after);
    }
    found
}

/// The rules said again in the plainest way: the first second of UTC at which the wall clock shows the time or more.
fn first_shown(zone: Tz, wall: NaiveDateTime, from: DateTime<Utc>) -> DateTime<Utc> {
    let mut at = from;
    while at.with_timezone(&zone).naive_local() < wall {
        at += TimeDelta::minutes(1);
    }
    at
}

#[test]
fn every_change_of_clocks_of_a_year() {
    let mut seen = 0;
    for zone in TZ_VARIANTS {
        for change in changes(zone) {
            seen += 1;
            // Starts before, within and after what is skipped or repeated.
            let local = change.with_timezone(&zone).naive_local();
            for minutes in [-150, -61, -31, -1, 0, 29, 59, 90] {
                let wall = local + TimeDelta::minutes(minutes);
                let wall = wall.with_second(0).unwrap();
                let schedule = format!("{} {} {} {} *", wall.minute(), wall.hour(), wall.day(), wall.month());
                let one = [window(&schedule, "20m", zone.name())];
                let opens = first_shown(zone, wall, change - TimeDelta::hours(8));
                let context = format!("{zone} {change} {schedule}: should open at {opens}");
                for (offset, inside) in [(-1, false), (0, true), (20 * 60 - 1, true), (20 * 60, false)] {
                    let at: Time = (opens + TimeDelta::seconds(offset)).into();
                    let found = opening(&one, at);
                    assert_eq!(matches!(found, Opening::Open(_)), inside, "{context}, {offset} s later: {found:?}");
                }
                // Only once: the hours after it are closed.
                for later in (30..=240).step_by(30) {
                    let at: Time = (opens + TimeDelta::minutes(later)).into();
                    assert!(matches!(opening(&one, at), Opening::Closed(_)), "{context}, again {later} min later");
                }
                let before: Time = (opens - TimeDelta::hours(5)).into();
                let next = opening(&one, before);
                let Opening::Closed(Some(next)) = next else { panic!("{context}: {next:?}") };
                assert_eq!(next.start, Time::new(opens), "{context}");
            }
        }
    }
    assert!(seen > 200, "{seen} changes");
}
