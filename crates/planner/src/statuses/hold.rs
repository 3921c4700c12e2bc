//! Explanations let orders go first, but not for ever.

use std::time::Duration;

/// Until when explanations let orders go first. A plan lets them go once in between, and whoever is writing then reads only a later plan,
/// which holds them back anew: what was said first counts until it is over.
#[derive(Debug, Default)]
pub struct Hold(Option<Duration>);

impl Hold {
    /// Until when explanations are held back, where the newest plan says so of them; `None`: they may be written.
    pub fn until(&mut self, said: Option<Duration>, now: Duration) -> Option<Duration> {
        self.0 = said.map(|said| self.0.unwrap_or(said)).filter(|until| now < *until);
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explanations_go_once_in_between_though_the_plan_that_lets_them_was_not_read() {
        let mut hold = Hold::default();
        let mut until = |said: Option<u64>, second| {
            let until = hold.until(said.map(Duration::from_secs), Duration::from_secs(second));
            until.map(|until| until.as_secs())
        };
        assert_eq!([until(Some(10), 0), until(Some(10), 9)], [Some(10), Some(10)]);
        // The plan of the tenth second was missed.
        assert_eq!([until(Some(20), 11), until(Some(20), 12), until(Some(20), 19)], [None, Some(20), Some(20)]);
        assert_eq!([until(None, 19), until(Some(30), 20)], [None, Some(30)], "no orders were left");
    }
}
