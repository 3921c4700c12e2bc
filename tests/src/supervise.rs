//! Processes and folders that end with us, also when we are killed.
//!
//! A test that is killed with SIGKILL runs no destructor, so something outside of it has to clean up. Every process
//! is started below a small shell that holds the read end of a pipe: the kernel closes the write end when we end in
//! whatever way, and the shell then kills what it started. `PR_SET_PDEATHSIG` is not used: it fires when the *thread*
//! that started the child ends, and test runners and tokio end threads at will (prctl(2)).

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

use rustix::process::{Pid, Signal};

/// Starts `"$@"`, prints its process id, and kills it when standard input ends. Ends with the exit code of what it
/// started (128 + n after signal n, as shells do).
const SUPERVISOR: &str = r#"
exec 3<&0
"$@" </dev/null 3<&- >&2 &
pid=$!
echo "$pid"
exec >&-
{ read -r _ <&3; kill -KILL "$pid" 2>/dev/null; } &
watcher=$!
exec 3<&-
wait "$pid"
code=$?
kill "$watcher" 2>/dev/null
exit "$code"
"#;

/// Removes the folder `$1` when standard input ends. The processes that write into it are killed at the same moment
/// by their own supervisors, so a file may still appear once or twice.
const REMOVER: &str = r#"
read -r _
for _ in $(seq 100); do
    rm -rf "$1" && exit 0
    sleep 0.1
done
exit 1
"#;

/// A process that could not be started or did not live up to its promise.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The shell, the log file or the program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// What was to run.
        program: String,
        /// Why the system refused.
        #[source]
        source: std::io::Error,
    },
    /// A folder for a process could not be made.
    #[error("cannot make the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why the system refused.
        #[source]
        source: std::io::Error,
    },
    /// A signal could not be sent.
    #[error("cannot send a signal to {program}")]
    Signal {
        /// What was to receive it.
        program: String,
        /// Why the system refused.
        #[source]
        source: rustix::io::Errno,
    },
    /// Waiting for the end failed.
    #[error("cannot wait for {program}")]
    Wait {
        /// What was waited for.
        program: String,
        /// Why the system refused.
        #[source]
        source: std::io::Error,
    },
}

/// One supervised process. Dropping it kills the process and waits until it is gone.
#[derive(Debug)]
pub struct Supervised {
    program: String,
    log: PathBuf,
    pid: Pid,
    shell: std::process::Child,
    lifeline: Option<ChildStdin>,
}

impl Supervised {
    /// Starts `program` with `args`; its output is appended to `log`. It runs in a process group of its own, so that
    /// a Ctrl-C at the terminal reaches only us and the order of the end is ours to choose.
    ///
    /// # Errors
    /// When the log can't be opened or the shell can't be started. A program that does not exist ends at once with
    /// code 127 and says so in its log, as under any shell.
    pub fn start<A: AsRef<OsStr>>(
        program: &Path,
        args: impl IntoIterator<Item = A>,
        environment: &[(String, String)],
        log: &Path,
    ) -> Result<Self, ProcessError> {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        let failed = |source| ProcessError::Start { program: name.clone(), source };
        let output = OpenOptions::new().create(true).append(true).open(log).map_err(failed)?;
        let mut shell = Command::new("sh")
            .arg("-c")
            .arg(SUPERVISOR)
            .arg("sh")
            .arg(program)
            .args(args)
            .envs(environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(output)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let lifeline = shell.stdin.take();
        let mut line = String::new();
        if let Some(stdout) = shell.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
        }
        let pid = line.trim().parse().ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| failed(std::io::Error::other("the supervising shell gave no process id")))?;
        Ok(Self { program: name, log: log.to_owned(), pid, shell, lifeline })
    }

    /// The process id of the program itself, not of its supervisor.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// The program's file name.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its output, for messages about why it ended.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }

    /// The exit code if it has ended (128 + n after signal n).
    ///
    /// # Errors
    /// When the system can't say.
    pub fn ended(&mut self) -> Result<Option<i32>, ProcessError> {
        let status =
            self.shell.try_wait().map_err(|source| ProcessError::Wait { program: self.program.clone(), source })?;
        Ok(status.map(|status| status.code().unwrap_or(128)))
    }

    /// Ends it at once, as a power cut or the kernel's out-of-memory killer would, and waits until it is gone.
    ///
    /// # Errors
    /// When the system can't say that it is gone.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        drop(self.lifeline.take());
        self.shell.wait().map_err(|source| ProcessError::Wait { program: self.program.clone(), source })?;
        Ok(())
    }

    /// Asks it to end (SIGTERM) and does not wait.
    ///
    /// # Errors
    /// When the signal can't be sent; a process that has ended already is no error.
    pub fn terminate(&self) -> Result<(), ProcessError> {
        match rustix::process::kill_process(self.pid, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(source) => Err(ProcessError::Signal { program: self.program.clone(), source }),
        }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(program = self.program, %error, "a supervised process may still run");
        }
    }
}

/// A new folder below the system's temporary one, removed when this is dropped and also when we are killed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    remover: std::process::Child,
    lifeline: Option<ChildStdin>,
}

impl Scratch {
    /// Makes the folder; `name` only helps a person who looks at it. Readable by its owner alone.
    ///
    /// # Errors
    /// When the folder or its remover can't be made.
    pub fn new(name: &str) -> Result<Self, ProcessError> {
        let place = std::env::temp_dir();
        let failed = |source| ProcessError::Folder { path: place.join(name), source };
        let path = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(&place).map_err(failed)?.keep();
        let mut remover = Command::new("sh")
            .args(["-c", REMOVER, "sh"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let lifeline = remover.stdin.take();
        Ok(Self { path, remover, lifeline })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        if !self.remover.wait().is_ok_and(|status| status.success()) {
            tracing::warn!(folder = %self.path.display(), "a temporary folder could not be removed");
        }
    }
}
