//! Runs the programs that make images and turns their failures into one sentence each.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Error;

/// How many of a failing program's last lines are shown.
const SHOWN_LINES: usize = 6;

/// Which Debian package brings a program.
fn package_of(tool: &str) -> &'static str {
    match tool {
        "mkfs.erofs" => "erofs-utils",
        "xz" => "xz-utils",
        "apt-get" => "apt",
        "cp" | "chroot" => "coreutils",
        "cargo" => "cargo",
        _ => "apt-file",
    }
}

/// The programs that this process runs.
static TOOLS: Tools = Tools(Mutex::new(Running { ended: false, tools: BTreeMap::new() }));

/// Asks the programs that run for images in this process to end, and lets no other start: for a process that was itself
/// asked to end. Whoever waits for an image gets an error.
pub fn end_tools() {
    TOOLS.end();
}

#[derive(Debug)]
struct Tools(Mutex<Running>);

#[derive(Debug)]
struct Running {
    /// No other program may start.
    ended: bool,
    /// By process id; a descriptor never means another process that took the id over.
    tools: BTreeMap<u32, OwnedFd>,
}

impl Tools {
    fn running(&self) -> MutexGuard<'_, Running> {
        // It is whole after each step, so a thread that died with it left it in order.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        let mut running = self.running();
        running.ended = true;
        for tool in running.tools.values() {
            // One that has just ended by itself is what is wanted.
            let _ = pidfd_send_signal(tool, Signal::TERM);
        }
    }

    fn start(&self, command: &mut Command) -> io::Result<Child> {
        let mut running = self.running();
        if running.ended {
            return Err(ErrorKind::Interrupted.into());
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(tool) => running.tools.insert(child.id(), tool),
            Err(error) => {
                // What can't be ended later is not begun.
                child.kill()?;
                child.wait()?;
                return Err(error.into());
            }
        };
        Ok(child)
    }

    fn output(&self, command: &mut Command) -> io::Result<Output> {
        let child = self.start(command)?;
        let id = child.id();
        let output = child.wait_with_output();
        self.running().tools.remove(&id);
        output
    }
}

/// Runs `command` to its end without input and returns what it wrote.
pub(crate) fn run(step: &str, command: &mut Command) -> Result<Output, Error> {
    let tool = OsStr::to_string_lossy(command.get_program()).into_owned();
    let output = TOOLS.output(command).map_err(|source| match source.kind() {
        ErrorKind::NotFound => Error::MissingTool { package: package_of(&tool), tool: tool.clone() },
        _ => Error::Io { path: tool.clone().into(), source },
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.trim().is_empty() {
        said = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(SHOWN_LINES)).copied().collect::<Vec<_>>();
    Err(Error::Tool { step: step.to_owned(), status: output.status.to_string(), output: shown.join(" | ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_names_its_package() {
        let error = run("make", &mut Command::new("mkfs.erofs-of-nobody")).unwrap_err();
        assert_eq!(error.category(), "missing-tool");
    }

    #[test]
    fn a_failing_program_shows_its_last_lines() {
        let error = run("count", Command::new("sh").args(["-c", "seq 1 20 >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "count failed (exit status: 3): 15 | 16 | 17 | 18 | 19 | 20");
    }

    #[test]
    fn a_program_that_runs_is_ended_and_no_other_starts() {
        let tools = Tools(Mutex::new(Running { ended: false, tools: BTreeMap::new() }));
        std::thread::scope(|scope| {
            let endless = scope.spawn(|| tools.output(Command::new("sleep").arg("infinity")));
            while tools.running().tools.is_empty() {
                std::thread::yield_now();
            }
            tools.end();
            let output = endless.join().unwrap().unwrap();
            assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(Signal::TERM.as_raw()));
        });
        assert!(tools.running().tools.is_empty());
        let late = tools.output(&mut Command::new("true")).unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Interrupted);
    }
}
