//! What travels, and that nothing is done while nobody looks.

use super::*;
use bascule_api::{LIVE_REPORT_FORMAT, WaitReason};
use serde_json::Value;
use std::sync::atomic::{AtomicUsize, Ordering};

fn report(nodes: usize, message: &str) -> LiveReport {
    let wait = LiveWait { reason: WaitReason::Wave, message: message.to_owned(), object: None, until: None };
    let node = |index: usize| LiveNode {
        name: format!("n{index}"),
        policy: None,
        zone: Some("a".to_owned()),
        state: RolloutState::Waiting,
        wait: 0,
        since: None,
        gates_passed: None,
        drain: None,
        booted: None,
        staged: None,
        percent: None,
    };
    LiveReport {
        format: LIVE_REPORT_FORMAT,
        waits: vec![wait],
        nodes: (0..nodes).map(node).collect(),
        ..LiveReport::default()
    }
}

fn parsed(event: &Bytes) -> (String, Value) {
    let text = std::str::from_utf8(event).unwrap();
    let (name, data) = text.trim_end().split_once("\ndata: ").unwrap();
    (name.trim_start_matches("event: ").to_owned(), serde_json::from_str(data).unwrap())
}

fn change(before: LiveReport, after: LiveReport) -> Option<Value> {
    let mut numbers = Numbers::default();
    let before = Known::new(before, None, &mut numbers);
    Known::new(after, None, &mut numbers).change(&before).map(|event| parsed(&event).1)
}

#[test]
fn only_what_changed_travels() {
    let before = report(5_000, "3 of 40 are done");
    assert_eq!(change(before.clone(), before.clone()), None);

    let mut one = before.clone();
    one.nodes[7].state = RolloutState::Draining;
    let told = change(before.clone(), one).unwrap();
    assert_eq!((told["nodes"].as_array().unwrap().len(), &told["nodes"][0]["name"]), (1, &Value::from("n7")));
    assert!(told.get("head").is_none() && told.get("gone").is_none(), "{told}");

    // The same wait in other words is told once, and not once for each of its nodes.
    let told = change(before.clone(), report(5_000, "4 of 40 are done")).unwrap();
    assert!(told["nodes"].as_array().unwrap().is_empty() && told.to_string().len() < 500, "{told}");
    assert_eq!(told["waits"].as_object().unwrap().values().next().unwrap()["message"], "4 of 40 are done");

    let mut fewer = before.clone();
    fewer.nodes.remove(3);
    assert_eq!(change(before.clone(), fewer).unwrap()["gone"], serde_json::json!(["n3"]));

    let mut paused = before.clone();
    paused.planned_by = "another".to_owned();
    assert_eq!(change(before.clone(), paused).unwrap()["head"]["plannedBy"], "another");

    let mut later = before.clone();
    later.planned_at = Time::new(before.planned_at.get() + chrono::TimeDelta::seconds(60));
    assert!(change(before, later).is_some(), "that somebody still plans is news");
}

#[test]
fn waits_that_differ_in_words_alone_are_told_apart() {
    let wait =
        |message: &str| LiveWait { reason: WaitReason::Wave, message: message.to_owned(), object: None, until: None };
    let mut numbers = Numbers::default();
    let first = numbers.number(&[wait("a"), wait("b")]);
    assert_ne!(first[0], first[1]);
    assert_eq!(numbers.number(&[wait("c"), wait("d")]), first);
}

struct Counting {
    looks: Arc<AtomicUsize>,
    away: bool,
}

impl Source for Counting {
    async fn look(&self, _: Option<u64>) -> Look {
        let looks = self.looks.fetch_add(1, Ordering::SeqCst);
        if self.away {
            return Look::Away("nobody leads".to_owned());
        }
        Look::New { report: Box::new(report(3, &format!("look {looks}"))), stamp: 1, note: None }
    }

    async fn calendar(&self) -> Option<Calendar> {
        Some(Calendar { made_at: Time::default(), policies: Vec::new(), note: None })
    }

    fn pause(&self) -> Duration {
        Duration::from_secs(1)
    }
}

fn board(away: bool) -> (Arc<Board>, Arc<AtomicUsize>, JoinSet<()>) {
    let (board, looks) = (Board::new(), Arc::new(AtomicUsize::new(0)));
    let source = Arc::new(Counting { looks: Arc::clone(&looks), away });
    let mut tasks = JoinSet::new();
    let shared = Arc::clone(&board);
    tasks.spawn(async move { shared.run(source).await });
    (board, looks, tasks)
}

#[tokio::test(start_paused = true)]
async fn nobody_looks_while_nobody_reads() {
    let (board, looks, _tasks) = board(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(looks.load(Ordering::SeqCst), 0);

    let reader = board.reader(1).unwrap();
    assert!(board.reader(1).is_none(), "one more than there is room for");
    let Begin::Fleet(begin, mut changes) = board.begin().await else { panic!("there is a fleet") };
    let mut names: Vec<String> = begin.iter().map(|event| parsed(event).0).collect();
    assert_eq!(names[0], "whole");
    for _ in 0..3 {
        names.push(parsed(&changes.recv().await.unwrap()).0);
    }
    assert!(names.contains(&"calendar".to_owned()) && names.contains(&"change".to_owned()), "{names:?}");

    drop(reader);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let then = looks.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(looks.load(Ordering::SeqCst), then);
    assert!(matches!(*board.lock(), Now::Nothing), "nothing is kept");
}

#[tokio::test(start_paused = true)]
async fn whoever_has_nothing_to_tell_says_why() {
    let (board, _, _tasks) = board(true);
    let _reader = board.reader(1).unwrap();
    let Begin::Away(why) = board.begin().await else { panic!("there is none") };
    assert!(is_away(&why));
    assert_eq!(parsed(&why).1["message"], "nobody leads");
}
