//! What a browser is given, asked for over a real connection.

use super::*;
use crate::{Calendar, Look, serve};
use bascule_api::LiveReport;
use std::time::Instant;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

struct Quiet;

impl Source for Quiet {
    async fn look(&self, since: Option<u64>) -> Look {
        match since {
            Some(_) => Look::Same,
            None => Look::New { report: Box::new(LiveReport::default()), stamp: 1, note: None },
        }
    }

    async fn calendar(&self) -> Option<Calendar> {
        None
    }

    fn pause(&self) -> Duration {
        Duration::from_millis(100)
    }
}

async fn served(below: &str) -> (String, Dashboard, JoinSet<()>) {
    let dashboard = Dashboard::new(Quiet);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(listener, dashboard.router(below)));
    (address.to_string(), dashboard, tasks)
}

async fn ask(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{request} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn every_answer_lets_nothing_in_from_elsewhere() {
    let (address, _dashboard, _tasks) = served("").await;
    for (name, kind, content) in FILES {
        let answer = ask(&address, &format!("GET /{name}")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(kind), "{name}: {answer}");
        assert!(answer.ends_with(content), "{name}");
    }
    for request in ["GET /", "GET /nothing", "POST /events", "GET /page.js"] {
        let answer = ask(&address, request).await.to_ascii_lowercase();
        assert!(
            answer.contains("content-security-policy: default-src 'none'; script-src 'self'"),
            "{request}: {answer}"
        );
        for header in ["x-content-type-options: nosniff", "referrer-policy: no-referrer", "cache-control: no-store"] {
            assert!(answer.contains(header), "{request}: {answer}");
        }
        assert!(!answer.contains("access-control-allow"), "{request}: {answer}");
    }
    assert!(ask(&address, "POST /events").await.starts_with("HTTP/1.1 405"));
}

#[test]
fn the_files_hold_nothing_inline_and_nothing_foreign() {
    for (name, _, content) in FILES {
        for foreign in
            ["http://", "https://", "//cdn", "@import", "innerHTML", "outerHTML", "eval(", "style=", "onclick="]
        {
            let content = content.replace("http://www.w3.org/2000/svg", "");
            assert!(!content.contains(foreign), "{name} holds {foreign}");
        }
    }
    let page = FILES[0].2;
    assert!(!page.contains("<style") && page.matches("<script").count() == 1 && page.contains("<script src="));
}

#[tokio::test]
async fn a_secret_path_is_the_only_one() {
    let (address, _dashboard, _tasks) = served("/secret").await;
    assert!(ask(&address, "GET /secret/").await.starts_with("HTTP/1.1 200"));
    assert!(ask(&address, "GET /secret/page.js").await.starts_with("HTTP/1.1 200"));
    for path in ["/", "/events", "/page.js", "/other/", "/secre/events"] {
        assert!(ask(&address, &format!("GET {path}")).await.starts_with("HTTP/1.1 404"), "{path}");
    }
}

#[tokio::test]
async fn events_begin_at_once_and_no_more_read_than_there_is_room_for() {
    let (address, _dashboard, _tasks) = served("").await;
    let mut streams = Vec::new();
    for _ in 0..READERS {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while !text.contains("event: whole\ndata: {") {
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "{text}");
            text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        assert!(text.contains("text/event-stream") && text.contains("retry: 2000"), "{text}");
        streams.push(stream);
    }
    let refused = ask(&address, "GET /events").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("too many"), "{refused}");
    drop(streams);
    // Whoever leaves makes room, as soon as the next event can't be sent.
    let begun = Instant::now();
    loop {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let mut start = [0; 12];
        stream.read_exact(&mut start).await.unwrap();
        if &start == b"HTTP/1.1 200" {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
