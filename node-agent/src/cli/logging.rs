//! Where log lines go and how they look.

use bascule_agent::settings::{LogFormat, Settings};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

type StartError = Box<dyn std::error::Error + Send + Sync>;

/// For whom a command logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// A service: everything that the settings ask for.
    Journal,
    /// A person: quiet below warnings unless the filter was set.
    Person,
    /// A person who breaks glass: whoever looks for it later finds in the journal what was done.
    PersonAndJournal,
}

/// Starts logging.
pub(super) fn start(settings: &Settings, audience: Audience) -> Result<(), StartError> {
    let chosen = settings
        .origins
        .iter()
        .any(|(key, _, origin)| *key == "log.filter" && *origin != bascule_agent::settings::Origin::Default);
    let text = if audience == Audience::Journal || chosen { settings.log_filter.as_str() } else { "warn" };
    let filter = EnvFilter::try_new(text)?;
    let layer = match settings.log_format {
        LogFormat::Journal => tracing_journald::layer()?.boxed(),
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
        LogFormat::Text => {
            // journald adds the time itself.
            let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
            let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
            if under_systemd { layer.without_time().boxed() } else { layer.boxed() }
        }
    };
    // Where no journal listens there is nobody to tell.
    let traced = audience == Audience::PersonAndJournal && settings.log_format != LogFormat::Journal;
    let journal = traced.then(tracing_journald::layer).and_then(Result::ok);
    let journal = journal.map(|layer| layer.with_filter(LevelFilter::INFO));
    tracing_subscriber::registry().with(layer.with_filter(filter)).with(journal).try_init()?;
    Ok(())
}
