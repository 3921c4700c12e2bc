//! The live table on a terminal, plain lines elsewhere. Drawn from the sandbox's snapshot, never from memory of what
//! was drawn before.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bascule_api::{NodeUpdateStatus, SlotName, SlotState, Transfer};
use console::{Term, style};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::snapshot::{NodeSeen, Snapshot};
use super::workload::{BUDGET, REPLICAS};

/// How often the table is drawn at most.
const FRAME: Duration = Duration::from_millis(100);

/// Where the story is told.
#[derive(Debug)]
pub(crate) struct View {
    state: Arc<Mutex<State>>,
    live: bool,
    painter: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    heading: String,
    act: String,
    drawn: usize,
    snapshot: Snapshot,
    started: Option<Instant>,
}

impl View {
    /// A live table if standard output is a terminal and `plain` does not forbid it.
    pub(crate) fn new(plain: bool) -> Self {
        let state = State { started: Some(Instant::now()), ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), live: !plain && Term::stdout().is_term(), painter: None }
    }

    /// A line that stays.
    pub(crate) fn say(&self, line: &str) {
        self.teller().say(line);
    }

    /// Somebody who may speak too, from another task or thread.
    pub(crate) fn teller(&self) -> Teller {
        Teller { state: Arc::clone(&self.state), live: self.live }
    }

    /// The first line of the table.
    pub(crate) fn heading(&self, text: String) {
        lock(&self.state).heading = text;
    }

    /// An act begins.
    pub(crate) fn act(&self, number: u8, of: u8, title: &str) {
        lock(&self.state).act = format!("act {number}/{of}  {title}");
        self.say(&format!("act {number}/{of}  {title}"));
    }

    /// From now on shows the cluster.
    pub(crate) fn follow(&mut self, mut snapshots: watch::Receiver<Snapshot>) {
        let (state, live) = (Arc::clone(&self.state), self.live);
        self.painter = Some(tokio::spawn(async move {
            let mut said = BTreeMap::new();
            while snapshots.changed().await.is_ok() {
                let snapshot = snapshots.borrow_and_update().clone();
                show(&mut lock(&state), snapshot, live, &mut said);
                tokio::time::sleep(FRAME).await;
            }
        }));
    }

    /// Stops drawing; what was said stays.
    pub(crate) fn stop(&mut self) {
        if let Some(painter) = self.painter.take() {
            painter.abort();
        }
        erase(&mut lock(&self.state));
    }
}

/// Speaks beside the table.
#[derive(Debug, Clone)]
pub(crate) struct Teller {
    state: Arc<Mutex<State>>,
    live: bool,
}

impl Teller {
    /// A line that stays.
    pub(crate) fn say(&self, line: &str) {
        let mut state = lock(&self.state);
        let seconds = state.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        erase(&mut state);
        print(&format!("{} {line}\n", style(format!("{seconds:6.1}")).dim()));
        if self.live {
            draw(&mut state);
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A terminal that is gone ends the story by SIGHUP, not here.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

fn show(state: &mut State, snapshot: Snapshot, live: bool, said: &mut BTreeMap<String, String>) {
    if live {
        state.snapshot = snapshot;
        erase(state);
        draw(state);
        return;
    }
    let seconds = state.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
    for (name, node) in &snapshot.nodes {
        let line = plain_line(name, node);
        if said.get(name) != Some(&line) {
            print(&format!("{seconds:6.1}   {line}\n"));
            said.insert(name.clone(), line);
        }
    }
}

fn erase(state: &mut State) {
    if state.drawn > 0 {
        let _ = Term::stdout().clear_last_lines(state.drawn);
        state.drawn = 0;
    }
}

fn draw(state: &mut State) {
    if state.snapshot.nodes.is_empty() {
        return;
    }
    let lines = table(&state.heading, &state.act, &state.snapshot);
    state.drawn = lines.len();
    let width = usize::from(Term::stdout().size().1);
    let text: String = lines.iter().map(|line| format!("{}\n", console::truncate_str(line, width, "…"))).collect();
    print(&text);
}

fn table(heading: &str, act: &str, snapshot: &Snapshot) -> Vec<String> {
    let replicas = snapshot.replicas();
    let shop = format!("shop {replicas}/{REPLICAS} ready (budget: at least {BUDGET})");
    let shop = if replicas < BUDGET { style(shop).red() } else { style(shop).green() };
    let mut lines = vec![
        format!("{} · {shop}", style(heading).bold()),
        style(act).cyan().to_string(),
        style(format!("  {:<6} {:<5} {:<14} {:<14} {}", "node", "zone", "A", "B", "state")).dim().to_string(),
    ];
    for (name, node) in &snapshot.nodes {
        let status = node.update.as_ref().and_then(|update| update.status.as_ref());
        let (a, b) = (slot(node, status, SlotName::A), slot(node, status, SlotName::B));
        let (word, detail) = doing(node, status);
        lines.push(format!("  {name:<6} {:<5} {a:<14} {b:<14} {:<11} {detail}", node.zone, word));
    }
    lines
}

/// One line about a node, the same as long as nothing about it changes.
fn plain_line(name: &str, node: &NodeSeen) -> String {
    let status = node.update.as_ref().and_then(|update| update.status.as_ref());
    let (word, detail) = doing(node, status);
    let runs = node.runs().unwrap_or("-");
    format!("{name} zone {} runs {runs}: {word} {detail}", node.zone).trim_end().to_owned()
}

fn slot(node: &NodeSeen, status: Option<&NodeUpdateStatus>, which: SlotName) -> String {
    let name = which.to_string();
    let running = node.machine.as_ref().and_then(|machine| machine.system.as_ref());
    let dot = if running.is_some_and(|system| system.slot == name) { "●" } else { "" };
    if let Some(status) = status
        && let Some(transfer) = &status.transfer
        && status.booted.as_ref().is_some_and(|booted| booted.slot != which)
    {
        return bar(transfer);
    }
    let from_agent = status.and_then(|status| status.slots.as_ref()).map(|slots| slots.get(which));
    match from_agent {
        Some(slot) if slot.state == SlotState::Empty => "-".to_owned(),
        Some(slot) => {
            let version = slot.version.as_ref().map_or("-", bascule_api::Version::as_str);
            let mark = match slot.state {
                SlotState::Bad => " bad",
                SlotState::Damaged => " damaged",
                SlotState::Writing => " …",
                _ => "",
            };
            format!("{version}{dot}{mark}")
        }
        None => {
            running.filter(|system| system.slot == name).map_or("-".to_owned(), |system| format!("{}●", system.version))
        }
    }
}

fn bar(transfer: &Transfer) -> String {
    const WIDTH: u32 = 8;
    let full = (transfer.percent * WIDTH / 100).min(WIDTH);
    let part = |character: &str, times: u32| character.repeat(times as usize);
    format!("{}{} {:>2}%", part("▓", full), part("░", WIDTH - full), transfer.percent.min(99))
}

/// What a node does, and why.
fn doing(node: &NodeSeen, status: Option<&NodeUpdateStatus>) -> (String, String) {
    let Some(machine) = &node.machine else { return ("-".into(), String::new()) };
    if machine.system.is_none() {
        let last = machine.boot_log.last().cloned().unwrap_or_default();
        return (format!("{:?}", machine.power).to_lowercase(), last);
    }
    let Some(status) = status else { return ("up".into(), "no report yet".into()) };
    let Some(rollout) = &status.rollout else {
        let error = status.last_error.as_ref().map(|error| format!("{}: {}", error.category.as_str(), error.message));
        return ("up".into(), error.unwrap_or_default());
    };
    let word = format!("{:?}", rollout.state).to_lowercase();
    let drain = rollout.drain.as_ref().map(|drain| format!("{}/{} ", drain.gone, drain.pods));
    let reason = rollout.reason.as_str();
    let reason = if reason.eq_ignore_ascii_case(&word) { String::new() } else { format!("{reason}: ") };
    let detail = format!("{}{reason}{}", drain.unwrap_or_default(), rollout.message);
    (word, detail.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bascule_api::Version;

    #[test]
    fn a_transfer_is_a_bar_as_long_as_it_runs() {
        let at = |percent| Transfer {
            version: Version::parse("1.1").unwrap(),
            base: None,
            bytes_done: 1,
            bytes_total: 2,
            percent,
            paused: None,
        };
        assert_eq!(bar(&at(0)), "░░░░░░░░  0%");
        assert_eq!(bar(&at(68)), "▓▓▓▓▓░░░ 68%");
        assert_eq!(bar(&at(100)), "▓▓▓▓▓▓▓▓ 99%");
    }

    #[test]
    fn a_node_that_nothing_is_known_of_has_a_line_too() {
        let node = NodeSeen { zone: "a".into(), ..NodeSeen::default() };
        assert_eq!(plain_line("n1", &node), "n1 zone a runs -: -");
    }
}
