//! State machine and engine together, without a cluster: what break-glass commands and simulated machines run.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bascule_api::NodeUpdateStatus;

use crate::core::{Config, Effect, Event, Now, State, step};
use crate::engine::Engine;

/// Steps after which [`Agent::handle`] gives up: a state machine that runs in circles is a defect, not a reason to hang.
const MAX_STEPS: usize = 1_000;

/// An agent that is driven by hand: each event is followed to its end before the next.
#[derive(Debug)]
pub struct Agent {
    state: State,
    engine: Engine,
    status: Option<NodeUpdateStatus>,
}

/// The state machine ran in circles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the agent did not come to rest within {MAX_STEPS} steps; this is a defect, please report it")]
pub struct Restless;

impl Agent {
    /// An agent that knows nothing yet. Its first event is best [`Event::Tick`].
    pub fn new(engine: Engine, config: Config) -> Self {
        Self { state: State::new(config), engine, status: None }
    }

    /// What it knows.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The status it handed out last.
    pub const fn published(&self) -> Option<&NodeUpdateStatus> {
        self.status.as_ref()
    }

    /// The time by the host's clock.
    pub fn now(&self) -> Now {
        let clock = &self.engine.host().clock;
        Now { wall: clock.now(), since_boot: clock.since_boot() }
    }

    /// Takes an event in and carries out what follows from it, until there is nothing more to do now.
    ///
    /// # Errors
    /// [`Restless`] when that does not end.
    pub fn handle(&mut self, event: Event) -> Result<(), Restless> {
        let mut events = VecDeque::from([event]);
        for _ in 0..MAX_STEPS {
            let Some(event) = events.pop_front() else { return Ok(()) };
            let effects = self.step(event);
            // While events of the last effects are left, the state machine waits for their end.
            if !effects.is_empty() {
                events.extend(self.perform(&effects));
            }
        }
        Err(Restless)
    }

    /// Takes one event in and hands out the effects that follow, for a driver that carries them out itself.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let now = self.now();
        let (state, mut effects) = step(std::mem::take(&mut self.state), event, now);
        self.state = state;
        for effect in &effects {
            if let Effect::Publish(status) = effect {
                self.status = Some((**status).clone());
            }
        }
        effects.retain(|effect| !matches!(effect, Effect::Publish(_) | Effect::Cancel));
        effects
    }

    /// Carries effects out and collects what they tell.
    pub fn perform(&mut self, effects: &[Effect]) -> Vec<Event> {
        let events = Mutex::new(Vec::new());
        self.engine.perform(effects, &|event| events.lock().unwrap_or_else(PoisonError::into_inner).push(event));
        events.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
