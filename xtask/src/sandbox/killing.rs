//! `--kill SEED`: operators and agents die at moments drawn from a seed, while the story goes on and must end the same.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bascule_sim::machine::Command;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::pods::Containers;

/// Between two kills, at least and at most.
const PAUSE: std::ops::Range<u64> = 300..4_000;
/// So many in one act and no more: where programs take longer to start than they are left alive, nobody would get
/// anywhere, and what is to be shown is where they get.
const KILLS: u32 = 24;

/// Kills until it is stopped, or has killed often enough.
#[derive(Debug)]
pub(crate) struct Killer {
    task: JoinHandle<()>,
    story: Arc<Mutex<Vec<String>>>,
}

impl Killer {
    /// Starts killing: an operator's replica or the agent of a machine, [`KILLS`] times. The same seed kills the same
    /// victims after the same pauses.
    pub(crate) fn start(
        seed: u64,
        began: Instant,
        containers: Arc<Containers>,
        machines: BTreeMap<String, mpsc::Sender<Command>>,
    ) -> Self {
        let story = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&story);
        let task = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let mut killed = 0;
            while killed < KILLS {
                sleep(Duration::from_millis(random.random_range(PAUSE))).await;
                let (operator, draw): (bool, usize) = (random.random(), random.random_range(0..1_000));
                let victim = if operator {
                    let operators = containers.operators();
                    let Some(name) = operators.get(draw % operators.len().max(1)).cloned() else { continue };
                    let hands = Arc::clone(&containers);
                    let victim = name.clone();
                    // Waiting for the process to be gone blocks.
                    if tokio::task::spawn_blocking(move || hands.kill(&name)).await.is_err() {
                        continue;
                    }
                    victim
                } else {
                    let Some((name, switches)) = machines.iter().nth(draw % machines.len().max(1)) else { continue };
                    if switches.send(Command::KillAgent).await.is_err() {
                        continue;
                    }
                    format!("agent of {name}")
                };
                let at = began.elapsed().as_secs_f64();
                killed += 1;
                told.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{at:.1} s {victim}"));
            }
        });
        Self { task, story }
    }

    /// Ends the killing; gives what was killed when.
    pub(crate) async fn stop(self) -> Vec<String> {
        self.task.abort();
        // The only error is the cancellation just asked for.
        let _ = self.task.await;
        std::mem::take(&mut *self.story.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
