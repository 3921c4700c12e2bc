//! The dashboard in headless Chromium: the page and the server that are shipped, and a fleet that the test changes.
//!
//! `BASCULE_PICTURES=FOLDER` makes the pictures of docs/dashboard.md on the way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    missing_debug_implementations,
    reason = "tests and their helpers"
)]

mod chromium;
mod fleet;

use bascule_api::RolloutState;
use bascule_dashboard::Dashboard;
use chromium::Page;
use fleet::{MARKUP, Stage, fleet, reboots, without_markup};
use serde_json::json;
use std::path::PathBuf;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

struct Served {
    stage: Stage,
    address: String,
    _dashboard: Dashboard,
    _serving: JoinSet<()>,
}

async fn served() -> Served {
    let stage = Stage::default();
    let dashboard = Dashboard::new(stage.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}/secret/", listener.local_addr().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(bascule_dashboard::serve(listener, dashboard.router("/secret")));
    Served { stage, address, _dashboard: dashboard, _serving: serving }
}

fn pictures() -> Option<PathBuf> {
    std::env::var_os("BASCULE_PICTURES")
        .map(|folder| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(folder))
}

const DRAWN: &str = "document.body.dataset.drawn !== undefined";

/// The contrast of each text with what lies behind it, least first (WCAG 2.2, 1.4.3).
const CONTRAST: &str = r#"(() => {
  const parse = text => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  let least = [99, ""];
  for (const element of document.querySelectorAll("h1,h2,h3,p,a,td,th,li,dt,dd,button,label,input,select,time")) {
    if (!element.textContent.trim() || !element.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < least[0]) least = [contrast, element.outerHTML.slice(0, 80)];
  }
  return least;
})()"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_reads_it_without_a_mouse_in_light_and_dark() {
    let served = served().await;
    let first = fleet(40);
    served.stage.show(first.clone());
    let mut page = Page::open(1280, 900).await;
    page.go(&served.address).await;
    page.until(DRAWN).await;
    page.until("document.querySelectorAll('#calendar tbody tr').length > 0").await;

    // What it shows.
    for (place, part) in [
        ("#source", "Live from bascule-operator-5d9f"),
        ("#notices", "Frozen policy control (freeze-x7k2 by alice): checkout incident INC-4711"),
        ("#notices", "41.3.0 failed here"),
        ("#notices", "hook unset-noout failed"),
        ("#policies", "2 of 3, early (4 of 8)"),
        // Of 38 nine are up to date and one is on trial with the release.
        ("#policies", "Up to date9 of 38"),
        ("#policies", "Exposed28 nodes without 41.3.0"),
        ("#policies", "Up to date2 of 2"),
        ("#policies", "without 41.3.0 (severity High), published 3d"),
        ("#fleet", "eu-central-1b"),
        ("#moving", "12 of 14 pods gone"),
        ("#moving", "61 %"),
        ("#waiting", "PodDisruptionBudget shop/checkout"),
        ("#waiting", MARKUP),
        ("#calendar", "22:00 Europe/Berlin"),
        ("#calendar", "Without windows, always open: control."),
        ("#history", "rollout of 41.2.0"),
        ("#history", "ended by bob"),
        ("#nodes", "node-0039.eu-central-1.compute.internal"),
    ] {
        let shown = page.ask(&format!("document.querySelector('{place}').textContent")).await;
        assert!(shown.as_str().unwrap().contains(part), "{place} lacks {part}: {shown}");
    }
    assert_eq!(page.ask("document.querySelector('#notices').textContent.includes('freeze-b1c2')").await, json!(false));
    assert_eq!(page.ask("window.hurt ?? 'unhurt'").await, json!("unhurt"));

    // What is heard: headings, tables with heads, names for everything that is asked for.
    let heard = page.heard().await;
    let all = |role: &str| heard.iter().filter(|one| one.0 == role).map(|one| one.1.as_str()).collect::<Vec<_>>();
    for heading in ["Bascule", "Policies", "In progress", "Waiting, and why", "History", "Nodes"] {
        assert!(all("heading").contains(&heading), "{heading}: {heard:?}");
    }
    assert!(all("columnheader").len() > 20 && all("rowheader").len() > 40, "{heard:?}");
    assert!(all("button").contains(&"Show the nodes that wait for Wave"), "{:?}", all("button"));
    for role in ["button", "link", "searchbox", "combobox", "progressbar", "region", "navigation", "table"] {
        let names = all(role);
        assert!(!names.is_empty() || role == "table", "nothing is a {role}");
        assert!(role == "table" || names.iter().all(|name| !name.is_empty()), "a {role} has no name: {heard:?}");
    }
    assert!(all("progressbar").iter().any(|name| name.contains("of 38 nodes are up to date")), "{heard:?}");
    assert!(!heard.iter().any(|one| one.0 == "Canvas"), "the map is for eyes alone");

    // Without a mouse: the first step skips what is on every page, and everything can be reached.
    page.press("Tab").await;
    assert_eq!(page.ask("document.activeElement.className").await, json!("skip"));
    let mut reached = Vec::new();
    for _ in 0..80 {
        let name = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.id + document.activeElement.textContent.slice(0, 40)";
        reached.push(page.ask(name).await.as_str().unwrap().to_owned());
        if reached.last().unwrap() == "Show the nodes that wait for Wave" {
            break;
        }
        page.press("Tab").await;
    }
    assert_eq!(reached.last().unwrap(), "Show the nodes that wait for Wave", "{reached:?}");
    page.press("Enter").await;
    page.until("document.activeElement.id === 'nodes-title'").await;
    page.until("document.querySelector('#found').textContent.includes('that wait for Wave')").await;

    // Whoever reads is not thrown out by what changes meanwhile.
    page.ask("document.querySelector('[data-reason=Wave]').focus()").await;
    let mut next = first;
    reboots(&mut next, 5);
    served.stage.show(next.clone());
    page.until("document.querySelector('#moving').textContent.includes('rebooting')").await;
    assert_eq!(page.ask("document.activeElement.dataset.reason").await, json!("Wave"));
    page.ask("document.querySelector('#filter').reset()").await;
    page.ask("document.activeElement.blur()").await;

    // In both schemes texts can be read. Pictures are of a fleet that could be somebody's.
    served.stage.show(without_markup(next));
    page.until("!document.querySelector('#waiting').textContent.includes('<script>')").await;
    page.ask("window.scrollTo(0, 0)").await;
    for scheme in ["light", "dark"] {
        page.scheme(scheme).await;
        let least = page.ask(CONTRAST).await;
        assert!(least[0].as_f64().unwrap() >= 4.5, "{scheme}: {least}");
        if let Some(folder) = pictures() {
            page.resize(1280, if scheme == "light" { 2_000 } else { 900 }).await;
            page.picture(&folder, &format!("dashboard-{scheme}")).await;
        }
    }
    // On a narrow screen nothing is cut off but what scrolls by itself.
    page.resize(400, 900).await;
    page.until("document.documentElement.scrollWidth <= 400").await;
    assert!(page.complaints().is_empty(), "{:?}", page.complaints());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_nodes_are_there_at_once_and_then_only_changes_travel() {
    const NODES: usize = 5_000;
    let served = served().await;
    let first = fleet(NODES);
    served.stage.show(first.clone());
    let mut page = Page::open(1280, 1000).await;
    // The first time a browser does anything it is slow: that is not the page's.
    page.go(&served.address).await;
    page.until(DRAWN).await;
    page.go("about:blank").await;
    page.until("location.href === 'about:blank'").await;
    page.events.clear();
    page.go(&served.address).await;
    page.until("document.querySelectorAll('#nodes tbody tr').length === 100").await;
    // From the navigation until the fleet is drawn.
    let drawn = page.ask("performance.getEntriesByName('drawn')[0].startTime").await.as_f64().unwrap();
    let paint = page.ask("performance.getEntriesByName('first-contentful-paint')[0].startTime").await;
    println!(
        "{NODES} nodes: first paint after {} ms, the whole fleet after {drawn:.0} ms",
        paint.as_f64().unwrap().round()
    );
    // On a busy machine and unoptimised; docs/benchmarks.md has what a test build took, and nothing of what is shipped.
    assert!(drawn < 10_000.0, "{drawn} ms");
    let sent = |page: &Page, name: &str| {
        let of = page.events.iter().filter(|event| event["method"] == "Network.eventSourceMessageReceived");
        let of = of.filter(|event| event["params"]["eventName"] == name);
        of.map(|event| event["params"]["data"].as_str().unwrap().len()).collect::<Vec<_>>()
    };
    let whole = sent(&page, "whole");
    assert!(whole.len() == 1 && whole[0] < 2_000_000, "{whole:?}");
    if let Some(folder) = pictures() {
        served.stage.show(without_markup(first.clone()));
        page.until("document.querySelectorAll('#calendar tbody tr').length > 0").await;
        page.until("!document.querySelector('#waiting').textContent.includes('<script>')").await;
        page.picture(&folder, "dashboard-5000").await;
    }

    let mut next = first;
    next.nodes[4_999].state = RolloutState::Draining;
    next.waits[1].message = "wave rest waits for wave early, of which 5 of 8 are done".to_owned();
    served.stage.show(next);
    page.until("document.querySelector('#waiting').textContent.includes('5 of 8 are done')").await;
    page.until("document.querySelector('#moving').textContent.includes('node-4999')").await;
    let changes = sent(&page, "change");
    println!("{NODES} nodes: {} bytes at first, then {changes:?}", whole[0]);
    assert!(!changes.is_empty() && changes.iter().sum::<usize>() < 2_000 && sent(&page, "whole").len() == 1);

    // Somebody looks for one of them.
    page.ask("(() => { const text = document.querySelector('#text'); text.value = 'node-4998'; text.dispatchEvent(new Event('input')); })()").await;
    page.until("document.querySelectorAll('#nodes tbody tr').length === 1").await;
    assert!(page.complaints().is_empty(), "{:?}", page.complaints());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_says_when_it_is_old_and_comes_back_by_itself_and_lets_nothing_in() {
    let served = served().await;
    let mut page = Page::open(1000, 700).await;
    page.go(&served.address).await;
    page.until("document.querySelector('#source').textContent.includes('the other does. Trying again')").await;
    served.stage.show(fleet(40));
    page.until("document.querySelector('#source').textContent.startsWith('Live from')").await;
    served.stage.hide();
    page.until("document.querySelector('#source').className === 'bad'").await;
    served.stage.show(fleet(41));
    page.until("document.querySelector('#source').textContent.startsWith('Live from')").await;
    page.until("document.querySelectorAll('#nodes tbody tr').length === 41").await;
    assert!(page.complaints().is_empty(), "{:?}", page.complaints());

    // Whatever gets into the page: it is not carried out, and nothing is fetched or sent elsewhere.
    let tried = r#"new Promise(done => {
      const refused = [];
      addEventListener("securitypolicyviolation", event => refused.push(event.effectiveDirective));
      try { document.body.innerHTML = "<b>x</b>"; } catch { refused.push("markup"); }
      const script = document.createElement("script");
      try { script.text = "window.hurt = 1"; document.body.append(script); } catch { refused.push("script"); }
      const image = new Image(); image.src = "http://127.0.0.1:9/x.png"; document.body.append(image);
      fetch("http://127.0.0.1:9/").catch(() => {});
      const style = document.createElement("style"); style.textContent = "body { color: red }"; document.body.append(style);
      setTimeout(() => done([window.hurt ?? "unhurt", refused.sort().join()]), 500);
    })"#;
    let told = page.ask(tried).await;
    assert_eq!(told[0], json!("unhurt"));
    for refused in ["connect-src", "img-src", "markup", "script", "style-src-elem"] {
        assert!(told[1].as_str().unwrap().contains(refused), "{refused}: {told}");
    }
}
