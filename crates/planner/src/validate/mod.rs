//! Turns a policy's spec into a [`ValidPolicy`] that can't be wrong.
//!
//! The API server's schema refuses most bad objects; this checks what a schema can't (time zones, cron, how waves fit
//! together) and checks the rest again, because an object may have been stored before a rule existed.

mod error;
#[cfg(test)]
mod tests;

pub use error::{PolicyError, PolicyErrorKind};

use crate::{windows::Window, zones::TimeZones};
use bascule_api::{
    Drain, Duration, Emergency, EmergencyExemption, Gate, IntOrPercent, Selector, Severity, UpdatePolicySpec, Wave,
};

/// A policy's spec that was checked, with its texts parsed.
#[derive(Debug, Clone)]
pub struct ValidPolicy {
    /// The spec itself.
    pub spec: UpdatePolicySpec,
    /// The maintenance windows, parsed.
    pub windows: Vec<Window>,
    /// The names of `spec.health.gates`, in their order, and whether each is asked for a node.
    pub gates: Vec<GateName>,
}

impl PartialEq for ValidPolicy {
    fn eq(&self, other: &Self) -> bool {
        // Everything else follows from the spec.
        self.spec == other.spec
    }
}

/// How a health gate is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateName {
    /// `spec.health.gates[].name`, or its kind and position from 1, e.g. `promQL-1`.
    pub name: String,
    /// Whether it is asked for one node (its query names `$node`), rather than once for the policy.
    pub per_node: bool,
}

/// Longest time a drain, a boot, a hook or a poll may take: a day.
const MAX_STEP: Duration = Duration::from_secs(86_400);
/// Shortest time between two readings of a repository.
const MIN_POLL: Duration = Duration::from_secs(10);
/// Most windows and waves that are looked at, as in the schema.
const MAX_ENTRIES: usize = 16;

/// Checks a policy's spec and parses what it holds as text, with the time zones that the program brings.
///
/// # Errors
/// [`PolicyError`], with the field and what would be accepted.
pub fn validate(spec: &UpdatePolicySpec) -> Result<ValidPolicy, PolicyError> {
    validate_with(spec, &TimeZones::default())
}

/// The same, with time zones that were given.
///
/// # Errors
/// [`PolicyError`], with the field and what would be accepted.
pub fn validate_with(spec: &UpdatePolicySpec, zones: &TimeZones) -> Result<ValidPolicy, PolicyError> {
    selector("spec.nodeSelector", &spec.node_selector)?;
    url("spec.source.repository", &spec.source.repository, &["https"])?;
    span("spec.source.pollInterval", spec.source.poll_interval, MIN_POLL, MAX_STEP)?;
    if let Some(version) = &spec.version
        && spec.blocked_versions.contains(version)
    {
        return Err(PolicyError::new("spec.version", PolicyErrorKind::PinnedIsBlocked(version.clone())));
    }
    if let Some(version) = spec.allowed_versions.iter().find(|version| spec.blocked_versions.contains(version)) {
        return Err(PolicyError::new("spec.allowedVersions", PolicyErrorKind::AllowedIsBlocked(version.clone())));
    }
    budget(spec)?;
    waves(&spec.waves)?;
    emergency(spec.emergency.as_ref())?;
    span("spec.drain.timeout", spec.drain.timeout, Duration::from_secs(1), MAX_STEP)?;
    span("spec.drain.loadBalancerDelay", spec.drain.load_balancer_delay, Duration::ZERO, MAX_STEP)?;
    drain(&spec.drain)?;
    if spec.failure_threshold == 0 {
        return Err(PolicyError::new("spec.failureThreshold", PolicyErrorKind::Zero));
    }
    let gates = health(spec)?;
    hooks(spec)?;
    if spec.maintenance_windows.len() > MAX_ENTRIES {
        let kind = PolicyErrorKind::TooMany { found: spec.maintenance_windows.len(), max: MAX_ENTRIES };
        return Err(PolicyError::new("spec.maintenanceWindows", kind));
    }
    let mut windows = Vec::with_capacity(spec.maintenance_windows.len());
    for (index, window) in spec.maintenance_windows.iter().enumerate() {
        let window = Window::parse(window, zones)
            .map_err(|(field, kind)| PolicyError::new(format!("spec.maintenanceWindows[{index}].{field}"), kind))?;
        windows.push(window);
    }
    Ok(ValidPolicy { spec: spec.clone(), windows, gates })
}

fn drain(drain: &Drain) -> Result<(), PolicyError> {
    if let Some(pods) = &drain.pod_selector {
        selector("spec.drain.podSelector", pods)?;
    }
    span("spec.drain.volumeDetachTimeout", drain.volume_detach_timeout, Duration::ZERO, MAX_STEP)?;
    if let Some(within) = drain.budgets_open_after_cordon {
        span("spec.drain.budgetsOpenAfterCordon", within, Duration::from_secs(1), MAX_STEP)?;
    }
    if drain.rules.len() > MAX_ENTRIES {
        let kind = PolicyErrorKind::TooMany { found: drain.rules.len(), max: MAX_ENTRIES };
        return Err(PolicyError::new("spec.drain.rules", kind));
    }
    for (index, rule) in drain.rules.iter().enumerate() {
        let field = |name: &str| format!("spec.drain.rules[{index}].{name}");
        if let Some(pods) = &rule.selector {
            selector(&field("selector"), pods)?;
        }
        if let Some(timeout) = rule.timeout {
            span(&field("timeout"), timeout, Duration::from_secs(1), drain.timeout)?;
        }
        if drain.rules.iter().take(index).any(|earlier| earlier.name == rule.name) {
            return Err(PolicyError::new(field("name"), PolicyErrorKind::NameTwice(rule.name.clone())));
        }
    }
    Ok(())
}

fn budget(spec: &UpdatePolicySpec) -> Result<(), PolicyError> {
    quantity("spec.budget.maxUnavailable", &spec.budget.max_unavailable)?;
    quantity("spec.staging.maxConcurrent", &spec.staging.max_concurrent)?;
    if let Some(domain) = &spec.budget.per_domain {
        label_key("spec.budget.perDomain.topologyKey", &domain.topology_key)?;
        if domain.max_domains == 0 {
            return Err(PolicyError::new("spec.budget.perDomain.maxDomains", PolicyErrorKind::Zero));
        }
        if let Some(most) = &domain.max_unavailable {
            quantity("spec.budget.perDomain.maxUnavailable", most)?;
        }
    }
    Ok(())
}

fn waves(waves: &[Wave]) -> Result<(), PolicyError> {
    if waves.len() > MAX_ENTRIES {
        let kind = PolicyErrorKind::TooMany { found: waves.len(), max: MAX_ENTRIES };
        return Err(PolicyError::new("spec.waves", kind));
    }
    for (index, wave) in waves.iter().enumerate() {
        let field = |name: &str| format!("spec.waves[{index}].{name}");
        let ways = usize::from(wave.selector.is_some())
            + usize::from(wave.count.is_some())
            + usize::from(wave.percent.is_some());
        if ways > 1 {
            return Err(PolicyError::new(format!("spec.waves[{index}]"), PolicyErrorKind::WaveTwice));
        }
        if let Some(nodes) = &wave.selector {
            selector(&field("selector"), nodes)?;
        }
        if wave.count == Some(0) {
            return Err(PolicyError::new(field("count"), PolicyErrorKind::Zero));
        }
        if wave.percent.is_some_and(|percent| !(1..=100).contains(&percent)) {
            return Err(PolicyError::new(field("percent"), PolicyErrorKind::Percent));
        }
        if waves.iter().take(index).any(|earlier| earlier.name == wave.name) {
            return Err(PolicyError::new(field("name"), PolicyErrorKind::NameTwice(wave.name.clone())));
        }
        if ways == 0 && index + 1 < waves.len() {
            return Err(PolicyError::new(format!("spec.waves[{index}]"), PolicyErrorKind::WaveOfAllNotLast));
        }
    }
    Ok(())
}

fn emergency(emergency: Option<&Emergency>) -> Result<(), PolicyError> {
    match emergency {
        Some(emergency) if emergency.ignore.is_empty() => {
            Err(PolicyError::new("spec.emergency.ignore", PolicyErrorKind::Empty))
        }
        _ => Ok(()),
    }
}

fn health(spec: &UpdatePolicySpec) -> Result<Vec<GateName>, PolicyError> {
    let health = &spec.health;
    span("spec.health.nodeReadyTimeout", health.node_ready_timeout, Duration::from_secs(1), MAX_STEP)?;
    if let Some(secret) = &health.prometheus_secret {
        segment("spec.health.prometheusSecret", secret)?;
    }
    if let Some(prometheus) = &health.prometheus {
        url("spec.health.prometheus", prometheus, &["http", "https"])?;
    }
    let mut names: Vec<GateName> = Vec::with_capacity(health.gates.len());
    for (index, gate) in health.gates.iter().enumerate() {
        let name = self::gate(index, gate, health.prometheus.is_some())?;
        if names.iter().any(|earlier| earlier.name == name.name) {
            let field = format!("spec.health.gates[{index}].name");
            return Err(PolicyError::new(field, PolicyErrorKind::NameTwice(name.name)));
        }
        names.push(name);
    }
    Ok(names)
}

fn gate(index: usize, gate: &Gate, has_prometheus: bool) -> Result<GateName, PolicyError> {
    let field = |name: &str| format!("spec.health.gates[{index}]{name}");
    let (kind, per_node) = match (&gate.prom_ql, &gate.object, &gate.http) {
        (Some(prom), None, None) => {
            if !has_prometheus {
                return Err(PolicyError::new("spec.health.prometheus", PolicyErrorKind::NoPrometheus));
            }
            if prom.equals.is_none() && prom.max.is_none() && prom.min.is_none() {
                return Err(PolicyError::new(field(".promQL"), PolicyErrorKind::NoComparison));
            }
            if [prom.equals, prom.max, prom.min].into_iter().flatten().any(|wanted| !wanted.is_finite()) {
                return Err(PolicyError::new(field(".promQL"), PolicyErrorKind::NotFinite));
            }
            ("promQL", prom.query.contains("$node"))
        }
        (None, Some(object), None) => {
            if object.is_confidential() {
                return Err(PolicyError::new(
                    field(".object.kind"),
                    PolicyErrorKind::Confidential(object.kind.clone()),
                ));
            }
            let version = object.api_version.split('/').map(|part| (".object.apiVersion", part));
            let more = [(".object.kind", &object.kind)].into_iter();
            let more = more.chain(object.namespace.as_ref().map(|namespace| (".object.namespace", namespace)));
            let more = more.chain(object.name.as_ref().map(|name| (".object.name", name)));
            for (part, name) in version.chain(more.map(|(part, name)| (part, name.as_str()))) {
                segment(&field(part), name)?;
            }
            if let Some(objects) = &object.selector {
                selector(&field(".object.selector"), objects)?;
            }
            ("object", mentions(&object.cel, "node"))
        }
        (None, None, Some(http)) => {
            url(&field(".http.url"), &http.url, &["http", "https"])?;
            span(&field(".http.timeout"), http.timeout, Duration::from_secs(1), Duration::from_secs(60))?;
            ("http", false)
        }
        _ => return Err(PolicyError::new(field(""), PolicyErrorKind::GateKind)),
    };
    let name = gate.name.clone().unwrap_or_else(|| format!("{kind}-{}", index + 1));
    Ok(GateName { name, per_node })
}

/// Whether a CEL expression names a variable: as a word of its own that is no field, outside of texts and remarks. What looks so and
/// is not (a macro's own variable of that name) only the language can tell, as the operator does.
fn mentions(expression: &str, variable: &str) -> bool {
    let (mut rest, mut last) = (expression, ' ');
    while let Some(first) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
            continue;
        }
        if let Some(after) = behind_text(rest, false) {
            (rest, last) = (after, ' ');
            continue;
        }
        let length = rest.find(|letter: char| !is_word(letter)).unwrap_or(rest.len());
        if length == 0 {
            if !first.is_whitespace() {
                last = first;
            }
            rest = rest.strip_prefix(first).unwrap_or_default();
            continue;
        }
        let (word, after) = rest.split_at(length);
        // The prefix of a text in which nothing is escaped, or of bytes.
        let is_raw = matches!(word, "r" | "R" | "br" | "bR" | "Br" | "BR" | "rb" | "rB" | "Rb" | "RB");
        if word == variable && last != '.' {
            return true;
        }
        rest = if is_raw { behind_text(after, true).unwrap_or(after) } else { after };
        last = ' ';
    }
    false
}

const fn is_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_'
}

/// What follows a text that begins here, if one does.
fn behind_text(expression: &str, raw: bool) -> Option<&str> {
    let quotes = ["\"\"\"", "'''", "\"", "'"];
    let (quote, mut rest) = quotes.iter().find_map(|quote| Some((*quote, expression.strip_prefix(*quote)?)))?;
    loop {
        if let Some(after) = rest.strip_prefix(quote) {
            return Some(after);
        }
        let mut letters = rest.chars();
        if letters.next()? == '\\' && !raw {
            letters.next();
        }
        rest = letters.as_str();
        if rest.is_empty() {
            return Some(rest);
        }
    }
}

/// A name that becomes a part of a request's path must not become more of it: another resource, or a query (Kubernetes, "Object
/// Names and IDs", path segment names).
fn segment(field: &str, name: &str) -> Result<(), PolicyError> {
    let plain = |letter: char| letter.is_ascii_graphic() && !matches!(letter, '/' | '?' | '#' | '%' | '\\');
    if matches!(name, "" | "." | "..") || !name.chars().all(plain) {
        return Err(PolicyError::new(field, PolicyErrorKind::Segment(name.chars().take(80).collect())));
    }
    Ok(())
}

fn hooks(spec: &UpdatePolicySpec) -> Result<(), PolicyError> {
    let hooks = &spec.hooks;
    for (list, hooks) in [
        ("beforeDrain", &hooks.before_drain),
        ("afterCommit", &hooks.after_commit),
        ("beforeRollout", &hooks.before_rollout),
        ("afterRollout", &hooks.after_rollout),
    ] {
        for (index, hook) in hooks.iter().enumerate() {
            let field = format!("spec.hooks.{list}[{index}]");
            span(&format!("{field}.timeout"), hook.timeout, Duration::from_secs(1), MAX_STEP)?;
            segment(&format!("{field}.namespace"), &hook.namespace)?;
            if hooks.iter().take(index).any(|earlier| earlier.name == hook.name) {
                return Err(PolicyError::new(format!("{field}.name"), PolicyErrorKind::NameTwice(hook.name.clone())));
            }
            if hook.job.get("template").is_none() {
                return Err(PolicyError::new(format!("{field}.job"), PolicyErrorKind::NoTemplate));
            }
        }
    }
    Ok(())
}

fn selector(field: &str, selector: &Selector) -> Result<(), PolicyError> {
    selector.validate().map_err(|error| PolicyError::new(field, PolicyErrorKind::Selector(error)))
}

fn quantity(field: &str, quantity: &IntOrPercent) -> Result<(), PolicyError> {
    quantity.of(100).map(|_| ()).map_err(|error| PolicyError::new(field, PolicyErrorKind::Quantity(error)))
}

fn span(field: &str, span: Duration, min: Duration, max: Duration) -> Result<(), PolicyError> {
    if (min..=max).contains(&span) {
        Ok(())
    } else {
        Err(PolicyError::new(field, PolicyErrorKind::Span { found: span, min, max }))
    }
}

/// A URL is only held to what can be said without resolving it: its scheme, a host, nothing behind the path.
fn url(field: &str, url: &str, schemes: &'static [&'static str]) -> Result<(), PolicyError> {
    let accepted = schemes.iter().any(|scheme| {
        url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")).is_some_and(|rest| {
            let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
            !host.is_empty() && !host.contains('@') && url.bytes().all(|byte| byte.is_ascii_graphic())
        })
    });
    if accepted {
        Ok(())
    } else {
        let found = url.chars().take(80).collect();
        Err(PolicyError::new(field, PolicyErrorKind::Url { found, schemes }))
    }
}

/// Kubernetes' own shape of a label key: an optional DNS prefix of 253 characters and a name of 63.
fn label_key(field: &str, key: &str) -> Result<(), PolicyError> {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let edge = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let name_fits = name.len() <= 63
        && edge(name.bytes().next())
        && edge(name.bytes().next_back())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let prefix_fits = prefix.is_none_or(|prefix| {
        !prefix.is_empty()
            && prefix.len() <= 253
            && prefix.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
    });
    if name_fits && prefix_fits {
        Ok(())
    } else {
        Err(PolicyError::new(field, PolicyErrorKind::LabelKey(key.chars().take(80).collect())))
    }
}

impl ValidPolicy {
    /// Whether a release of this severity may skip something.
    #[must_use]
    pub fn skips(&self, severity: Severity, what: EmergencyExemption) -> bool {
        self.spec
            .emergency
            .as_ref()
            .is_some_and(|emergency| severity >= emergency.min_severity && emergency.ignore.contains(&what))
    }
}
