//! Values that many objects have in common, kept once: most of what is said of a pod is said of each pod of its workload.

use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

/// How many are kept before anything is let go.
const SWEEP_FROM: usize = 1_024;

/// Values of one type.
pub(crate) struct Shared<T>(Mutex<Known<T>>);

struct Known<T> {
    values: HashSet<Arc<T>>,
    /// At how many those that nobody uses any more are let go.
    sweep_at: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self(Mutex::new(Known { values: HashSet::new(), sweep_at: SWEEP_FROM }))
    }
}

impl<T: Eq + Hash> Shared<T> {
    /// A value, as it is known already where it is.
    pub(crate) fn of(&self, value: T) -> Arc<T> {
        // A poisoned lock only means that somebody panicked who asked for a value.
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = known.values.get(&value) {
            return Arc::clone(shared);
        }
        if known.values.len() >= known.sweep_at {
            known.values.retain(|value| Arc::strong_count(value) > 1);
            known.sweep_at = known.values.len().saturating_mul(2).max(SWEEP_FROM);
        }
        let value = Arc::new(value);
        known.values.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_kept_once_and_what_nobody_uses_is_let_go() {
        let shared = Shared::default();
        let kept = shared.of(1);
        assert!(Arc::ptr_eq(&kept, &shared.of(1)) && !Arc::ptr_eq(&kept, &shared.of(2)));
        for number in 0..10 * SWEEP_FROM {
            drop(shared.of(number));
        }
        assert!(Arc::ptr_eq(&kept, &shared.of(1)));
        assert!(shared.0.lock().unwrap().values.len() <= 2 * SWEEP_FROM);
    }
}
