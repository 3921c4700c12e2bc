//! A state folder that does not always answer.

use std::io;
use std::sync::Arc;

use bascule_agent::host::{Host, Space, StateStore};

/// What is done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    Read,
    Write,
}

/// What comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// What the folder itself says.
    Whole,
    /// To a reader there is no such file.
    Absent,
    /// EIO.
    Broken,
}

struct Faulty<F> {
    state: Arc<dyn StateStore>,
    answer: F,
}

/// The host, with a state folder of which `answer` says what becomes of each read and write of a file.
pub(crate) fn with_state_folder(host: Host, answer: impl Fn(&str, Request) -> Answer + Send + Sync + 'static) -> Host {
    Host { state: Arc::new(Faulty { state: host.state.clone(), answer }), ..host }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl<F: Fn(&str, Request) -> Answer + Send + Sync> StateStore for Faulty<F> {
    fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        match (self.answer)(name, Request::Read) {
            Answer::Whole => self.state.read(name, limit),
            Answer::Absent => Ok(None),
            Answer::Broken => Err(eio()),
        }
    }

    fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        match (self.answer)(name, Request::Write) {
            Answer::Whole | Answer::Absent => self.state.write(name, content),
            Answer::Broken => Err(eio()),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state.remove(name)
    }

    fn space(&self) -> io::Result<Space> {
        self.state.space()
    }

    fn lock(&self) -> io::Result<Box<dyn Send>> {
        self.state.lock()
    }
}
