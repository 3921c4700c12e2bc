//! Act 5: what nobody signed is refused, and so is what was signed too long ago. The reason stands in the policy.

use anyhow::{Context as _, ensure};
use bascule_api::conditions;

use super::{PATIENCE, starts_between};
use crate::sandbox::snapshot::Snapshot;
use crate::sandbox::story::Story;

pub(super) async fn play(story: &mut Story) -> anyhow::Result<Vec<String>> {
    let before = story.observer.now();
    let mut seen = Vec::new();

    story.repository.tamper()?;
    seen.push(refusal(story, "tampered", conditions::reason::UNTRUSTED).await?);
    story.repository.restore()?;
    healthy(story).await?;

    story.repository.let_expire()?;
    seen.push(refusal(story, "expired", conditions::reason::EXPIRED).await?);
    story.repository.restore()?;
    healthy(story).await?;

    let after = story.observer.now();
    let started = starts_between(&before, &after);
    ensure!(started.values().all(|count| *count == 0), "a machine restarted: {started:?}");
    Ok(seen)
}

fn repository_condition(seen: &Snapshot) -> Option<(String, String, String)> {
    let status = seen.policy.as_ref()?.status.as_ref()?;
    let condition = conditions::get(&status.conditions, conditions::REPOSITORY_HEALTHY)?;
    Some((condition.status.clone(), condition.reason.clone(), condition.message.clone()))
}

async fn refusal(story: &Story, what: &str, reason: &'static str) -> anyhow::Result<String> {
    let seen = story
        .observer
        .until(&format!("the {what} repository is refused with the reason {reason}"), PATIENCE, |seen| {
            repository_condition(seen).is_some_and(|(status, found, _)| status == "False" && found == reason)
        })
        .await?;
    let (_, _, message) = repository_condition(&seen).context("the condition went away")?;
    Ok(format!("{what}: RepositoryHealthy=False, {reason}: {message}"))
}

async fn healthy(story: &Story) -> anyhow::Result<()> {
    story
        .observer
        .until("the repository is healthy again", PATIENCE, |seen| {
            repository_condition(seen).is_some_and(|(status, _, _)| status == "True")
        })
        .await?;
    Ok(())
}
