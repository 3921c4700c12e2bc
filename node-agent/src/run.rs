//! The agent as a service: one loop that owns the state machine, one thread that carries effects out.

use std::sync::Arc;
use std::time::Duration;

use bascule_api::NodeUpdateStatus;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::core::{Effect, Event, ManualCommand, Now, State, status, step};
use crate::engine::{Engine, Stop};
use crate::host::Host;
use crate::kubernetes::{Credentials, Link, StatusToWrite};
use crate::metrics::Metrics;
use crate::server::{self, Answer, Command, ListenError, Request, Shown};
use crate::settings::Settings;

/// Events that may wait; what brings more waits itself.
const EVENTS: usize = 64;
/// How long work in progress may take to end when the agent is told to.
const FAREWELL: Duration = Duration::from_secs(20);

/// Why the agent ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another agent works on this host.
    #[error("another agent works on this host: its lock in the state folder is held")]
    Locked,
    /// The lock can't be taken.
    #[error("the lock in the state folder can't be taken")]
    Lock(#[source] std::io::Error),
    /// The server.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The thread that carries effects out is gone.
    #[error("the agent's worker died; this is a defect, please report it")]
    Worker,
    /// No timer.
    #[error("the kernel gives the agent no timer")]
    Timer(#[source] std::io::Error),
    /// No thread.
    #[error("the agent's worker can't be started")]
    Thread(#[source] std::io::Error),
}

/// Everything the loop listens to and talks to.
struct Loop {
    state: State,
    host: Host,
    stop: Stop,
    metrics: Arc<Metrics>,
    work: mpsc::Sender<Vec<Effect>>,
    statuses: watch::Sender<Option<StatusToWrite>>,
    shown: watch::Sender<NodeUpdateStatus>,
    /// Who waits for the end of the break-glass command that runs.
    waiting: Option<oneshot::Sender<Answer>>,
}

/// Runs the agent on a host until `shutdown` ends.
///
/// # Errors
/// [`RunError`]; trouble with the host, the repository or the API server is none: it is reported and tried again.
pub async fn run(
    settings: &Settings,
    node: String,
    host: Host,
    credentials: Credentials,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let _lock = match host.state.lock() {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(RunError::Locked),
        Err(error) => return Err(RunError::Lock(error)),
    };
    let metrics = Arc::new(Metrics::new());
    let bound = server::bind(&settings.listen).await?;
    let (event_sender, mut events) = mpsc::channel(EVENTS);
    let (command_sender, mut commands) = mpsc::channel(1);
    let engine = Engine::new(host.clone(), settings.look_settings(), settings.stage.clone());
    let stop = engine.stop_handle();
    let (work, finished) = start_worker(engine, event_sender.clone(), Arc::clone(&metrics))?;
    let (statuses, status_receiver) = watch::channel(None);
    let (shown, shown_receiver) = watch::channel(NodeUpdateStatus::default());
    let link = Link {
        credentials,
        node: node.clone(),
        progress_every: settings.progress_every,
        silence: Link::SILENCE,
        metrics: Arc::clone(&metrics),
    };
    // They end with this function, which is called again in the same process when settings are mended.
    let mut beside = JoinSet::new();
    beside.spawn(link.clone().watch(event_sender));
    let mut publishing = tokio::spawn(link.publish(status_receiver));
    let shows = Shown { metrics: Arc::clone(&metrics), status: shown_receiver, commands: command_sender };
    beside.spawn(server::serve(bound, shows));
    let state = State::new(settings.config(&node));
    let mut own = Loop { state, host, stop, metrics, work, statuses, shown, waiting: None };
    tracing::info!(node, version = own.state.config.agent_version, "the agent runs");
    // Outside systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut watchdog = Watchdog::new();
    let alarm = Alarm::new().map_err(RunError::Timer)?;
    let mut shutdown = std::pin::pin!(shutdown);
    own.handle(Event::Tick).await?;
    loop {
        let due = watchdog.attend(own.state.hangs(own.now()).is_some());
        let rest = own.state.rest(own.now()).max(Duration::from_millis(50));
        alarm.set(due.map_or(rest, |due| rest.min(due))).map_err(RunError::Timer)?;
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            event = events.recv() => match event {
                Some(event) => own.handle(event).await?,
                None => return Err(RunError::Worker),
            },
            Some(command) = commands.recv() => own.command(command).await?,
            rang = alarm.rings() => {
                rang.map_err(RunError::Timer)?;
                own.handle(Event::Tick).await?;
            }
        }
    }
    tracing::info!("the agent ends");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    own.farewell(finished, &mut events).await;
    drop(own);
    // One last word, if the server listens.
    if tokio::time::timeout(Duration::from_secs(2), &mut publishing).await.is_err() {
        publishing.abort();
    }
    // The address is free when this returns.
    beside.shutdown().await;
    Ok(())
}

/// systemd's watchdog, where it watches. It is fed when the loop turns anyway, and wakes the agent only where that does not
/// happen for long.
#[derive(Debug)]
struct Watchdog {
    /// After how long without food it bites.
    patience: Option<Duration>,
    fed: Option<Instant>,
}

impl Watchdog {
    fn new() -> Self {
        Self { patience: sd_notify::watchdog_enabled(), fed: None }
    }

    /// Feeds it where it is time, but not an agent whose work hangs: that must not look alive. systemd starts it again, and if
    /// that hangs too, a person has to see it. When it has to be fed next.
    fn attend(&mut self, hangs: bool) -> Option<Duration> {
        if hangs {
            return None;
        }
        self.feed();
        self.due()
    }

    /// Feeds it, unless it was fed in the last quarter of its patience.
    fn feed(&mut self) {
        let Some(patience) = self.patience else { return };
        if self.fed.is_none_or(|fed| fed.elapsed() >= patience / 4) {
            // Outside systemd there is nobody to tell.
            let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            self.fed = Some(Instant::now());
        }
    }

    /// When it has to be fed at the latest: sd_watchdog_enabled(3) advises half of its patience.
    fn due(&self) -> Option<Duration> {
        let fed = self.fed.map(|fed| fed.elapsed()).unwrap_or_default();
        self.patience.map(|patience| (patience / 2).saturating_sub(fed))
    }
}

/// Starts the thread that carries effects out. It ends when nobody gives it work any more; then the second channel closes.
fn start_worker(
    mut engine: Engine,
    events: mpsc::Sender<Event>,
    metrics: Arc<Metrics>,
) -> Result<(mpsc::Sender<Vec<Effect>>, oneshot::Receiver<()>), RunError> {
    let (sender, mut receiver) = mpsc::channel::<Vec<Effect>>(1);
    let (ended, finished) = oneshot::channel();
    let work = move || {
        while let Some(effects) = receiver.blocking_recv() {
            engine.perform(&effects, &|event| {
                match &event {
                    Event::Failed(failure) => metrics.effect_failed(failure.effect.name(), failure.category),
                    Event::Done => effects.iter().for_each(|effect| metrics.effect_done(effect.name())),
                    // Progress that finds no place is told again a second later.
                    Event::Transfer(_) => return drop(events.try_send(event)),
                    _ => {}
                }
                // When nobody listens any more, the agent ends.
                let _ = events.blocking_send(event);
            });
        }
        let _ = ended.send(());
    };
    std::thread::Builder::new().name("engine".to_owned()).spawn(work).map_err(RunError::Thread)?;
    Ok((sender, finished))
}

impl Loop {
    fn now(&self) -> Now {
        Now { wall: self.host.clock.now(), since_boot: self.host.clock.since_boot() }
    }

    async fn handle(&mut self, event: Event) -> Result<(), RunError> {
        let now = self.now();
        let (state, effects) = step(std::mem::take(&mut self.state), event, now);
        self.state = state;
        let mut work = Vec::with_capacity(effects.len());
        for effect in effects {
            match effect {
                Effect::Publish(status) => {
                    self.metrics.follow(&status);
                    let uid = self.state.desired.as_ref().map(|desired| desired.uid.clone()).unwrap_or_default();
                    self.statuses.send_replace(Some(StatusToWrite { uid, status: *status }));
                }
                Effect::Cancel => self.stop.stop(),
                other => work.push(other),
            }
        }
        if !work.is_empty() {
            self.work.send(work).await.map_err(|_| RunError::Worker)?;
        }
        let current = status(&self.state, now);
        self.shown.send_if_modified(|shown| {
            let changed = *shown != current;
            if changed {
                shown.clone_from(&current);
            }
            changed
        });
        let over = self.state.manual.is_none() || self.state.reboot_asked.is_some();
        if over
            && self.state.work.is_none()
            && let Some(answer) = self.waiting.take()
        {
            let problem = current.last_error.clone();
            // Whoever asked may have gone.
            let _ = answer.send(Answer { done: problem.is_none(), problem, status: current });
        }
        Ok(())
    }

    async fn command(&mut self, command: Command) -> Result<(), RunError> {
        let (command, user, answer) = match command.request {
            Request::Stage { release, user } => (ManualCommand::Stage(release), user, command.answer),
            Request::Commit { user } => (ManualCommand::Commit, user, command.answer),
            Request::Revert { accept_state, user } => (ManualCommand::Revert { accept_state }, user, command.answer),
        };
        tracing::warn!(action = command.name(), user, "a person on the node asks for something");
        // A command that came before is overtaken; who waits for it learns how things stand.
        self.waiting = Some(answer);
        self.handle(Event::Manual { command, user }).await
    }

    /// Ends work in progress: what can be stopped is, what is short ends by itself.
    async fn farewell(&mut self, finished: oneshot::Receiver<()>, events: &mut mpsc::Receiver<Event>) {
        if matches!(self.state.work, Some(crate::core::Work::Stage | crate::core::Work::Verify)) {
            self.stop.stop();
        }
        // The worker ends when its channel does.
        let (closed, _) = mpsc::channel(1);
        self.work = closed;
        let drained = async {
            let mut finished = finished;
            loop {
                tokio::select! {
                    _ = &mut finished => return,
                    event = events.recv() => if event.is_none() { return },
                }
            }
        };
        if tokio::time::timeout(FAREWELL, drained).await.is_err() {
            tracing::warn!("work in progress did not end in time; it goes on at the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_in_passing_and_wakes_the_agent_only_after_half_its_patience() {
        let minutes = |count: u64| Duration::from_secs(60 * count);
        let mut watchdog = Watchdog { patience: Some(minutes(8)), fed: None };
        watchdog.feed();
        assert_eq!(watchdog.due(), Some(minutes(4)));
        tokio::time::advance(minutes(1)).await;
        watchdog.feed();
        assert_eq!(watchdog.due(), Some(minutes(3)), "it is not hungry yet");
        tokio::time::advance(minutes(1)).await;
        watchdog.feed();
        assert_eq!(watchdog.due(), Some(minutes(4)));
        tokio::time::advance(minutes(5)).await;
        assert_eq!(watchdog.due(), Some(Duration::ZERO));
        assert_eq!(Watchdog { patience: None, fed: None }.due(), None, "nobody watches");
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_whose_work_hangs_does_not_feed_the_watchdog() {
        let patience = Duration::from_secs(480);
        let mut watchdog = Watchdog { patience: Some(patience), fed: None };
        assert_eq!(watchdog.attend(false), Some(patience / 2));
        let fed = watchdog.fed;
        tokio::time::advance(patience / 2).await;
        assert_eq!((watchdog.attend(true), watchdog.fed), (None, fed), "nor does it wake up to feed it");
        tokio::time::advance(patience / 4).await;
        assert_eq!(watchdog.attend(false), Some(patience / 2), "what came back is fed again");
        assert_ne!(watchdog.fed, fed);
    }
}
