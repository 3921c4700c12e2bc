//! `cargo run -p bascule-tests --bin control-plane`: a control plane to try things on. Prints where its kubeconfig
//! lies and keeps it running until Ctrl-C, or until this process is ended in any other way.

use std::io::Write;
use std::time::Instant;

use bascule_tests::control_plane::{ControlPlane, Options};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let begin = Instant::now();
    let control_plane = ControlPlane::start_telling(Options::default(), |sentence| {
        // Nobody reads it any more: then nobody misses it.
        let _ = writeln!(std::io::stderr(), "{sentence}");
    })
    .await?;
    writeln!(std::io::stdout(), "export KUBECONFIG={}", control_plane.admin_kubeconfig().display())?;
    let ids = control_plane.process_ids().map(|id| id.to_string()).join(" ");
    let seconds = begin.elapsed().as_secs_f32();
    writeln!(std::io::stderr(), "running as processes {ids} after {seconds:.1} s; Ctrl-C ends all of it")?;
    tokio::signal::ctrl_c().await?;
    Ok(())
}
