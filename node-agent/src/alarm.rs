//! An alarm for distant times, by a timer of the kernel.
//!
//! tokio keeps its timers in a wheel whose slots are 64 ms, 4 s, 262 s, … wide, and a runtime that waits for a distant one
//! wakes up at the edge of each slot on the way there (tokio, `runtime/time/wheel`): at every multiple of 262 s while
//! one is set that lies behind it, and again up to 4 s before the time. An idle agent shall sleep, so it sets none.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// One alarm. It rings once for each time that it is set.
#[derive(Debug)]
pub(crate) struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    /// An alarm that is not set. To be called within a runtime.
    ///
    /// # Errors
    /// The kernel has no descriptor left for it.
    pub(crate) fn new() -> io::Result<Self> {
        // As the clock that decisions are given, it goes on while the machine is suspended.
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Self::of(timer)
    }

    #[allow(
        deprecated,
        reason = "an OwnedFd keeps the one descriptor it has open, which is what its unsafe successor asks for"
    )]
    fn of(timer: OwnedFd) -> io::Result<Self> {
        Ok(Self(AsyncFd::new(timer)?))
    }

    /// Sets it anew: it rings in `after` from now, and whatever it was set to before is forgotten.
    ///
    /// # Errors
    /// Of the kernel; none is known for a time like this.
    pub(crate) fn set(&self, after: Duration) -> io::Result<()> {
        // A value of zero would switch it off (timerfd_settime(2)).
        let after = after.max(Duration::from_nanos(1));
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        timerfd_settime(
            self.0.get_ref(),
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: never, it_value: at },
        )?;
        Ok(())
    }

    /// Waits until it rings. May be dropped and called again.
    ///
    /// # Errors
    /// Of the kernel; none is known.
    pub(crate) async fn rings(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            // How often it rang; reading forgets it. A time that was set anew meanwhile has not come, and nothing is read.
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut [0_u8; 8])?));
            match read {
                Ok(outcome) => return outcome.map(|_| ()),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn it_rings_once_for_each_time_and_not_before() {
        let alarm = Alarm::new().unwrap();
        for milliseconds in [30, 0, 10] {
            let (after, begun) = (Duration::from_millis(milliseconds), Instant::now());
            alarm.set(after).unwrap();
            alarm.rings().await.unwrap();
            assert!(begun.elapsed() >= after);
        }
        let again = tokio::time::timeout(Duration::from_millis(20), alarm.rings()).await;
        assert!(again.is_err(), "nobody has set it again");
    }

    #[tokio::test]
    async fn what_it_was_set_to_before_is_forgotten() {
        let alarm = Alarm::new().unwrap();
        alarm.set(Duration::ZERO).unwrap();
        alarm.rings().await.unwrap();
        alarm.set(Duration::ZERO).unwrap();
        // It rang already, but nobody has heard it.
        let long_over = rustix::event::poll(
            &mut [rustix::event::PollFd::new(alarm.0.get_ref(), rustix::event::PollFlags::IN)],
            None,
        );
        assert_eq!(long_over, Ok(1));
        let (after, begun) = (Duration::from_millis(30), Instant::now());
        alarm.set(after).unwrap();
        alarm.rings().await.unwrap();
        assert!(begun.elapsed() >= after);
    }
}
