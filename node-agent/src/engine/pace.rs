//! Progress and rest of a transfer: it steps aside while the machine is short of disk time or memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use bascule_api::{RootHash, Transfer, Version};
use bascule_image::work::Progress;

use crate::core::Event;
use crate::host::{Clock, SystemInfo};

/// How often progress is told and pressure is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How long a rest lasts before pressure is looked at again.
const REST: Duration = Duration::from_secs(3);
/// How long one transfer rests in all. A machine that is never at ease is updated all the same, at the lowest priority.
const MOST_REST: Duration = Duration::from_secs(30 * 60);

/// How much pressure makes a transfer rest, in percent (see [`crate::host::Pressure`]).
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

    fn rest(&self, time: Duration) {
        let guard = self.wake.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.flag.load(Ordering::SeqCst) {
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
    pub(super) clock: &'a dyn Clock,
    pub(super) system: &'a dyn SystemInfo,
    pub(super) stop: &'a Stop,
    pub(super) tell: &'a (dyn Fn(Event) + Sync),
    pub(super) last: Mutex<Option<Duration>>,
    /// Time it has rested so far.
    pub(super) rested: Mutex<Duration>,
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
        let mut rested = self.rested.lock().unwrap_or_else(PoisonError::into_inner);
        while *rested < MOST_REST
            && let Some(reason) = self.pressure()
        {
            (self.tell)(Event::Transfer(self.transfer(progress, Some(reason))));
            if self.stop.flag.load(Ordering::SeqCst) {
                return;
            }
            let before = self.clock.since_boot();
            self.stop.rest(REST);
            // Waking early counts as what it was, and a clock that stands still does not make a rest endless.
            *rested += self.clock.since_boot().saturating_sub(before).max(REST / 3);
        }
        (self.tell)(Event::Transfer(self.transfer(progress, None)));
    }

    fn pressure(&self) -> Option<String> {
        // A kernel that does not tell is not under pressure as far as we know.
        let pressure = self.system.pressure().ok().flatten()?;
        if pressure.io_some > self.limits.io {
            return Some(format!("disk pressure {:.0} %, limit {:.0} %", pressure.io_some, self.limits.io));
        }
        if pressure.memory_some > self.limits.memory {
            return Some(format!("memory pressure {:.0} %, limit {:.0} %", pressure.memory_some, self.limits.memory));
        }
        None
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
