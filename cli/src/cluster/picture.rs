//! How times, shares and counts are drawn for people. Colour and anything beyond ASCII is for terminals: what is piped
//! somewhere stays plain.

use bascule_api::RolloutState;
use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use console::Style;
use std::fmt::Display;

/// What the place that is written to can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    /// Colours.
    pub(super) colour: bool,
    /// More than ASCII.
    pub(super) unicode: bool,
    /// Columns.
    pub(super) width: usize,
}

/// What a text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Bad,
    Warn,
    Strong,
}

impl Look {
    /// Plain ASCII of the usual width.
    pub(super) const PLAIN: Self = Self { colour: false, unicode: false, width: 120 };

    /// What stdout can show: `NO_COLOR`, `TERM` and the locale are heeded, `BASCULE_UNICODE=1` asks for the signs of a
    /// terminal where there is none.
    pub(super) fn of_stdout() -> Self {
        let set = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
        let terminal = console::Term::stdout();
        let is_terminal = terminal.is_term() && std::env::var("TERM").as_deref() != Ok("dumb");
        let locale =
            ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
        let utf8 = locale.is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        let width = if is_terminal { usize::from(terminal.size().1).clamp(40, 300) } else { Self::PLAIN.width };
        Self {
            colour: is_terminal && !set("NO_COLOR"),
            unicode: (is_terminal && utf8) || set("BASCULE_UNICODE"),
            width,
        }
    }

    /// A text in its colour.
    pub(super) fn paint(self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let style = Style::new().force_styling(true);
        let style = match tone {
            Tone::Good => style.green(),
            Tone::Bad => style.red().bold(),
            Tone::Warn => style.yellow(),
            Tone::Strong => style.bold(),
        };
        style.apply_to(text).to_string()
    }

    /// The sign, or its stand-in.
    pub(super) const fn sign(self, sign: &'static str, plain: &'static str) -> &'static str {
        if self.unicode { sign } else { plain }
    }

    /// A bar of twenty cells.
    pub(super) fn bar(self, done: u32, all: u32) -> String {
        const CELLS: u32 = 20;
        let filled = if all == 0 { CELLS } else { (u64::from(done) * u64::from(CELLS) / u64::from(all)) as u32 };
        let (full, empty) = if self.unicode { ('█', '░') } else { ('#', '.') };
        (0..CELLS).map(|cell| if cell < filled { full } else { empty }).collect()
    }

    /// A text in lines of this look's width, each behind an indent.
    pub(super) fn wrapped(self, text: &str, indent: &str) -> String {
        let room = self.width.saturating_sub(indent.len()).max(20);
        let mut out = String::new();
        for line in text.lines() {
            let mut length = 0;
            out.push_str(indent);
            // Not at a no-break space.
            for word in line.split([' ', '\t']).filter(|word| !word.is_empty()) {
                let width = console::measure_text_width(word);
                if length > 0 && length + 1 + width > room {
                    out.push('\n');
                    out.push_str(indent);
                    length = 0;
                }
                if length > 0 {
                    out.push(' ');
                    length += 1;
                }
                out.push_str(&word.replace('\u{a0}', " "));
                length += width;
            }
            out.push('\n');
        }
        out
    }
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

/// The same with the zone behind it, for where times of other zones are on the same screen: `03:40 +01:00`.
pub(super) fn moment_with_zone<Z: TimeZone>(at: DateTime<Utc>, now: DateTime<Utc>, zone: &Z) -> String
where
    Z::Offset: Display,
{
    let offset = at.with_timezone(zone).offset().to_string();
    let offset = if offset == "+00:00" { "UTC" } else { offset.as_str() };
    format!("{} {offset}", moment(at, now, zone))
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

/// What a node in a state does, as a verb.
pub(super) const fn does(state: RolloutState) -> &'static str {
    match state {
        RolloutState::Current => "is up to date",
        RolloutState::Staging => "is staging",
        RolloutState::Waiting => "waits",
        RolloutState::Draining => "is draining",
        RolloutState::Rebooting => "is rebooting",
        RolloutState::Trial => "is on trial",
        RolloutState::Reverting => "is reverting",
        RolloutState::Failed => "has failed",
        RolloutState::Unknown => "is not under way",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMINAL: Look = Look { colour: true, unicode: true, width: 80 };

    #[test]
    fn bars_fill_from_the_left() {
        assert_eq!(TERMINAL.bar(0, 40), "░".repeat(20));
        assert_eq!(TERMINAL.bar(12, 40), format!("{}{}", "█".repeat(6), "░".repeat(14)));
        assert_eq!(TERMINAL.bar(0, 0), "█".repeat(20));
        assert_eq!(Look::PLAIN.bar(12, 40), format!("{}{}", "#".repeat(6), ".".repeat(14)));
    }

    #[test]
    fn only_a_terminal_gets_colour() {
        assert_eq!(Look::PLAIN.paint(Tone::Bad, "x"), "x");
        assert!(TERMINAL.paint(Tone::Bad, "x").starts_with('\u{1b}'));
    }

    #[test]
    fn lines_are_as_long_as_there_is_room() {
        let narrow = Look { width: 24, ..Look::PLAIN };
        assert_eq!(
            narrow.wrapped("a word and some more words\nnext", "  "),
            "  a word and some more\n  words\n  next\n"
        );
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
            let at = now + TimeDelta::hours(hours);
            assert_eq!(moment(at, now, &berlin), text);
            assert_eq!(moment_with_zone(at, now, &berlin), format!("{text} +01:00"));
        }
    }

    #[test]
    fn spans_have_two_units_at_most() {
        assert_eq!(span(TimeDelta::seconds(93_784)), "1d2h");
        assert_eq!(span(TimeDelta::seconds(125)), "2m5s");
        assert_eq!(span(TimeDelta::seconds(-5)), "0s");
    }
}
