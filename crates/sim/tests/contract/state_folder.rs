//! The state folder under power cuts: the system calls that the real one is held to, played over a file system that keeps a journal of
//! names and nothing else in order.

use std::collections::BTreeMap;

use bascule_agent::linux::StateFolder;
use bascule_sim::disk::Disk;
use bascule_sim::host::SimState;

use crate::walk::{self, JOURNAL, JOURNALS, content};

/// The name of what is not written to its end.
pub(crate) const UNFINISHED: &str = ".journal.json.new";

/// What replaces a file, and what removes it, durably: the content before the name, the folder before it is said to be done.
pub(crate) const CALLS: [&[&str]; 3] = [REPLACE, REPLACE, &["unlink journal.json", "fsync ."]];
const REPLACE: &[&str] =
    &["write .journal.json.new", "fsync .journal.json.new", "rename .journal.json.new journal.json", "fsync ."];

/// A file's content, and whether it was flushed.
#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    flushed: bool,
}

/// A change of names that is not durable.
#[derive(Clone, Copy, Debug)]
enum Change<'c> {
    Made(&'c str, usize),
    Moved(&'c str, &'c str),
    Gone(&'c str),
}

type Names<'c> = BTreeMap<&'c str, usize>;

fn after<'c>(mut names: Names<'c>, changes: &[Change<'c>]) -> Names<'c> {
    for change in changes {
        match *change {
            Change::Made(name, file) => _ = names.insert(name, file),
            Change::Moved(from, to) => {
                let file = names.remove(from).unwrap();
                names.insert(to, file);
            }
            Change::Gone(name) => _ = names.remove(name),
        }
    }
    names
}

/// A folder, and what of it is durable: names up to some change in their order, and what was flushed of each file.
#[derive(Clone, Debug, Default)]
struct Folder<'c> {
    names: Names<'c>,
    changes: Vec<Change<'c>>,
    files: Vec<Content>,
}

impl<'c> Folder<'c> {
    fn call(&mut self, call: &'c str, writes: &[u8]) {
        let words: Vec<&'c str> = call.split(' ').collect();
        let seen = after(self.names.clone(), &self.changes);
        match words[..] {
            ["write", name] => {
                let content = Content { bytes: writes.to_vec(), flushed: false };
                match seen.get(name) {
                    // What is left of an earlier one is emptied first.
                    Some(file) => self.files[*file] = content,
                    None => {
                        self.changes.push(Change::Made(name, self.files.len()));
                        self.files.push(content);
                    }
                }
            }
            ["rename", from, to] => self.changes.push(Change::Moved(from, to)),
            ["unlink", name] => self.changes.push(Change::Gone(name)),
            ["fsync", "."] => {
                self.names = seen;
                self.changes.clear();
            }
            ["fsync", name] => self.files[seen[name]].flushed = true,
            _ => panic!("{call} is not played"),
        }
    }

    /// All that a power cut may leave of the journal.
    fn left(&self) -> Vec<Option<Vec<u8>>> {
        let names = (0..=self.changes.len()).map(|made| after(self.names.clone(), &self.changes[..made]));
        let contents = names.flat_map(|names| match names.get(JOURNAL).map(|file| &self.files[*file]) {
            None => vec![None],
            Some(Content { bytes, flushed: true }) => vec![Some(bytes.clone())],
            Some(Content { bytes, flushed: false }) => {
                [0, bytes.len() / 2, bytes.len()].map(|length| Some(bytes[..length].to_vec())).to_vec()
            }
        });
        contents.collect()
    }
}

/// Plays the calls: at each moment the journal is what it was or what it becomes, and when the last call of a change has returned it is
/// what it became. How many states a power cut may leave were looked at.
fn journal_outlives_every_cut<'c>(mut folder: Folder<'c>, calls: &[Vec<&'c str>]) -> Result<usize, String> {
    let becomes = JOURNALS.map(|(seed, length)| Some(content(seed, length))).into_iter().chain([None]);
    let (mut was, mut looked) = (None, 0);
    for (change, becomes) in calls.iter().zip(becomes) {
        for (number, call) in change.iter().copied().enumerate() {
            folder.call(call, becomes.as_deref().unwrap_or_default());
            let is_done = number + 1 == change.len();
            for left in folder.left() {
                if left != becomes && (is_done || left != was) {
                    let length = left.map(|bytes| bytes.len());
                    return Err(format!("a journal of {length:?} bytes may be left after {call} ({change:?})"));
                }
                looked += 1;
            }
        }
        was = becomes;
    }
    Ok(looked)
}

#[test]
fn the_journal_outlives_every_cut_and_not_without_any_one_of_its_flushes() {
    let calls = CALLS.map(<[&str]>::to_vec).to_vec();
    let left_over = Folder {
        names: BTreeMap::from([(UNFINISHED, 0)]),
        files: vec![Content { bytes: content(8, 5000), flushed: true }],
        ..Folder::default()
    };
    for folder in [Folder::default(), left_over] {
        let looked = journal_outlives_every_cut(folder.clone(), &calls).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert!(looked > 10, "{looked}");
        for (change, calls_of_it) in calls.iter().enumerate() {
            for at in (0..calls_of_it.len()).filter(|at| calls_of_it[*at].starts_with("fsync")) {
                let mut fewer = calls.clone();
                let left_out = fewer[change].remove(at);
                let found = journal_outlives_every_cut(folder.clone(), &fewer);
                assert!(found.is_err(), "nothing noticed that change {change} left out {left_out}: {found:?}");
            }
        }
    }
}

/// The simulated one has no state between the old and the new content: all that a cut may leave of the real one is one of them.
#[test]
fn the_simulated_state_folder_gives_the_answers_of_the_real_one() {
    let folder = tempfile::tempdir().unwrap();
    let real = walk::state(&StateFolder::create(folder.path()).unwrap());
    assert!(real.iter().all(|(_, answer)| answer.is_ok()), "{real:#?}");
    assert_eq!(walk::state(&SimState::new(Disk::in_memory(1 << 20))), real);
}
