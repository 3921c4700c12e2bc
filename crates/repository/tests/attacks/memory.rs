//! What attacks cost a node in memory, as the kernel counts it (proc_pid_status(5), `VmHWM`). Each node is a process of its own, this
//! test program begun again: neither the hostile server nor the vendor, who forges large files, is counted, and none of their memory that
//! the allocator has kept can hide what the node takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, unreachable_pub)]
#![allow(dead_code, reason = "the node is shared with the other attacks, which need more of it")]

mod forged;
mod node;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use bascule_image::Sha256;
use bascule_image::apply::{Apply, Options};
use bascule_image::pack::PackIndex;
use bascule_image::verity::Parameters;
use bascule_image::work::Watch;
use bascule_repository::select::Wanted;
use bascule_tests::https::{Fault, HttpsServer};
use bascule_tests::vendor::{Vendor, image, root_hash};
use serde::{Deserialize, Serialize};

use forged::{
    delegate_edge, delegate_ever_further, delegate_to_seventy_long_roles, forge_roles, full_of_small_parts,
    nest_long_roles,
};
use node::{Failure, Node, category};

/// More than this is too much for any attack, in KiB: twice what an honest update takes, and a role of 2 MiB as it came and as it is held.
/// An agent may have 128 MiB and an operator 256.
const BOUND: u64 = 12 << 10;
/// What the bombs decompress to.
const BOMB: usize = 1 << 30;
const FRAME: usize = 1 << 20;
/// Names the file that says what a node has to do.
const ORDERS: &str = "BASCULE_TEST_NODE";
const GOOD: &str = "nothing went wrong";

/// What a node does, one after the other.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Step {
    /// Opens the repository.
    Open,
    /// Reads a channel of the opened repository.
    Channel(String),
    /// Looks for a file of the opened repository.
    Find(String),
    /// Goes the whole way to the newest release, from 1.0 or from nothing.
    Update { from_nothing: bool },
    /// Unpacks what decompresses to far more than was asked for.
    Bombs,
    /// Reads indexes with numbers near the ends of their types.
    Indexes,
    /// Takes 64 MiB and gives them back.
    Waste,
}

/// Where a repository is, and whom it trusts.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Place {
    url: String,
    ca_pem: String,
    trust_root: String,
}

impl Place {
    fn of(vendor: &Vendor, server: &HttpsServer) -> Self {
        let trust_root = String::from_utf8(vendor.trust_root()).unwrap();
        Self { url: server.url(), ca_pem: server.ca_pem().to_owned(), trust_root }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    /// Read first: all that a process makes once and keeps is made by then.
    honest: Place,
    /// Read when it counts.
    attacked: Place,
    steps: Vec<Step>,
    /// Where the report has to be written.
    report: PathBuf,
}

/// How each step ended, and the most that was taken.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    outcomes: Vec<String>,
    kibibytes: u64,
}

fn status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Forgets the peak (proc(5), `clear_refs`: 5) and gives what is resident now.
fn begin() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    status("VmRSS:")
}

/// Goes the whole way to the newest release.
async fn update(node: &Node, place: &Place) -> Result<(), Failure> {
    let repository = node.open_at(&place.url, &place.ca_pem).await?;
    node.update_from(repository, Wanted::Newest).await.map(drop)
}

/// Does what the orders say, in the process that is measured.
async fn obey(orders: &Path) {
    let orders: Orders = serde_json::from_slice(&std::fs::read(orders).unwrap()).unwrap();
    let mut node = Node::trusting(orders.honest.trust_root.clone().into_bytes());
    // The release that runs is what a test makes, and no node.
    let _running = (image("1.0"), root_hash("1.0"));
    for running in [Some("1.0".to_owned()), None] {
        node.running = running;
        update(&node, &orders.honest).await.unwrap();
    }
    let place = orders.attacked;
    let mut node = Node::trusting(place.trust_root.clone().into_bytes());
    let before = begin();
    let mut opened = None;
    let mut outcomes = Vec::new();
    for step in orders.steps {
        let repository = || opened.as_ref().unwrap();
        let outcome = match step {
            Step::Open => match node.open_at(&place.url, &place.ca_pem).await {
                Ok(repository) => {
                    opened = Some(repository);
                    GOOD.to_owned()
                }
                Err(error) => error.category().to_owned(),
            },
            Step::Channel(name) => {
                let outcome: Result<_, bascule_repository::Error> = repository().channel(&name.parse().unwrap()).await;
                outcome.map_or_else(|error| error.category().to_owned(), |_| GOOD.to_owned())
            }
            Step::Find(path) => {
                let outcome = repository().find(&path).await;
                outcome.map_or_else(|error| error.category().to_owned(), |_| GOOD.to_owned())
            }
            Step::Update { from_nothing } => {
                node.running = (!from_nothing).then(|| "1.0".to_owned());
                let outcome = update(&node, &place).await;
                outcome.map_or_else(|failure| category(&failure), |()| GOOD.to_owned())
            }
            Step::Bombs => {
                decompression_bombs();
                GOOD.to_owned()
            }
            Step::Indexes => {
                lying_indexes();
                GOOD.to_owned()
            }
            Step::Waste => {
                let waste = vec![1_u8; 64 << 20];
                assert_eq!(waste.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>(), (64 << 20) / 4096);
                GOOD.to_owned()
            }
        };
        outcomes.push(outcome);
    }
    let report = Report { outcomes, kibibytes: status("VmHWM:").saturating_sub(before) };
    std::fs::write(orders.report, serde_json::to_vec(&report).unwrap()).unwrap();
}

/// What is measured, and what was too much of it.
struct Lab {
    honest: Place,
    too_much: Vec<String>,
}

impl Lab {
    /// Lets a node do these steps, and says how they ended and what they took.
    async fn measure(&self, attacked: Place, steps: &[Step]) -> Report {
        let folder = tempfile::tempdir().unwrap();
        let (path, report) = (folder.path().join("orders"), folder.path().join("report"));
        let (honest, steps) = (self.honest.clone(), steps.to_vec());
        let orders = Orders { honest, attacked, steps, report: report.clone() };
        std::fs::write(&path, serde_json::to_vec(&orders).unwrap()).unwrap();
        let ended = tokio::task::spawn_blocking(move || {
            let mut command = Command::new(std::env::current_exe().unwrap());
            // What is given back goes back to the kernel (mallopt(3)), so that the peak is what was held at once.
            command.env("MALLOC_MMAP_THRESHOLD_", "131072").env("MALLOC_TRIM_THRESHOLD_", "131072").env(ORDERS, path);
            command.args(["--exact", "no_attack_takes_memory", "--nocapture"]).output().unwrap()
        });
        let ended = ended.await.unwrap();
        assert!(ended.status.success(), "{:?}: {}", orders.steps, String::from_utf8_lossy(&ended.stderr));
        serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap()
    }

    async fn bound(&mut self, place: Place, what: &str, steps: &[Step], expected: &[&str]) {
        let report = self.measure(place, steps).await;
        let measured = format!("{what}: {} KiB", report.kibibytes);
        #[allow(clippy::print_stdout, reason = "what was measured is worth reading")]
        {
            println!("{measured}");
        }
        assert_eq!(report.outcomes, expected, "{what}");
        if report.kibibytes > BOUND {
            self.too_much.push(measured);
        }
    }
}

/// A zstd frame (RFC 8878, 3.1.1) of blocks that each repeat one byte 128 KiB long: 4 bytes for each.
fn bomb(header: &[u8]) -> Vec<u8> {
    let mut bytes = 0xFD2F_B528_u32.to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    let blocks = BOMB / (128 << 10);
    for block in 1..=blocks {
        let last = u32::from(block == blocks);
        bytes.extend_from_slice(&((128_u32 << 10) << 3 | 1 << 1 | last).to_le_bytes()[..3]);
        bytes.push(b'b');
    }
    bytes
}

/// A full pack of one frame with these stored bytes, as docs/release-format.md lays it out.
fn pack_of(stored: &[u8]) -> (Vec<u8>, PackIndex) {
    let mut index = b"BascPack".to_vec();
    for number in [1_u32, 0] {
        index.extend(number.to_le_bytes());
    }
    index.extend((FRAME as u64).to_le_bytes());
    index.extend((FRAME as u32).to_le_bytes());
    index.extend(1_u32.to_le_bytes());
    index.extend([7; 32]);
    index.extend([0; 32]);
    index.extend(0_u64.to_le_bytes());
    index.extend((stored.len() as u64).to_le_bytes());
    index.resize(144, 0);
    index.extend(Sha256::of(b"whatever").as_bytes());
    index.extend((stored.len() as u32).to_le_bytes());
    index.extend([2, 0, 0, 0]);
    let parsed = PackIndex::parse(&index).unwrap();
    ([stored, &index].concat(), parsed)
}

fn decompression_bombs() {
    // A window of 2^41 bytes; and a content size of 2^62 bytes in a frame that is its own window.
    let headers: [&[u8]; 2] = [&[0x00, 0xF8], &[0xE0, 0, 0, 0, 0, 0, 0, 0, 0x40]];
    for header in headers {
        let (pack, index) = pack_of(&bomb(header));
        let slot = tempfile::tempfile().unwrap();
        slot.set_len(FRAME as u64).unwrap();
        let parameters = Parameters { salt: Vec::new(), uuid: [0; 16] };
        let job = Apply {
            index: &index,
            parameters: &parameters,
            source: &pack,
            base: None,
            sink: &slot as &File,
            options: Options::default(),
        };
        let error = job.run(&Watch::none()).unwrap_err();
        assert_eq!(error.category(), "frame-invalid", "{error}");
    }
}

/// Numbers near the ends of their types in an index: the bytes that are there bound what is allocated.
fn lying_indexes() {
    let (pack, index) = pack_of(b"xyz");
    let good = index.to_bytes();
    assert!(pack.ends_with(&good));
    for offset in [16, 24, 28, 96, 104, 112, 144 + 32, 144 + 36] {
        for number in [u64::from(u32::MAX), u64::MAX, u64::MAX / 2, 1 << 33] {
            let mut bad = good.clone();
            let width = if matches!(offset, 16 | 96 | 104) { 8 } else { 4 };
            bad[offset..offset + width].copy_from_slice(&number.to_le_bytes()[..width]);
            assert!(bad == good || PackIndex::parse(&bad).is_err(), "{number} at {offset}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_attack_takes_memory() {
    if let Some(orders) = std::env::var_os(ORDERS) {
        return obey(Path::new(&orders)).await;
    }
    let update = [Step::Update { from_nothing: false }];
    let honest = Vendor::with_two_releases();
    let honest_server = HttpsServer::start(honest.repository()).await.unwrap();
    let mut lab = Lab { honest: Place::of(&honest, &honest_server), too_much: Vec::new() };
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let place = Place::of(&vendor, &server);
    // A measure that sees nothing would find every attack harmless.
    let seen = lab.measure(place.clone(), &[Step::Waste]).await.kibibytes;
    assert!(seen > 60 << 10, "64 MiB were held, {seen} KiB were seen");

    lab.bound(place.clone(), "honest update", &update, &[GOOD]).await;
    for path in ["timestamp.json", "snapshot.json", "targets.json", "stable.json", "release.json"] {
        server.misbehave(path, Fault::Endless);
        lab.bound(place.clone(), &format!("endless {path}"), &update, &["endless-data"]).await;
        server.behave();
    }
    // Ranges that do not end: the node reads what it asked for, and gets its release from the good beginning.
    for path in ["from-", "full.pack"] {
        server.misbehave(path, Fault::Endless);
        let steps = [Step::Update { from_nothing: path == "full.pack" }];
        lab.bound(place.clone(), &format!("endless {path}"), &steps, &[GOOD]).await;
        server.behave();
    }
    lab.bound(place.clone(), "decompression bombs", &[Step::Bombs], &[GOOD]).await;
    lab.bound(place.clone(), "indexes that lie about their numbers", &[Step::Indexes], &[GOOD]).await;

    let edge = [Step::Open, Step::Channel("edge".to_owned())];
    // Within all bounds; then with too many, with names that are too long, and with both.
    for (depth, many, name, fault) in [
        (9, 1024, 128, "limit"),
        (0, 1025, 128, "format"),
        (0, 9_000, 100, "format"),
        (0, 16_000, 6, "format"),
        (0, 100, 15_000, "format"),
        (0, 3, 1 << 19, "format"),
    ] {
        let vendor = Vendor::with_two_releases();
        delegate_edge(&vendor);
        delegate_ever_further(&vendor, depth, many, name);
        let server = HttpsServer::start(vendor.repository()).await.unwrap();
        let place = Place::of(&vendor, &server);
        let what = format!("{many} delegations to names of {name} bytes, {depth} deep");
        lab.bound(place.clone(), &what, &edge, &[GOOD, fault]).await;
        if many == 1024 {
            lab.bound(place, &format!("an update beside {what}"), &update, &[GOOD]).await;
        }
    }

    delegate_edge(&honest);
    for (what, content) in full_of_small_parts(&honest) {
        let vendor = Vendor::with_two_releases();
        delegate_edge(&vendor);
        forge_roles(&vendor, vec![("channel-edge".to_owned(), content)]);
        let server = HttpsServer::start(vendor.repository()).await.unwrap();
        let place = Place::of(&vendor, &server);
        lab.bound(place, &format!("a role full of {what}"), &edge, &[GOOD, "absent"]).await;
    }

    // No search comes further down than the one before it, by what that has fetched.
    let nested = Vendor::with_two_releases();
    delegate_edge(&nested);
    nest_long_roles(&nested, 4);
    let nested_server = HttpsServer::start(nested.repository()).await.unwrap();
    let find = |line| Step::Find(format!("releases/{line}/x86-64/full.pack"));
    let steps = [Step::Open, find("a"), find("a"), find("b"), find("b"), find("a")];
    let expected = [GOOD, "endless-data", "endless-data", "endless-data", "endless-data", "endless-data"];
    lab.bound(Place::of(&nested, &nested_server), "two lines of nested long roles", &steps, &expected).await;

    delegate_to_seventy_long_roles(&vendor);
    lab.bound(place.clone(), "seventy long roles of other channels", &update, &[GOOD]).await;
    let mut steps = vec![Step::Open];
    steps.extend(["many-3", "many-4", "many-5", "many-6"].map(|name| Step::Channel(name.to_owned())));
    let expected = [GOOD, "absent", "absent", "absent", "absent"];
    lab.bound(place.clone(), "four channels with long roles", &steps, &expected).await;
    // None of them has this release, so the search for it goes from role to role until it may not fetch any more.
    let steps = [Step::Open, Step::Find("releases/9.9/x86-64/full.pack".to_owned())];
    lab.bound(place, "a search through long roles", &steps, &[GOOD, "limit"]).await;
    assert!(lab.too_much.is_empty(), "accepted are {BOUND} KiB: {:#?}", lab.too_much);
}
