use super::*;
use crate::cluster::fixture;

#[test]
fn one_screen_answers_what_and_why() {
    let seen = fixture::seen();
    let shown = text(&seen, None, false, &fixture::page(fixture::TERMINAL));
    assert!(fixture::PAGE.contains(&shown), "docs/cli.md shows something else than:\n{shown}");
    insta::assert_snapshot!("status", shown);
    insta::assert_snapshot!("status-plain-wide", text(&seen, None, true, &fixture::page(Look::PLAIN)));
    insta::assert_snapshot!("status-json", fixture::json(&answer(&seen, None, &fixture::page(Look::PLAIN))));
}

/// The words at the beginning of the lines of a status.
fn labels(shown: &str) -> BTreeSet<&str> {
    let lines = shown.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    lines.map(|line| line.trim_start().split("  ").next().unwrap()).collect()
}

/// The page that people learn from was made by a program that said the same words.
#[test]
fn the_sandboxs_transcript_is_what_is_said_today() {
    let typed: Vec<&str> = fixture::sandbox_typed().iter().map(|(line, _)| line.split(' ').next().unwrap()).collect();
    assert_eq!(typed, ["status", "explain", "freeze", "rollback"]);
    let read = fixture::sandbox_read("status");
    let mut seen = fixture::seen();
    seen.report.freezes.clear();
    seen.report.policies[0].status.wave.as_mut().unwrap().soak_until = Some(fixture::ago(-30));
    seen.report.policies[0].status.blocked = serde_json::from_value(serde_json::json!([
        {"version": "41.2.9", "at": "2026-11-20T00:00:00Z", "by": "FailureThreshold", "reason": "it failed on 1 node"}
    ]))
    .unwrap();
    let today = text(&seen, None, false, &fixture::page(fixture::SANDBOX));
    let (before, now) = (labels(read), labels(&today));
    assert!(before.is_subset(&now), "docs/on-call.md has {before:?}, which are {now:?} today");
    assert!(before.contains("in progress") && before.contains("waiting"), "no rollout is under way: {read}");
    let waiting = read.lines().find_map(|line| line.strip_prefix("  waiting      ")).unwrap();
    for part in waiting.split(" · ") {
        let reason = part.split(' ').nth(1).unwrap();
        assert!(WaitReason::ALL.iter().any(|known| known.as_str() == reason), "{reason} is no reason today");
    }
    let head = read.lines().next().unwrap();
    for part in ["workers  ", " → ", "█", "░", "   wave ", "   budget "] {
        assert!(head.contains(part) && today.contains(part), "{part} is missing: {head}");
    }
}

#[test]
fn a_rollback_under_way_is_seen_and_one_that_is_done_or_refused_is_not() {
    let mut seen = fixture::seen();
    let refused = serde_json::json!({"type": "Accepted", "status": "False", "reason": "Invalid", "message": "",
        "lastTransitionTime": "2026-11-20T00:00:00Z"});
    let rollback = |name: &str, status: serde_json::Value| {
        serde_json::json!({"name": name, "createdAt": "2026-11-23T21:30:00Z", "status": status,
            "spec": {"policy": "workers", "reason": "breaks NIC offload", "requestedBy": "alice"}})
    };
    seen.report.rollbacks = serde_json::from_value(serde_json::json!([
        rollback("rollback-a", serde_json::json!({"to": "41.2.0", "progress": "7/12"})),
        rollback("rollback-b", serde_json::json!({"completedAt": "2026-11-23T21:40:00Z"})),
        rollback("rollback-c", serde_json::json!({"conditions": [refused]})),
    ]))
    .unwrap();
    let page = fixture::page(Look::PLAIN);
    let shown = text(&seen, None, false, &page);
    let lines: Vec<&str> = shown.lines().filter(|line| line.contains("ROLLING BACK")).collect();
    assert_eq!(lines, ["ROLLING BACK workers to 41.2.0  7/12 (rollback-a by alice): breaks NIC offload"]);
    assert!(!text(&seen, Some("control"), false, &page).contains("ROLLING BACK"));
    let read = serde_json::to_value(answer(&seen, None, &page)).unwrap();
    assert_eq!((read["rollbacks"].as_array().unwrap().len(), &read["rollbacks"][0]["name"]), (1, &"rollback-a".into()));
}

#[test]
fn five_hundred_moving_nodes_are_still_one_screen() {
    let shown = text(&fixture::crowd(), None, false, &fixture::page(fixture::TERMINAL));
    assert!(shown.lines().count() < 24, "{shown}");
    insta::assert_snapshot!("status-crowd", shown);
}

#[test]
fn what_is_not_live_says_so_and_why() {
    let mut seen = fixture::seen();
    seen.source =
        Source::Objects { why: "no operator leads at the moment".into(), written_at: Some(fixture::ago(242)) };
    seen.report.policies[0].forecast = None;
    insta::assert_snapshot!(
        "status-from-objects",
        text(&seen, Some("workers"), false, &fixture::page(fixture::TERMINAL))
    );
}

/// A line that is missing would be read as a fleet that is done.
#[test]
fn why_there_is_no_forecast_is_said_with_what_makes_one() {
    let line = |seen: &Seen| {
        let shown = text(seen, None, false, &fixture::page(Look::PLAIN));
        shown.lines().find_map(|line| line.strip_prefix("  forecast     ")).map(str::to_owned)
    };
    let mut small = fixture::seen();
    small.report.policies[0].forecast = None;
    assert_eq!(line(&small).unwrap(), "not made yet, or too many steps lie ahead: bascule forecast workers");
    let mut large = fixture::crowd();
    assert!(large.report.nodes.len() > FORESEEN_NODES);
    large.report.policies[0].forecast = None;
    assert_eq!(line(&large).unwrap(), "the operator makes none for more than 1000 nodes: bascule forecast workers");
    large.report.policies[0].forecast = Some(LiveForecast { in_window: Some(0), done_at: None });
    assert!(line(&large).unwrap().starts_with("0 more nodes in this window, the end is not foreseen: it waits for"));
    let counts = &mut small.report.policies[0].status.counts;
    counts.updated = counts.nodes;
    assert_eq!(line(&small), None, "all are done");
}

#[test]
fn programs_get_the_same() {
    let seen = fixture::seen();
    let page = fixture::page(Look::PLAIN);
    let answer = serde_json::to_value(answer(&seen, None, &page)).unwrap();
    assert_eq!(answer["policies"][0]["status"]["counts"]["nodes"], 40);
    assert_eq!(answer["policies"][0]["nodes"][2]["reason"], "DisruptionBudget");
    assert_eq!((answer["source"]["from"].as_str(), answer["freezes"].as_array().unwrap().len()), (Some("leader"), 1));
}
