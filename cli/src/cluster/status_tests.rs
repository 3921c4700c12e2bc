use super::*;
use crate::cluster::fixture;

#[test]
fn one_screen_answers_what_and_why() {
    let seen = fixture::seen();
    let shown = text(&seen, None, false, &fixture::page(fixture::TERMINAL));
    assert!(fixture::ON_CALL.contains(&shown), "docs/on-call.md shows something else than:\n{shown}");
    insta::assert_snapshot!("status", shown);
    insta::assert_snapshot!("status-plain-wide", text(&seen, None, true, &fixture::page(Look::PLAIN)));
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

#[test]
fn programs_get_the_same() {
    let seen = fixture::seen();
    let page = fixture::page(Look::PLAIN);
    let answer = serde_json::to_value(answer(&seen, None, &page)).unwrap();
    assert_eq!(answer["policies"][0]["status"]["counts"]["nodes"], 40);
    assert_eq!(answer["policies"][0]["nodes"][2]["reason"], "DisruptionBudget");
    assert_eq!((answer["source"]["from"].as_str(), answer["freezes"].as_array().unwrap().len()), (Some("leader"), 1));
}
