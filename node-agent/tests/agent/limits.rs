//! The limit on bytes a second reaches every download of a stage. That a download then keeps to it is tested where it is
//! made (`bascule-repository`, `remote`).

use std::io::Write;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};

use bascule_agent::agent::Agent;
use bascule_agent::core::{Config, Event};
use bascule_agent::engine::Engine;
use bascule_agent::host::{FetchError, Host, OpenPack, ReleaseQuery, Releases, ResolvedRelease, TransferOptions};
use bascule_agent::observe::Lens;
use bascule_agent::settings::{Settings, Sources};
use bascule_api::{Goal, PackFallback, RootHash};
use bascule_image::Manifest;
use bascule_sim::firmware::BootLoader;

use crate::machine::{Machine, release};

type Seen = Arc<Mutex<Vec<Option<NonZeroU64>>>>;

/// Notes the limit of each download.
struct Noting {
    inner: Arc<dyn Releases>,
    seen: Seen,
}

struct NotingRelease {
    inner: Arc<dyn ResolvedRelease>,
    seen: Seen,
}

impl Releases for Noting {
    fn resolve(&self, query: &ReleaseQuery) -> Result<Arc<dyn ResolvedRelease>, FetchError> {
        Ok(Arc::new(NotingRelease { inner: self.inner.resolve(query)?, seen: self.seen.clone() }))
    }
}

impl ResolvedRelease for NotingRelease {
    fn manifest(&self) -> &Manifest {
        self.inner.manifest()
    }

    fn open_pack(
        &self,
        bases: &[RootHash],
        fallback: PackFallback,
        options: &TransferOptions,
    ) -> Result<OpenPack, FetchError> {
        self.seen.lock().unwrap().push(options.bytes_per_second);
        self.inner.open_pack(bases, fallback, options)
    }

    fn copy_uki(&self, out: &mut dyn Write, options: &TransferOptions) -> Result<(), FetchError> {
        self.seen.lock().unwrap().push(options.bytes_per_second);
        self.inner.copy_uki(out, options)
    }
}

#[test]
fn the_limit_on_bytes_a_second_reaches_pack_and_boot_image() {
    for (setting, expected) in [("12345", NonZeroU64::new(12_345)), ("0", None)] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, format!("[transfer]\nbytes-per-second = {setting}\nlow-priority = false\n")).unwrap();
        let settings = Settings::load(&Sources::usual(Some(file), Vec::new())).unwrap();
        let (old, new) = (release("1.0", &[]), release("1.1", &[]));
        let mut machine = Machine::new(BootLoader::SystemdBoot, &old, &[&new]);
        let seen = Seen::default();
        let host = machine.sim.host();
        let releases = Arc::new(Noting { inner: host.releases.clone(), seen: seen.clone() });
        let engine = Engine::new(Host { releases, ..host }, Lens::default(), settings.stage.clone());
        let mut agent = Agent::new(engine, Config::default());
        agent.handle(Event::Tick).unwrap();
        agent.handle(machine.word(Goal::Staged, &new, None)).unwrap();
        assert!(agent.published().unwrap().staged.is_some());
        assert_eq!(*seen.lock().unwrap(), [expected, expected], "bytes-per-second = {setting}");
    }
}
