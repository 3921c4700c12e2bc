//! docs/invariants.md names the tests that hold each invariant, docs/security.md those that hold each boundary, docs/testing.md
//! those of each level. A name that leads nowhere would be a promise that nobody keeps, so each must be a test of its package.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "helpers of tests are not `#[test]` functions themselves"
)]

#[path = "invariants/pages.rs"]
mod pages;

use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// A test as the page names it: a package, a module, a function.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    package: Option<String>,
    module: String,
    function: String,
}

/// The tests named in a page: code spans with `::`, with or without a package before.
fn named(page: &str) -> Vec<Named> {
    let spans = page.split('`').skip(1).step_by(2);
    let paths = spans.filter(|span| span.contains("::") && !span.contains(['{', '(', '<']));
    paths
        .filter_map(|span| {
            let (package, path) = match span.split_once(char::is_whitespace) {
                Some((package, path)) => (Some(package.to_owned()), path.trim()),
                None => (None, span),
            };
            let (module, rest) = path.split_once("::")?;
            let function = rest.rsplit("::").next()?.to_owned();
            Some(Named { package, module: module.to_owned(), function })
        })
        // Names of the code itself, not of tests.
        .filter(|named| !named.module.starts_with("bascule_"))
        .collect()
}

/// Every Rust source below a folder, without what is built.
fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target" && name != ".git") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source");
            found.push((path, text));
        }
    }
}

/// Where a package lies.
fn folder(package: &str) -> &'static str {
    match package {
        "bascule-agent" => "node-agent/",
        "bascule-agent-core" => "crates/agent-core/",
        "bascule-agent-settings" => "crates/agent-settings/",
        "bascule-sim" => "crates/sim/",
        "bascule-planner" => "crates/planner/",
        "bascule-repository" => "crates/repository/",
        "bascule-image" => "crates/image/",
        "bascule-release" => "crates/release/",
        "bascule-gpt" => "crates/gpt/",
        "bascule-disk" => "crates/disk/",
        "bascule-facts" => "crates/facts/",
        "bascule-names" => "crates/names/",
        "bascule-fuzz-checks" => "crates/fuzz-checks/",
        "bascule-secure-boot" => "crates/secure-boot/",
        "bascule-api" => "crates/api/",
        "bascule-cli" => "cli/",
        "bascule-dashboard" => "crates/dashboard/",
        "bascule-operator" => "operator/",
        "bascule-os-image" => "tests/os-image/",
        "bascule-boot-tests" => "tests/boot/",
        "bascule-kubeconfig" => "crates/kubeconfig/",
        "bascule-tests" => "tests/",
        "xtask" => "xtask/",
        other => panic!("a page names the package {other}, which this test does not know"),
    }
}

/// Whether `function` is a test in this source: an attribute that ends in `test` or begins with `tokio::test` before it.
fn is_test(text: &str, function: &str) -> bool {
    let Some(at) = [format!("fn {function}("), format!("fn {function}<")].iter().find_map(|name| text.find(name))
    else {
        return false;
    };
    // What indents the function is no empty line.
    let before = text.get(..at).unwrap_or_default().trim_end_matches(' ');
    let attributes = before.lines().rev().take_while(|line| !line.trim().is_empty() && line.trim() != "}");
    attributes.take(6).any(|line| line.trim_start().starts_with("#[") && line.contains("test"))
        // Property tests are functions of a macro.
        || before.contains("proptest! {")
}

#[test]
fn every_test_that_is_named_exists() {
    let read = |page: &str| std::fs::read_to_string(format!("{ROOT}/docs/{page}")).expect("a page");
    let (mut found, security) = (named(&read("invariants.md")), named(&read("security.md")));
    assert!(found.len() > 40, "only {} names were found: the page or this test changed", found.len());
    assert!(security.len() > 8, "only {} names were found: the page or this test changed", security.len());
    found.extend(security);
    let levels = named(&read("testing.md"));
    assert!(levels.len() > 40, "only {} names were found: the page or this test changed", levels.len());
    found.extend(levels);
    let named = found;
    let mut all = Vec::new();
    sources(Path::new(ROOT), &mut all);
    let missing: Vec<&Named> = named
        .iter()
        .filter(|named| {
            let place = named.package.as_deref().map_or("", folder);
            !all.iter().any(|(path, text)| {
                let path = path.strip_prefix(ROOT).unwrap_or(path).with_extension("").display().to_string();
                let path = path.trim_start_matches('/');
                // A module's tests may lie in a file beside it.
                let in_module = path.split('/').any(|part| part.strip_suffix("_tests").unwrap_or(part) == named.module);
                path.starts_with(place) && in_module && is_test(text, &named.function)
            })
        })
        .collect();
    assert!(missing.is_empty(), "the pages name tests that do not exist: {missing:#?}");
}

/// A rule that no test leaves out is one that nobody would miss.
#[test]
fn each_safeguard_of_the_agent_is_left_out_by_some_test() {
    let mut all = Vec::new();
    sources(Path::new(ROOT), &mut all);
    let core = std::fs::read_to_string(format!("{ROOT}/crates/agent-core/src/boot/mod.rs")).expect("a source");
    let (_, rest) = core.split_once("pub enum Safeguard {").expect("the safeguards");
    let (variants, _) = rest.split_once("\n}").expect("their end");
    let lines = variants.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let variants: Vec<&str> = lines.filter_map(|line| line.strip_suffix(',')).collect();
    assert!(variants.len() > 5, "only {variants:?} were found: the enumeration or this test changed");
    let missed = |variant: &&str| {
        let name = format!("Safeguard::{variant}");
        let in_tests = |path: &Path| path.components().any(|part| part.as_os_str() == "tests");
        !all.iter().any(|(path, text)| in_tests(path.strip_prefix(ROOT).unwrap_or(path)) && text.contains(&name))
    };
    let missed: Vec<&str> = variants.into_iter().filter(missed).collect();
    assert!(missed.is_empty(), "no test leaves these out: {missed:?}");
}

/// Pages that are for whoever judges or changes Bascule. All others are for those who use it.
const OF_TESTS: [&str; 5] = ["invariants.md", "security.md", "testing.md", "boot-tests.md", "fuzzing.md"];

/// Pages of those for users that say how figures, or the answers of a suite, are had.
const WITH_TESTS_TO_RUN: [&str; 2] = ["benchmarks.md", "tuf.md"];

#[test]
fn pages_lead_to_the_glossary_and_those_for_users_name_no_tests() {
    let mut all = Vec::new();
    sources(Path::new(ROOT), &mut all);
    for page in ["CONTRIBUTING.md", "SECURITY.md", "README.md"] {
        let text = std::fs::read_to_string(format!("{ROOT}/{page}")).expect("a page");
        assert!(text.contains("(docs/glossary.md"), "{page} does not lead to the glossary");
    }
    for folder in ["runbooks", "decisions"] {
        for entry in std::fs::read_dir(format!("{ROOT}/docs/{folder}")).expect("a folder of pages") {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("a page");
            assert!(text.contains("(../glossary.md"), "{} does not lead to the glossary", path.display());
            let of_tests = folder == "runbooks" && text.contains("tests/");
            assert!(!of_tests, "{} names tests, of which nobody on call needs to know", path.display());
        }
    }
    for entry in std::fs::read_dir(format!("{ROOT}/docs")).expect("the pages") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() {
            continue;
        }
        let page = std::fs::read_to_string(&path).expect("a page");
        assert!(name == "glossary.md" || page.contains("(glossary.md"), "docs/{name} does not lead to the glossary");
        if OF_TESTS.contains(&name.as_str()) {
            continue;
        }
        let named = named(&page);
        let tests: Vec<&Named> =
            named.iter().filter(|named| all.iter().any(|(_, text)| is_test(text, &named.function))).collect();
        assert!(tests.is_empty(), "docs/{name} names tests, which belong into docs/invariants.md: {tests:#?}");
        let runs = page.contains("cargo test") && !WITH_TESTS_TO_RUN.contains(&name.as_str());
        assert!(!runs, "docs/{name} has tests to run, which belong into docs/testing.md");
    }
}

/// Pages, the API's own words, alerts. Blocks are what programs said when they were recorded, or are held by tests of their own.
#[test]
fn what_users_read_says_no_word_that_changed() {
    let mut pages = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(PathBuf::from).to_vec();
    for folder in ["docs", "docs/runbooks", "manifests/crds", "manifests/components/alerts"] {
        let entries = std::fs::read_dir(format!("{ROOT}/{folder}")).expect("a folder");
        pages.extend(entries.map(|entry| Path::new(folder).join(entry.expect("an entry").file_name())));
    }
    pages.retain(|page| {
        let name = page.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        // The list itself, and pages of which some tell of the past.
        let is_text = [".md", ".yaml"].iter().any(|ending| name.ends_with(ending));
        is_text && name != "glossary.md" && !OF_TESTS.contains(&name)
    });
    assert!(pages.len() > 40, "{pages:?}");
    let mut said = Vec::new();
    for page in pages {
        let text = std::fs::read_to_string(Path::new(ROOT).join(&page)).expect("a page");
        let prose: String = text.split("```").step_by(2).collect();
        said.extend(bascule_tests::words::outdated(&prose).into_iter().map(|word| (page.clone(), word)));
    }
    assert!(said.is_empty(), "docs/glossary.md has other words for these: {said:#?}");
}

/// What is installed, or typed.
const PROGRAMS: [&str; 12] = [
    "cli/src/",
    "operator/src/",
    "node-agent/src/",
    "crates/agent-core/src/",
    "crates/agent-settings/src/",
    "crates/api/src/",
    "crates/dashboard/src/",
    "crates/facts/src/",
    "crates/kubeconfig/src/",
    "crates/planner/src/",
    "crates/release/src/",
    "crates/repository/src/",
];

#[test]
fn what_programs_say_has_no_word_that_changed() {
    let mut all = Vec::new();
    sources(Path::new(ROOT), &mut all);
    all.retain(|(path, _)| {
        let path = path.strip_prefix(ROOT).unwrap_or(path).to_string_lossy();
        let of_tests = ["tests.rs", "fixture.rs", "documented.rs"].iter().any(|end| path.ends_with(end));
        !of_tests && PROGRAMS.iter().any(|program| path.starts_with(program))
    });
    let (mut texts, mut said) = (0, Vec::new());
    for (path, source) in &all {
        for text in bascule_tests::words::texts(source) {
            texts += 1;
            said.extend(bascule_tests::words::outdated(&text).into_iter().map(|word| (path, word, text.clone())));
        }
    }
    assert!(texts > 4_000, "only {texts} texts of {} files", all.len());
    assert!(said.is_empty(), "docs/glossary.md has other words for these: {said:#?}");
}

#[test]
fn a_name_that_leads_nowhere_is_noticed() {
    let page = "`bascule-agent flow::a_b`, `worlds::c`, `status.trial`, and\n`bascule-sim\nfaults::d`";
    let found = named(page);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found.first().map(|named| named.function.as_str()), Some("a_b"));
    assert!(!is_test("fn a_b() {}", "a_b"));
    assert!(is_test("#[test]\nfn a_b() {}", "a_b"));
    assert!(is_test("mod tests {\n    #[tokio::test]\n    async fn a_b() {}", "a_b"));
}
