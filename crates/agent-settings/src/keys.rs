//! Every setting there is: the reader refuses others, and docs/agent.md's table is made from this list.

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// An absolute path.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A product's name.
    Product,
    /// Where to listen, or `off`.
    Listen,
    /// Yes or no.
    Flag,
    /// A whole number within bounds.
    Whole(u32, u32),
    /// A span of time like `90s` or `1h30m`, within bounds in seconds.
    Duration(u64, u64),
    /// A share in percent, 1 to 100.
    Percent,
    /// A number of bytes; 0 is no limit.
    Bytes,
    /// A list of texts.
    List,
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name: section and key.
    pub name: &'static str,
    /// What it looks like.
    pub kind: Kind,
    /// The value where none is given; empty: not set.
    pub default: &'static str,
    /// What it is for.
    pub help: &'static str,
}

impl Key {
    /// The environment variable that sets it.
    pub fn variable(&self) -> String {
        format!("BASCULE_{}", self.name.to_ascii_uppercase().replace(['.', '-'], "_"))
    }
}

const fn key(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Key {
    Key { name, kind, default, help }
}

/// What a credential can't set: what the guard goes by as well, which begins before there are credentials and has to agree with the
/// agent; root of trust and product, by which a release is judged and which the OS image gives.
const KEPT: &[&str] = &[
    "node.product",
    "host.root",
    "boot.backend",
    "boot.tries",
    "boot.partition",
    "boot.reverify-after",
    "slots.disk",
    "slots.kind",
    "slots.a-data",
    "slots.a-verity",
    "slots.b-data",
    "slots.b-verity",
    "state.directory",
    "repository.trust-root",
    "trial.deadline",
];

/// Whether a setting may come with the machine, as a credential of whoever starts it.
pub fn comes_with_the_machine(name: &str) -> bool {
    !KEPT.contains(&name)
}

/// All settings, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key("node.name", Kind::Text, "", "Name of the Node and of its NodeUpdate. Not set: the host's name."),
    key("node.product", Kind::Product, "", "The product. Not set: IMAGE_ID, else ID, of os-release."),
    key("host.root", Kind::Path, "/", "Where the host's root file system is seen; in a pod, where it is mounted."),
    key(
        "boot.backend",
        Kind::Choice(&["auto", "systemd-boot", "gptprio"]),
        "auto",
        "`auto`, `systemd-boot` or `gptprio` (experimental).",
    ),
    key("boot.tries", Kind::Whole(1, 9), "3", "How often the boot loader may try an armed release."),
    key(
        "boot.partition",
        Kind::Path,
        "",
        "Where the ESP is mounted. Not set: the first of /efi, /boot/efi, /boot that has one. An XBOOTLDR is found by its type.",
    ),
    key(
        "boot.reverify-after",
        Kind::Duration(0, 86_400),
        "15m",
        "For how long a slot that was read back whole may be armed without reading it again.",
    ),
    key("slots.disk", Kind::Path, "", "The disk with the slots. Not set: the disk that the boot partition lies on."),
    key("slots.kind", Kind::Choice(&["root", "usr"]), "root", "What the slots hold: `root` or `usr`."),
    key("slots.a-data", Kind::Whole(1, 1024), "", "Number of slot A's data partition. Not set: by partition type."),
    key("slots.a-verity", Kind::Whole(1, 1024), "", "Number of slot A's verity partition."),
    key("slots.b-data", Kind::Whole(1, 1024), "", "Number of slot B's data partition."),
    key("slots.b-verity", Kind::Whole(1, 1024), "", "Number of slot B's verity partition."),
    key("state.directory", Kind::Path, "/var/lib/bascule", "The state folder, on storage that survives updates."),
    key("repository.trust-root", Kind::Path, "/usr/lib/bascule/root.json", "The first TUF root; part of the OS image."),
    key("repository.extra-ca", Kind::List, "", "PEM files of certificate authorities trusted for the repository."),
    key("repository.only-extra-ca", Kind::Flag, "false", "Trust only `extra-ca`, not the system's authorities."),
    key("repository.proxy", Kind::Text, "environment", "`environment`, `direct`, or the address of a proxy."),
    key("repository.allow-local", Kind::Flag, "false", "Accept `file:` addresses, for nodes without a network."),
    key("transfer.bytes-per-second", Kind::Bytes, "0", "Most bytes a second from the repository; 0: no limit."),
    key("transfer.workers", Kind::Whole(1, 16), "2", "Threads that decode and write; each takes up to 10 MiB."),
    key("transfer.low-priority", Kind::Flag, "true", "Stage with the lowest priority for processor and disk."),
    key(
        "transfer.pause-at-io-pressure",
        Kind::Percent,
        "60",
        "Rest above this share of stalled disk time (PSI, 10 s).",
    ),
    key("transfer.pause-at-memory-pressure", Kind::Percent, "20", "Rest above this share of stalled memory time."),
    key(
        "trial.deadline",
        Kind::Duration(30, 86_400),
        "45m",
        "When the guard reverts a trial, from the start of the boot. Longer than the policy's time to Ready and soak.",
    ),
    key("kubernetes.kubeconfig", Kind::Path, "", "Kubeconfig. Not set: the pod's service account."),
    key("kubernetes.progress-every", Kind::Duration(1, 3_600), "10s", "How often progress is written at most."),
    key(
        "observe.every",
        Kind::Duration(30, 86_400),
        "5m",
        "How often the machine is looked at without a reason, at the least.",
    ),
    key(
        "observe.inspect-every",
        Kind::Duration(60, 2_592_000),
        "6h",
        "How often the running slot is read whole, at the lowest priority, and compared with its root hash.",
    ),
    key("retry.first", Kind::Duration(1, 3_600), "5s", "First wait after a failure that may pass; doubles each time."),
    key("retry.max", Kind::Duration(1, 86_400), "10m", "Longest wait after a failure."),
    key("reboot.retry-after", Kind::Duration(10, 3_600), "2m", "When to ask again if the machine did not go down."),
    key("bus.timeout", Kind::Duration(1, 300), "20s", "How long a call on the system bus may take."),
    key("health.units", Kind::List, "", "systemd units that must run; those that do not are reported."),
    key(
        "server.listen",
        Kind::Listen,
        "unix:/run/bascule/agent.sock",
        "Metrics, health and break-glass commands: `unix:<path>`, `tcp:<address>:<port>` (no commands) or `off`.",
    ),
    key("log.format", Kind::Choice(&["text", "json", "journal"]), "text", "`text`, `json` or `journal`."),
    key(
        "log.filter",
        Kind::Text,
        // These modules say of each attempt that it failed; the agent says when an outage begins and ends.
        "info,kube_client::client::builder=off,kube_runtime::watcher=error",
        "What is logged, as `RUST_LOG` has it.",
    ),
];
