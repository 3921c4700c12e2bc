//! A real Kubernetes control plane for tests, benchmarks and the sandbox: etcd, kube-apiserver,
//! kube-controller-manager and kube-scheduler as processes of their own, with RBAC, NodeRestriction and
//! ValidatingAdmissionPolicy as in a cluster that matters. Only kubelets are missing; `crate::kubelet` stands in.
//!
//! Each one has its own ports, authority and data folder: as many as wanted run side by side. All of it ends with the
//! process that started it, however that ends.
//!
//! [`ControlPlane`] is one of each, for tests. [`ControlPlanes`] is one of each on every machine, behind a balancer, for
//! the story of machines that carry the cluster themselves.

mod apply;
mod arguments;
mod audit;
mod balancer;
mod binaries;
mod credentials;
mod foundation;
mod identity;
mod pki;
mod planes;
mod ports;
mod start;

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

pub use apply::{Applied, apply};
pub use audit::{Request, RequestCounts};
pub use balancer::Balancer;
pub use binaries::Binaries;
pub use credentials::Credentials;
pub use foundation::Foundation;
pub use identity::request_pod_token;
pub use planes::{ControlPlanes, Plane};
pub use ports::free_port;

use crate::supervise::{ProcessError, Supervised};

/// The first address of the service network, by which pods reach the API server
/// (kube-apiserver, `--service-cluster-ip-range`).
pub const SERVICE_ADDRESS: &str = "10.96.0.1";

/// What a control plane may differ in.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a kubelet may be silent before its node counts as not Ready
    /// (`--node-monitor-grace-period`; Kubernetes' own default is 50 s).
    pub node_monitor_grace: Duration,
    /// How long all parts together may take to come up.
    pub start_timeout: Duration,
    /// Keep one line for each request, to be read by [`ControlPlane::requests`]. Costs a little CPU at scale.
    pub audit: bool,
    /// An admission plug-in that is switched off (`--disable-admission-plugins`), as some clusters have it.
    pub disabled_admission: Option<String>,
    /// Where the API server listens. `::1` makes a cluster of IPv6 alone, its Services included.
    pub address: IpAddr,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_monitor_grace: Duration::from_secs(20),
            // Far longer than it takes where five of them and four machines start on two processors.
            start_timeout: Duration::from_secs(300),
            audit: true,
            disabled_admission: None,
            address: Ipv4Addr::LOCALHOST.into(),
        }
    }
}

/// A running control plane. Dropping it ends its processes and removes its data.
#[derive(Debug)]
pub struct ControlPlane {
    // Fields are dropped in this order: those who write end before their folder goes.
    scheduler: Supervised,
    controller_manager: Supervised,
    api_server: Supervised,
    etcd: Supervised,
    foundation: Foundation,
}

/// Why there is no control plane, or why it refused what the fixture asked of it.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// No Go toolchain, and no ready-made programs.
    #[error(
        "building the test control plane needs Go {wanted} or newer, and there is no `go` in PATH: install it, or set \
         KUBEBUILDER_ASSETS to a folder with etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kubectl"
    )]
    GoMissing {
        /// The version that the module's go.mod names.
        wanted: String,
    },
    /// `go build` failed.
    #[error(
        "building the test control plane failed (it needs Go {wanted} and a module proxy that `go` can reach):\n{output}"
    )]
    Build {
        /// The version that the module's go.mod names.
        wanted: String,
        /// The end of what the compiler said.
        output: String,
    },
    /// `KUBEBUILDER_ASSETS` names a folder that can't be used.
    #[error("KUBEBUILDER_ASSETS is {}, which lacks: {missing}", folder.display())]
    AssetsIncomplete {
        /// The folder as set.
        folder: PathBuf,
        /// The programs that are not there.
        missing: String,
    },
    /// A file or folder could not be read or made.
    #[error("cannot use {}", path.display())]
    Folder {
        /// The file or folder.
        path: PathBuf,
        /// Why the system refused.
        #[source]
        source: std::io::Error,
    },
    /// A program could not be started or ended.
    #[error("a process of the control plane failed")]
    Process(#[from] ProcessError),
    /// A program started and ended before it was ready.
    #[error("{program} ended with code {code} while starting; the end of its log:\n{log}")]
    Died {
        /// Which one.
        program: String,
        /// Its exit code.
        code: i32,
        /// The last lines of its output.
        log: String,
    },
    /// Time is up.
    #[error("{program} was not ready within {} s; the end of its log:\n{log}", waited.as_secs())]
    NotReady {
        /// Which one.
        program: String,
        /// How long it was waited for.
        waited: Duration,
        /// The last lines of its output.
        log: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// A kubeconfig was refused.
    #[error("cannot read a kubeconfig")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The API server refused a request of the fixture.
    #[error("the API server refused a request")]
    Api(#[from] Box<kube::Error>),
    /// There is no port for a server or the balancer.
    #[error("no free port on 127.0.0.1 for a control plane or the balancer before it")]
    Listen {
        /// Why the system refused.
        #[source]
        source: std::io::Error,
    },
    /// An HTTP client could not be made.
    #[error("cannot make an HTTP client")]
    Http(#[from] reqwest::Error),
    /// A manifest is no YAML or no Kubernetes object.
    #[error("manifest {name}: {problem}")]
    Manifest {
        /// The file, or the object's kind and name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A background task was lost.
    #[error("a background task ended early")]
    Task(#[from] tokio::task::JoinError),
}

impl From<kube::Error> for ControlPlaneError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

impl Deref for ControlPlane {
    type Target = Foundation;

    fn deref(&self) -> &Foundation {
        &self.foundation
    }
}

impl ControlPlane {
    /// Every request answered so far, oldest first. Empty without [`Options::audit`].
    ///
    /// # Errors
    /// When the audit log can't be read.
    pub fn requests(&self) -> Result<Vec<Request>, ControlPlaneError> {
        let folder = self.folder().join("audit");
        if folder.is_dir() { audit::read(&folder) } else { Ok(Vec::new()) }
    }

    /// The process ids of all parts, for tests that look whether they are gone and for memory measurements.
    #[must_use]
    pub fn process_ids(&self) -> [u32; 4] {
        [self.etcd.pid(), self.api_server.pid(), self.controller_manager.pid(), self.scheduler.pid()]
    }
}
