//! Maintenance windows, reckoned minute by minute: only schedules of a minute and an hour, in UTC, each of them a number, a range or
//! `*`, as worlds have them. Anything else is not understood, and nothing is said of it.

use bascule_api::{MaintenanceWindow, Time};

/// The longest window that is understood, and how far ahead the next one is looked for: two days.
const DAYS: i64 = 2;
const MINUTE: i64 = 60;
const DAY: i64 = 86_400;

/// How a moment stands to some windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stand {
    /// One is open, or there are none.
    Open,
    /// None is, and the next opens in so many seconds.
    Closed(i64),
    /// Nobody can tell here.
    Unknown,
}

/// A window: the minutes and the hours at which it opens, and for how many seconds.
struct Window {
    minutes: (i64, i64),
    hours: (i64, i64),
    seconds: i64,
}

impl Window {
    fn of(window: &MaintenanceWindow) -> Option<Self> {
        let fields: Vec<&str> = window.schedule.split_whitespace().collect();
        let [minute, hour, "*", "*", "*"] = fields[..] else { return None };
        let seconds = i64::try_from(window.duration.as_secs()).ok().filter(|seconds| *seconds <= DAYS * DAY)?;
        (window.time_zone == "UTC").then_some(())?;
        Some(Self { minutes: range(minute, 59)?, hours: range(hour, 23)?, seconds })
    }

    /// Whether it opens in the minute that begins at this second.
    const fn opens(&self, second: i64) -> bool {
        let (minute, hour) = (second / MINUTE % 60, second / 3_600 % 24);
        self.minutes.0 <= minute && minute <= self.minutes.1 && self.hours.0 <= hour && hour <= self.hours.1
    }
}

fn range(text: &str, last: i64) -> Option<(i64, i64)> {
    if text == "*" {
        return Some((0, last));
    }
    let (first, end) = text.split_once('-').unwrap_or((text, text));
    let (first, end) = (first.parse().ok()?, end.parse().ok()?);
    (0 <= first && first <= end && end <= last).then_some((first, end))
}

/// How a moment stands to these windows.
pub(super) fn stand(windows: &[MaintenanceWindow], now: Time) -> Stand {
    if windows.is_empty() {
        return Stand::Open;
    }
    let Some(windows) = windows.iter().map(Window::of).collect::<Option<Vec<Window>>>() else { return Stand::Unknown };
    let second = now.get().timestamp();
    let this = second - second.rem_euclid(MINUTE);
    let minutes = |count: i64| (0..=count).map(|minute| minute * MINUTE);
    let is_open = |window: &Window| {
        let mut openings = minutes(window.seconds / MINUTE).map(|back| this - back).filter(|at| window.opens(*at));
        openings.any(|at| second < at + window.seconds)
    };
    if windows.iter().any(is_open) {
        return Stand::Open;
    }
    let opens = |at: &i64| *at > second && windows.iter().any(|window| window.opens(*at));
    let next = minutes(DAYS * DAY / MINUTE).map(|ahead| this + ahead).find(opens);
    next.map_or(Stand::Unknown, |at| Stand::Closed(at - second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::build;
    use bascule_planner::windows::{Opening, opening};
    use serde_json::json;

    #[test]
    fn minute_by_minute_the_windows_of_worlds_are_what_the_planner_takes_them_for() {
        let sets = [
            json!([{"schedule": "0 * * * *", "duration": "40m", "timeZone": "UTC"}]),
            json!([{"schedule": "30 12-20 * * *", "duration": "25m", "timeZone": "UTC"}]),
            json!([{"schedule": "0 12 * * *", "duration": "14m"}, {"schedule": "10 12 * * *", "duration": "2h"}]),
            json!([{"schedule": "0 22 * * *", "duration": "26h"}]),
        ];
        for windows in sets {
            let spec = build::spec(&json!({"maintenanceWindows": windows}));
            let valid = bascule_planner::validate(&spec).unwrap();
            for step in 0..2_000_i64 {
                let now = build::at(step * 97);
                let wanted = match opening(&valid.windows, now) {
                    Opening::Always | Opening::Open(_) => Stand::Open,
                    Opening::Closed(next) => Stand::Closed(next.unwrap().start.seconds_since(now)),
                };
                assert_eq!(stand(&spec.maintenance_windows, now), wanted, "{now}: {:?}", spec.maintenance_windows);
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_not_guessed_at() {
        for (schedule, zone) in [("0 2 * * 1", "UTC"), ("*/5 * * * *", "UTC"), ("0 2 * * *", "Europe/Berlin")] {
            let window = json!([{"schedule": schedule, "duration": "1h", "timeZone": zone}]);
            let spec = build::spec(&json!({"maintenanceWindows": window}));
            assert_eq!(stand(&spec.maintenance_windows, build::start()), Stand::Unknown, "{schedule} {zone}");
        }
        assert_eq!(stand(&[], build::start()), Stand::Open);
    }
}
