//! Attacks by whoever controls the server or the way to it, without any key: other bytes, too many, too slow, half of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bascule_repository::ReadOptions;
use bascule_repository::select::MissingPack;
use bascule_tests::https::{Fault, HttpsServer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::node::{Node, category};
use bascule_tests::vendor::{Vendor, noise};

const FAST_ENOUGH: Duration = Duration::from_millis(200);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_server_is_followed() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    let updated = node.update(&server).await.unwrap();
    assert_eq!(updated.version.as_str(), "1.1");
    assert!(updated.pack.contains("/from-") && updated.missing.is_empty(), "{updated:?}");
    assert!(node.slot_holds("1.1"));
    let full = std::fs::metadata(vendor.published("releases/1.1/x86-64/full.pack")).unwrap().len();
    assert!(server.bytes_sent_for(".pack") * 2 < full, "the delta must have been used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arbitrary_software_in_a_pack() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    node.running = None;
    // A bit in the middle of the frames, one in the index at the end, and a wholly different file of the same length.
    let path = vendor.published("releases/1.1/x86-64/full.pack");
    let length = std::fs::metadata(&path).unwrap().len();
    let attacks = [
        (Fault::FlipBit(length / 3), "apply:"),
        (Fault::FlipBit(length - 10), "index:pack-index-digest"),
        (Fault::Replace(noise("malware", usize::try_from(length).unwrap())), "index:pack-index-digest"),
    ];
    for (fault, expected) in attacks {
        server.behave();
        server.misbehave("full.pack", fault.clone());
        let failure = node.update(&server).await.unwrap_err();
        assert!(category(&failure).starts_with(expected), "{expected}: {failure}");
        assert!(node.slot_holds_nothing_but("1.1"));
    }
    server.behave();
    node.update(&server).await.unwrap();
    assert!(node.slot_holds("1.1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arbitrary_software_in_a_uki() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    server.misbehave("uki.efi", Fault::FlipBit(1000));
    assert_eq!(category(&node.update(&server).await.unwrap_err()), "mismatch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arbitrary_software_from_a_repository_with_other_keys() {
    let vendor = Vendor::with_two_releases();
    let attacker = Vendor::with_two_releases_and_own_keys();
    let server = HttpsServer::start(attacker.repository()).await.unwrap();
    let node = Node::of(&vendor);
    let failure = node.update(&server).await.unwrap_err();
    assert_eq!(category(&failure), "signature", "{failure}");
    assert!(!node.slot().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mix_and_match_of_signed_files() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    let read = |name: &str| std::fs::read(vendor.repository().join("metadata").join(name)).unwrap();
    let old_manifest = std::fs::read(vendor.published("releases/1.0/x86-64/release.json")).unwrap();
    let old_pack = std::fs::read(vendor.published("releases/1.0/x86-64/full.pack")).unwrap();
    // Each is validly signed by the vendor, only not together with the rest.
    let attacks = [
        ("3.snapshot.json", read("2.snapshot.json"), "mismatch"),
        ("3.targets.json", read("2.targets.json"), "mismatch"),
        ("1.1/x86-64/", old_manifest, "mismatch"),
    ];
    for (path, content, expected) in attacks {
        server.behave();
        server.misbehave(path, Fault::Replace(content));
        let failure = node.update(&server).await.unwrap_err();
        assert_eq!(category(&failure), expected, "{path}: {failure}");
        assert!(node.slot_holds_nothing_but("1.1"));
    }
    server.behave();
    server.misbehave("from-", Fault::Replace(old_pack));
    let failure = node.update(&server).await.unwrap_err();
    // Of another length, so that not even its ranges are those that were signed.
    assert_eq!(category(&failure), "range-refused", "{failure}");
    assert!(node.slot_holds_nothing_but("1.1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_data() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    let small_files = ["timestamp.json", "2.root.json", "snapshot.json", "targets.json", "stable.json", "release.json"];
    for path in small_files {
        std::fs::copy(
            vendor.repository().join("metadata/1.root.json"),
            vendor.repository().join("metadata/2.root.json"),
        )
        .unwrap();
        if path != "2.root.json" {
            std::fs::remove_file(vendor.repository().join("metadata/2.root.json")).unwrap();
        }
        server.behave();
        server.misbehave(path, Fault::Endless);
        server.reset_counters();
        let failure = node.update(&server).await.unwrap_err();
        assert_eq!(category(&failure), "endless-data", "{path}: {failure}");
        // The limit, and what may be on its way in buffers of the kernel and of TLS.
        assert!(server.bytes_sent_for(path) < (16 << 20), "{path}: {} bytes", server.bytes_sent_for(path));
    }
    server.behave();
    let _ = std::fs::remove_file(vendor.repository().join("metadata/2.root.json"));
    // A range that does not end is cut at the length that was asked for: every frame in it is good, so the node gets
    // its release, and reads no more than it asked for.
    server.misbehave("from-", Fault::Endless);
    server.reset_counters();
    node.update(&server).await.unwrap();
    assert!(node.slot_holds("1.1"));
    assert!(server.bytes_sent_for("from-") < (64 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_retrieval() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    node.change_settings = |settings| {
        settings.rate_window = FAST_ENOUGH;
        settings.minimum_bytes_per_second = 20_000;
    };
    let trickle = Fault::Trickle { bytes: 1, every: Duration::from_millis(20) };
    for path in ["timestamp.json", "stable.json", "from-", "uki.efi"] {
        for fault in [trickle.clone(), Fault::Stall] {
            server.behave();
            server.misbehave(path, fault.clone());
            let failure = node.update(&server).await.unwrap_err();
            assert_eq!(category(&failure), "slow-retrieval", "{path} {fault:?}: {failure}");
        }
    }
    server.behave();
    node.change_settings = |_| {};
    node.update(&server).await.unwrap();
}

/// As in a root without a bundle of authorities: whoever needs none is not kept from starting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_knows_no_authority_is_made_and_says_so_when_a_server_is_asked() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    node.change_settings = |settings| settings.extra_ca_pem.clear();
    node.client(server.ca_pem());
    let failure = format!("{:?}", node.update(&server).await.unwrap_err());
    assert!(failure.contains("NoAuthorities"), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_retrieval_just_above_the_minimum_meets_the_deadline() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    node.change_settings = |settings| {
        settings.minimum_bytes_per_second = 10;
        settings.metadata_deadline = Duration::from_millis(600);
        settings.download_deadline = Duration::from_millis(600);
    };
    let trickle = Fault::Trickle { bytes: 8, every: Duration::from_millis(20) };
    for path in ["snapshot.json", "uki.efi"] {
        server.behave();
        server.misbehave(path, trickle.clone());
        let failure = node.update(&server).await.unwrap_err();
        assert_eq!(category(&failure), "slow-retrieval", "{path}: {failure}");
        assert!(failure.to_string().contains("0.6 s") || format!("{failure:?}").contains("Deadline"), "{failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_is_resumed_in_the_middle() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    node.running = None;
    server.misbehave("full.pack", Fault::BreakAfterTimes { bytes: 1_500_000, times: 2 });
    node.update(&server).await.unwrap();
    assert!(node.slot_holds("1.1"));
    let length = std::fs::metadata(vendor.published("releases/1.1/x86-64/full.pack")).unwrap().len();
    let sent = server.bytes_sent_for("full.pack");
    // Probe and index come on top; what arrived before a break is not asked for again.
    assert!(sent < length + (1 << 20), "{sent} bytes for a pack of {length}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn truncated_files_are_refused_and_what_arrived_is_kept() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    node.running = None;
    server.misbehave("full.pack", Fault::BreakAfter(2_600_000));
    node.change_settings = |settings| settings.retries = 0;
    assert_eq!(category(&node.update(&server).await.unwrap_err()), "connection");
    assert!(node.slot_holds_nothing_but("1.1"));
    server.behave();
    let updated = node.update(&server).await.unwrap();
    assert!(updated.report.kept_frames >= 1, "{:?}", updated.report);
    assert!(node.slot_holds("1.1"));

    // A file on the server that is really too short: its ranges are not those of the signed file.
    let path = vendor.published("releases/1.1/x86-64/full.pack");
    let bytes = std::fs::read(&path).unwrap();
    server.misbehave("full.pack", Fault::Replace(bytes[..bytes.len() / 2].to_vec()));
    std::fs::remove_file(node.slot()).unwrap();
    assert_eq!(category(&node.update(&server).await.unwrap_err()), "range-refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_ranges_is_refused() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    for fault in [Fault::IgnoreRange, Fault::WrongRange] {
        server.behave();
        server.misbehave("from-", fault.clone());
        let failure = node.update(&server).await.unwrap_err();
        assert_eq!(category(&failure), "range-refused", "{fault:?}: {failure}");
    }
    // Where the whole file is wanted, no range is needed.
    server.behave();
    server.misbehave("uki.efi", Fault::IgnoreRange);
    node.update(&server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_gives_no_ranges_with_if_range_is_asked_without() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    for file in ["from-", "uki.efi"] {
        server.misbehave(file, Fault::IgnoreIfRange);
    }
    // A connection that breaks in the middle is resumed with a range, too.
    server.misbehave("uki.efi", Fault::BreakAfterTimes { bytes: 3000, times: 1 });
    node.update(&server).await.unwrap();
    assert!(node.slot_holds("1.1"));
    let refused = server.requests().iter().filter(|request| request.range.is_some() && request.status == 200).count();
    assert!((1..=2).contains(&refused), "once for each file it is learnt, and remembered: {refused}");
    assert!(server.requests().iter().any(|request| request.path.contains("from-") && request.status == 206));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pack_that_is_replaced_in_the_middle_is_noticed() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    server.misbehave("from-", Fault::ChangingEtag);
    let failure = node.update(&server).await.unwrap_err();
    assert_eq!(category(&failure), "changed-during-download", "{failure}");
    assert!(node.slot_holds_nothing_but("1.1"));
    server.behave();
    node.update(&server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_lead_to_https_or_nowhere() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    let plain = format!("http://localhost:{}/metadata/timestamp.json", server.port());
    server.misbehave("timestamp.json", Fault::Redirect(plain));
    assert_eq!(category(&node.update(&server).await.unwrap_err()), "insecure-url");

    server.behave();
    let round = format!("{}metadata/timestamp.json", server.url());
    server.misbehave("timestamp.json", Fault::Redirect(round));
    assert_eq!(category(&node.update(&server).await.unwrap_err()), "redirects");

    server.behave();
    let real = vendor.published("releases/1.1/x86-64/uki.efi");
    let moved = vendor.repository().join("targets/moved");
    std::fs::copy(real, moved).unwrap();
    server.misbehave("uki.efi", Fault::Redirect(format!("{}targets/moved", server.url())));
    node.update(&server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passing_trouble_is_waited_out_and_lasting_trouble_is_reported() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    for path in ["timestamp.json", "from-"] {
        server.misbehave(path, Fault::StatusTimes { status: 503, times: 2 });
    }
    node.update(&server).await.unwrap();
    server.misbehave("timestamp.json", Fault::Status(503));
    server.reset_counters();
    assert_eq!(category(&node.update(&server).await.unwrap_err()), "http-status");
    let asked = server.requests().iter().filter(|request| request.path.contains("timestamp.json")).count();
    assert_eq!(asked, 3, "one attempt and two retries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_can_not_be_fetched_is_not_an_absent_root() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    // Breaking this one request must not keep a revoked key in use.
    server.misbehave("2.root.json", Fault::Status(500));
    assert_eq!(category(&node.update(&server).await.unwrap_err()), "http-status");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_pack_falls_back_to_the_next_cheapest_unless_forbidden() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let mut node = Node::of(&vendor);
    server.misbehave("from-", Fault::Status(404));
    node.missing_pack = MissingPack::Refuse;
    assert_eq!(category(&node.update(&server).await.unwrap_err()), "not-found");
    node.missing_pack = MissingPack::FallBack;
    let updated = node.update(&server).await.unwrap();
    assert!(updated.pack.ends_with("full.pack"));
    assert_eq!(updated.missing.len(), 1);
    assert!(node.slot_holds("1.1"));
    server.misbehave("full.pack", Fault::Status(404));
    assert_eq!(category(&node.update(&server).await.unwrap_err()), "not-found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_an_unknown_certificate_is_not_talked_to() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let other = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    let client_of_other = node.open_with_ca_of(&server, &other).await.unwrap_err();
    assert_eq!(client_of_other.category(), "certificate");
    assert!(server.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_is_used_when_it_is_set() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = proxy.local_addr().unwrap();
    let tunnels = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&tunnels);
    tokio::spawn(async move {
        loop {
            let (mut client, _) = proxy.accept().await.unwrap();
            counter.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                // RFC 9110, 9.3.6: CONNECT host:port, then bytes in both directions.
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
                let mut upstream = TcpStream::connect(target.replace("localhost", "127.0.0.1")).await.unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
            });
        }
    });
    let mut node = Node::of(&vendor);
    node.update(&server).await.unwrap();
    assert_eq!(tunnels.load(Ordering::Relaxed), 0);
    node.proxy = Some(format!("http://{address}").parse().unwrap());
    node.update(&server).await.unwrap();
    assert!(tunnels.load(Ordering::Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_download_ends_at_once() {
    let vendor = Vendor::with_two_releases();
    let server = HttpsServer::start(vendor.repository()).await.unwrap();
    let node = Node::of(&vendor);
    let repository = node.open(&server).await.unwrap();
    let channel = repository.channel(&"stable".parse().unwrap()).await.unwrap();
    let release = channel.releases.last().unwrap();
    let verified = repository.manifest(&channel, release, node.architecture).await.unwrap();
    server.misbehave("uki.efi", Fault::Stall);
    let options = ReadOptions::default();
    let uki = repository.open_file(&verified, &verified.manifest.uki, options.clone()).await.unwrap();
    let digest = verified.manifest.uki.digest.clone();
    let reading = tokio::task::spawn_blocking(move || uki.copy_verified(&digest, "the UKI", &mut std::io::sink()));
    options.cancel.cancel();
    assert!(matches!(reading.await.unwrap(), Err(bascule_repository::Error::Cancelled)));
}
