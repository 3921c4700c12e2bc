//! How times, shares and counts are drawn for people.

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use std::fmt::Display;

/// A bar of twenty cells.
pub(super) fn bar(done: u32, all: u32) -> String {
    const CELLS: u32 = 20;
    let filled = if all == 0 { CELLS } else { (u64::from(done) * u64::from(CELLS) / u64::from(all)) as u32 };
    (0..CELLS).map(|cell| if cell < filled { '█' } else { '░' }).collect()
}

/// A moment near `now`: the time of day when it is within a day, else weekday or date before it.
pub(super) fn moment<Z: TimeZone>(at: DateTime<Utc>, now: DateTime<Utc>, zone: &Z) -> String
where
    Z::Offset: Display,
{
    let distance = (at - now).abs();
    let local = at.with_timezone(zone);
    if distance < TimeDelta::hours(1) {
        local.format("%H:%M:%S").to_string()
    } else if distance < TimeDelta::hours(20) {
        local.format("%H:%M").to_string()
    } else if distance < TimeDelta::days(6) {
        local.format("%a %H:%M").to_string()
    } else {
        local.format("%Y-%m-%d %H:%M").to_string()
    }
}

/// How long something lasts, in its two largest units.
pub(super) fn span(length: TimeDelta) -> String {
    let seconds = length.num_seconds().max(0);
    let units = [(86_400, "d"), (3_600, "h"), (60, "m"), (1, "s")];
    let mut rest = seconds;
    let mut parts = Vec::new();
    for (size, unit) in units {
        if rest >= size {
            parts.push(format!("{}{unit}", rest / size));
            rest %= size;
        }
        if parts.len() == 2 {
            break;
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.concat() }
}

/// `1 node`, `2 nodes`.
pub(super) fn count(number: usize, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_fill_from_the_left() {
        assert_eq!(bar(0, 40), "░".repeat(20));
        assert_eq!(bar(12, 40), format!("{}{}", "█".repeat(6), "░".repeat(14)));
        assert_eq!(bar(0, 0), "█".repeat(20));
    }

    #[test]
    fn moments_say_as_much_as_is_needed() {
        let now = Utc.with_ymd_and_hms(2026, 11, 23, 12, 0, 0).unwrap();
        let berlin = chrono::FixedOffset::east_opt(3_600).unwrap();
        for (hours, text) in [
            (0, "13:00:00"),
            (10, "23:00"),
            (24, "Tue 13:00"),
            (24 * 6, "2026-11-29 13:00"),
            (24 * 30, "2026-12-23 13:00"),
        ] {
            assert_eq!(moment(now + TimeDelta::hours(hours), now, &berlin), text);
        }
    }

    #[test]
    fn spans_have_two_units_at_most() {
        assert_eq!(span(TimeDelta::seconds(93_784)), "1d2h");
        assert_eq!(span(TimeDelta::seconds(125)), "2m5s");
        assert_eq!(span(TimeDelta::seconds(-5)), "0s");
    }
}
