//! Pages that promise: each line of docs/security.md has its test or says that there is none, what docs/install.md calls tested is what
//! the tests run, and the messages that it explains are those that the programs write.

use super::{ROOT, named, sources};
use std::path::Path;

fn read(page: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}/{page}")).expect("a file of the tree")
}

/// The rows of the tables below a heading, each with its cells.
fn rows(page: &str, heading: &str) -> Vec<Vec<String>> {
    let section = page.split("\n## ").find(|section| section.starts_with(heading)).expect("a heading");
    let lines = section.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---"));
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    lines.skip(1).map(cells).collect()
}

/// What may stand where a test is named.
fn is_answered(cell: &str, scenarios: &str) -> bool {
    // Each role there is compared with what `kubectl auth can-i --list` says.
    let by_page = cell.contains("](rights.md)");
    let by_machines = cell.split("`cargo xtask boot --only ").nth(1).and_then(|rest| rest.split('`').next());
    let by_machines = by_machines.is_some_and(|name| scenarios.contains(&format!("\n| `{name}` |")));
    !named(cell).is_empty() || cell.starts_with("the same") || cell.starts_with("none: ") || by_page || by_machines
}

#[test]
fn every_line_about_security_has_its_test_or_says_that_there_is_none() {
    let (page, scenarios) = (read("docs/security.md"), read("docs/boot-tests.md"));
    for (heading, least) in [("What a compromise is worth", 14), ("NIST SP 800-190", 25)] {
        let rows = rows(&page, heading);
        assert!(rows.len() >= least, "{heading}: {} rows", rows.len());
        for row in rows {
            assert_eq!(row.len(), 4, "{row:?}");
            let test = row.last().expect("four cells");
            assert!(is_answered(test, &scenarios), "{heading}: no test and no word about it: {row:?}");
        }
    }
    let page = rows(&page, "NIST SP 800-190").concat().join(" ");
    let sections = ["4.3.1", "4.3.2", "4.3.3", "4.3.4", "4.3.5", "4.5.1", "4.5.2", "4.5.3", "4.5.4", "4.5.5", "4.6 "];
    assert!(sections.iter().all(|section| page.contains(section)), "{page}");
    for said in ["", "-", "by design", "`cargo xtask boot --only nothing`", "`docs/rights.md`"] {
        assert!(!is_answered(said, &scenarios), "{said}");
    }
}

/// The text between two others.
fn between(text: &str, before: &str, after: &str) -> String {
    let rest = text.split(before).nth(1).unwrap_or_else(|| panic!("no {before}"));
    rest.split(after).next().unwrap_or_default().to_owned()
}

#[test]
fn what_the_support_matrix_calls_tested_is_what_the_tests_run() {
    let page = read("docs/install.md");
    let version = between(&read("tests/control-plane/go.mod"), "\tk8s.io/kubernetes v", "\n");
    let minor = version.rsplit_once('.').map(|(minor, _)| minor).expect("a version");
    let tested: Vec<&str> =
        page.lines().filter(|line| line.starts_with("| Kubernetes 1.") && line.contains("| tested")).collect();
    assert_eq!(tested.len(), 1, "one version is run: {tested:?}");
    assert!(
        tested.iter().all(|row| row.starts_with(&format!("| Kubernetes {minor} | tested, as {version}:"))),
        "{tested:?}"
    );
    let oldest = between(&read("operator/src/preflight/mod.rs"), "pub const OLDEST_MINOR: u32 = ", ";");
    let needed = format!("Kubernetes 1.{oldest} or newer");
    for place in ["docs/install.md", "docs/quickstart.md"] {
        assert!(read(place).contains(&needed), "{place} does not ask for {needed}");
    }
    assert!(read("charts/bascule/Chart.yaml").contains(&format!("kubeVersion: \">=1.{oldest}.0-0\"")));
}

/// What programs of others say.
const OF_OTHERS: [&str; 1] = ["Liveness probe failed"];

#[test]
fn the_messages_that_the_page_explains_are_those_that_programs_write() {
    let page = read("docs/install.md");
    let table = between(&page, "\n## 9. ", "\n## 10. ");
    let mut files = Vec::new();
    sources(Path::new(ROOT), &mut files);
    let shipped = |path: &Path| path.components().all(|part| !part.as_os_str().to_string_lossy().starts_with("tests"));
    files.retain(|(path, _)| shipped(path.strip_prefix(ROOT).unwrap_or(path)));
    // A sentence may go on in the next line of its source.
    let mut said: String = files.iter().flat_map(|(_, text)| text.split("\\\n").map(str::trim_start)).collect();
    for policy in ["agent", "operator", "on-call", "lease"] {
        let text = read(&format!("manifests/admission/{policy}.yaml"));
        said.push_str(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    let quoted = table.split('"').skip(1).step_by(2).flat_map(|words| words.split('…')).map(str::trim);
    // What is left of a message beside an ellipsis may be too short to be looked for.
    let quoted: Vec<&str> = quoted.filter(|words| words.len() > 3 && !OF_OTHERS.contains(words)).collect();
    assert!(quoted.len() > 20, "{quoted:?}");
    let unsaid: Vec<&&str> = quoted.iter().filter(|words| !said.contains(**words)).collect();
    assert!(unsaid.is_empty(), "docs/install.md quotes what no program says: {unsaid:?}");
}

/// What has no default of its own: parts of a label selector, which are Kubernetes', and one way to say what its parent has a default for.
const WITHOUT_DEFAULT: [&str; 3] = [".matchExpressions", ".matchLabels", "source.trustRoot.inline"];

#[test]
fn each_field_of_a_policy_says_its_default() {
    let (reference, guide) = (read("docs/api.md"), read("docs/policies.md"));
    let fields = between(&reference, "### UpdatePolicy.spec\n", "\n### ");
    let mut seen = 0;
    for row in fields.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, meaning] = cells[..] else { panic!("{row}") };
        let name = name.trim_matches('`');
        let is_whole = kind == "object" || kind.contains("**required**") || name.contains("[].");
        if is_whole || WITHOUT_DEFAULT.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        seen += 1;
        // The guide's tables have a column for it, and may name fields of one parent as `.field`.
        let last = name.rsplit('.').next().unwrap_or(name);
        let in_guide = guide.contains(&format!("`{name}`")) || guide.contains(&format!("`.{last}`"));
        assert!(
            meaning.contains("Default") || in_guide,
            "neither docs/api.md nor docs/policies.md has the default of {name}"
        );
    }
    assert!(seen > 40, "{seen} fields");
}
