//! The dashboard of whoever leads: it shows what the last plan says.

use super::{Known, Live, make};
use bascule_dashboard::{Calendar, Look, Source};
use std::time::Duration;

/// Plans come several times a second while much happens; nobody reads so fast.
const PAUSE: Duration = Duration::from_secs(1);

impl Source for Live {
    async fn look(&self, since: Option<u64>) -> Look {
        match self.get() {
            Known::Planned(plan) if since == Some(plan.stamp) => Look::Same,
            Known::Planned(plan) => {
                let stamp = plan.stamp;
                match tokio::task::spawn_blocking(move || make::report(&plan.plan)).await {
                    Ok(report) => Look::New { report: Box::new(report), stamp, note: None },
                    Err(_) => Look::Away("the report could not be made".to_owned()),
                }
            }
            other => Look::Away(other.absence()),
        }
    }

    async fn calendar(&self) -> Option<Calendar> {
        let Known::Planned(plan) = self.get() else { return None };
        self.0.foreseen.in_time(&plan.plan).await.map(|made| (*made).clone())
    }

    fn pause(&self) -> Duration {
        PAUSE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::tests::plan;
    use std::sync::Arc;

    #[tokio::test]
    async fn the_same_plan_is_told_once_and_a_deposed_leader_has_nothing_to_tell() {
        let live = Live::default();
        assert!(matches!(live.look(None).await, Look::Away(why) if why.contains("does not lead")));
        live.planned(plan());
        let Look::New { report, stamp, .. } = live.look(None).await else { panic!("there is a plan") };
        assert_eq!(report.planned_by, "first");
        assert!(matches!(live.look(Some(stamp)).await, Look::Same));
        live.planned(plan());
        assert!(matches!(live.look(Some(stamp)).await, Look::New { .. }), "another plan is another look");
        assert!(live.calendar().await.is_some());
        live.follows(Some(Arc::from("second")));
        assert!(matches!(live.look(Some(stamp)).await, Look::Away(why) if why.contains("second does")));
    }
}
