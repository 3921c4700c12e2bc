//! Progress and rest of a transfer: it steps aside while the machine is short of disk time or memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bascule_api::{RootHash, Transfer, Version};
use bascule_image::release::names::Severity;
use bascule_image::work::Progress;

use crate::core::Event;
use crate::host::{Clock, Pressure, Stall, SystemInfo};

/// How often progress is told and pressure is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How long a rest lasts before pressure is looked at again.
const REST: Duration = Duration::from_secs(3);
/// How long the machine counts as at ease once that was measured while the transfer rested: what is seen while it goes on may be
/// its own doing.
const AT_EASE: Duration = Duration::from_secs(30);

/// How long one transfer rests in all. A machine that is never at ease is updated all the same, at the lowest priority, and the
/// sooner the more the release matters (its severity, as the channel has signed it).
const fn most_rest(severity: Severity) -> Duration {
    match severity {
        Severity::None | Severity::Low | Severity::Medium => Duration::from_secs(30 * 60),
        Severity::High => Duration::from_secs(5 * 60),
        Severity::Critical => Duration::ZERO,
    }
}

/// How much pressure makes a transfer rest, in percent (see [`Pressure`]).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PressureLimits {
    /// For input and output.
    pub io: f64,
    /// For memory.
    pub memory: f64,
}

impl Default for PressureLimits {
    fn default() -> Self {
        Self { io: 60.0, memory: 20.0 }
    }
}

/// Stops work that is not wanted any more, also while it rests.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    wake: Arc<(Mutex<()>, Condvar)>,
}

impl Stop {
    /// Stops.
    pub fn stop(&self) {
        self.flag.store(true, Ordering::SeqCst);
        self.wake.1.notify_all();
    }

    /// Goes again.
    pub fn clear(&self) {
        self.flag.store(false, Ordering::SeqCst);
    }

    /// As the crates below want it.
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.flag)
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.flag.load(Ordering::SeqCst)
    }

    pub(super) fn rest(&self, time: Duration) {
        let guard = self.wake.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_stopped() {
            // Waking early is harmless: the caller looks again.
            drop(self.wake.1.wait_timeout(guard, time));
        }
    }
}

/// Follows one transfer. Called from the threads that decode and write, often.
pub(super) struct Pace<'a> {
    pub(super) version: Version,
    pub(super) base: Option<RootHash>,
    pub(super) bytes_total: u64,
    pub(super) transferred: Arc<AtomicU64>,
    pub(super) limits: PressureLimits,
    pub(super) severity: Severity,
    pub(super) clock: &'a dyn Clock,
    pub(super) system: &'a dyn SystemInfo,
    pub(super) stop: &'a Stop,
    /// Waits for about this long; less where the transfer is stopped meanwhile.
    pub(super) wait: &'a (dyn Fn(Duration) + Sync),
    pub(super) tell: &'a (dyn Fn(Event) + Sync),
    pub(super) last: Mutex<Option<Duration>>,
    pub(super) rests: Mutex<Rests>,
}

/// How a transfer rested so far.
#[derive(Debug, Default)]
pub(super) struct Rests {
    /// In all.
    total: Duration,
    /// Until when, by time since boot, the machine counts as at ease.
    at_ease_until: Duration,
}

impl Pace<'_> {
    /// Some bytes are done.
    pub(super) fn advance(&self, progress: Progress) {
        let now = self.clock.since_boot();
        // One thread at a time reports and rests; the others go on until their own turn, so that a rest slows all.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| now.saturating_sub(last) >= EVERY) || progress.done == progress.total;
        if !due {
            return;
        }
        *last = Some(now);
        let mut rests = self.rests.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= rests.at_ease_until {
            self.step_aside(progress, &mut rests);
        }
        if !self.stop.flag.load(Ordering::SeqCst) {
            (self.tell)(Event::Transfer(self.transfer(progress, None)));
        }
    }

    /// Rests for as long as others wait. Whether they do is measured while it rests: before that, the transfer's own waiting is
    /// in the numbers, and it would give way to itself.
    fn step_aside(&self, progress: Progress, rests: &mut Rests) {
        let Some(mut before) = self.pressure() else { return };
        let mut reason = self.reason(before.io.share, before.memory.share);
        while let Some(why) = reason.filter(|_| rests.total < most_rest(self.severity)) {
            (self.tell)(Event::Transfer(self.transfer(progress, Some(why))));
            if self.stop.flag.load(Ordering::SeqCst) {
                return;
            }
            let began = self.clock.since_boot();
            (self.wait)(REST);
            let rested = self.clock.since_boot().saturating_sub(began);
            // Waking early counts as what it was, and a clock that stands still does not make a rest endless.
            rests.total += rested.max(REST / 3);
            let Some(after) = self.pressure() else { return };
            let share = |before: Stall, after: Stall| {
                let waited = after.total.saturating_sub(before.total);
                if rested.is_zero() { after.share } else { waited.as_secs_f64() / rested.as_secs_f64() * 100.0 }
            };
            reason = self.reason(share(before.io, after.io), share(before.memory, after.memory));
            before = after;
            if reason.is_none() {
                rests.at_ease_until = self.clock.since_boot() + AT_EASE;
            }
        }
    }

    /// A kernel that does not tell is not under pressure as far as we know.
    fn pressure(&self) -> Option<Pressure> {
        self.system.pressure().ok().flatten()
    }

    /// Why these shares in percent are too much.
    fn reason(&self, io: f64, memory: f64) -> Option<String> {
        if io > self.limits.io {
            return Some(format!("disk pressure {io:.0} %, limit {:.0} %", self.limits.io));
        }
        (memory > self.limits.memory)
            .then(|| format!("memory pressure {memory:.0} %, limit {:.0} %", self.limits.memory))
    }

    fn transfer(&self, progress: Progress, paused: Option<String>) -> Transfer {
        let percent = progress.done.saturating_mul(100) / progress.total.max(1);
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let done = self.transferred.load(Ordering::Relaxed);
        Transfer {
            version: self.version.clone(),
            base: self.base.clone(),
            bytes_done: signed(done),
            bytes_total: signed(self.bytes_total.max(done)),
            percent: u32::try_from(percent.min(100)).unwrap_or(100),
            paused,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;

    use chrono::{DateTime, Utc};

    use super::*;

    /// A machine of which others ask something for the first `busy` seconds, and a transfer that makes it wait all the time that
    /// it does not rest.
    struct Busy {
        now: Mutex<Duration>,
        stalled: Mutex<Duration>,
        busy: Duration,
    }

    impl Busy {
        fn pass(&self, time: Duration, by_us: bool) {
            let mut now = self.now.lock().unwrap();
            let others = self.busy.saturating_sub(*now).min(time);
            *self.stalled.lock().unwrap() += if by_us { time } else { others };
            *now += time;
        }
    }

    impl Clock for Busy {
        fn now(&self) -> DateTime<Utc> {
            DateTime::UNIX_EPOCH
        }

        fn since_boot(&self) -> Duration {
            *self.now.lock().unwrap()
        }
    }

    impl SystemInfo for Busy {
        fn boot_id(&self) -> io::Result<String> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn command_line(&self) -> io::Result<String> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn os_release(&self) -> io::Result<String> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn pressure(&self) -> io::Result<Option<Pressure>> {
            let io = Stall { share: 95.0, total: *self.stalled.lock().unwrap() };
            Ok(Some(Pressure { io, ..Pressure::default() }))
        }

        fn has_unit(&self, _unit: &str) -> io::Result<bool> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// A transfer of `work` seconds. How long it rests.
    fn rests(busy: Duration, work: u64, severity: Severity) -> Duration {
        let machine = Busy { now: Mutex::default(), stalled: Mutex::default(), busy };
        let stop = Stop::default();
        let wait = |time: Duration| machine.pass(time, false);
        let pace = Pace {
            version: Version::parse("1.1").unwrap(),
            base: None,
            bytes_total: 1,
            transferred: Arc::default(),
            limits: PressureLimits::default(),
            severity,
            clock: &machine,
            system: &machine,
            stop: &stop,
            wait: &wait,
            tell: &|_| {},
            last: Mutex::default(),
            rests: Mutex::default(),
        };
        for done in 0..work {
            machine.pass(Duration::from_secs(1), true);
            pace.advance(Progress { done, total: work + 1 });
        }
        pace.rests.into_inner().unwrap().total
    }

    #[test]
    fn it_gives_way_to_others_and_not_to_itself() {
        let minute = Duration::from_secs(60);
        // Alone on the machine: one look in half a minute, whatever the last ten seconds say.
        let alone = rests(Duration::ZERO, 120, Severity::None);
        assert!(alone <= REST * 4, "{alone:?}");
        // Others first, for as long as they ask.
        let busy = rests(10 * minute, 120, Severity::None);
        assert!(busy >= 9 * minute && busy <= 11 * minute, "{busy:?}");
    }

    #[test]
    fn what_matters_more_rests_less_and_nothing_rests_for_ever() {
        let day = Duration::from_secs(24 * 3600);
        let longest = Cell::new(Duration::MAX);
        for severity in [Severity::None, Severity::Low, Severity::Medium, Severity::High, Severity::Critical] {
            let rested = rests(day, 60, severity);
            assert!(rested <= longest.get() && rested < most_rest(severity) + REST, "{severity:?}: {rested:?}");
            longest.set(rested);
        }
        assert_eq!(rests(day, 60, Severity::Critical), Duration::ZERO);
    }
}
