//! Orders go before what is less urgent: explanations, most of which would be out of date when their turn comes, and the
//! first evictions of nodes that just were granted. Both share the API server with the orders and would hold them up.

use std::time::{Duration, Instant};

/// For how long others let orders that are due go first.
const YIELDS: Duration = Duration::from_secs(10);

/// Lets orders go first, but not for ever.
#[derive(Debug, Default)]
pub struct OrdersFirst(Option<Instant>);

impl OrdersFirst {
    /// Until when others wait, if orders are left. When that time is over they go once in between.
    pub fn until(&mut self, orders_left: bool, now: Instant) -> Option<Instant> {
        let until = self.0.unwrap_or(now) + YIELDS;
        let yields = orders_left && now < until;
        self.0 = yields.then(|| self.0.unwrap_or(now));
        yields.then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_go_first_but_not_for_ever() {
        let (mut first, start) = (OrdersFirst::default(), Instant::now());
        let mut until = |orders_left, second| {
            let until = first.until(orders_left, start + Duration::from_secs(second));
            until.map(|until| until.duration_since(start).as_secs())
        };
        assert_eq!(
            [until(true, 0), until(true, 9), until(true, 10), until(true, 11)],
            [Some(10), Some(10), None, Some(21)]
        );
        assert_eq!([until(false, 12), until(true, 13)], [None, Some(23)]);
    }
}
