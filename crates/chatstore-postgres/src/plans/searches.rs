//! The statements of searches, which are planned each time.

use chatstore_core::embeddings::Metric;
use chatstore_core::ids::{Bucket, ProjectId, SessionId};
use uuid::Uuid;

use super::explain::{Node, Planner, Planning};
use super::rows::{ADA, Rows};
use crate::columns::bucket_value;
use crate::params::params;
use crate::search::text::SEARCH_TEXTS;
use crate::search::vectors::{Among, nearest_exactly};

/// Searches are planned for their values, whatever is said of other statements.
pub(super) async fn check_searches(planner: &Planner, rows: &Rows, faults: &mut Vec<String>) {
    let project_id = ProjectId::DEFAULT.uuid();
    let longest = rows.longest();
    for (word, session_id) in [("rare", None), ("rare", Some(longest.session_id.uuid())), ("word", None)] {
        let tsquery = format!("'{word}·{ADA}'");
        let params = params![
            tsquery,
            project_id,
            session_id,
            i64::MIN,
            i64::MAX,
            i64::MAX,
            Uuid::max(),
            i64::MAX,
            1_000_i64,
            Some(ADA),
            None::<&str>,
            None::<&str>,
            Some(bucket_value(Bucket::of_user(ProjectId::DEFAULT, ADA))),
        ];
        let plan = planner.explain(SEARCH_TEXTS, params).await;
        let walks = |node: &&Node<'_>| node.table() == "message_texts";
        if !plan.nodes().iter().filter(walks).all(|node| node.walks_by("lexemes")) {
            faults.push(format!(
                "{:?}: a search for {word} does not walk the index: {}",
                planner.planning,
                plan.shown()
            ));
        }
    }
    for (metric, among) in Metric::ALL.into_iter().flat_map(|metric| Among::ALL.map(|among| (metric, among))) {
        let (user, session, key) = match among {
            Among::Session => (None, Some(longest.session_id), "session_id"),
            Among::User => (Some(ADA), None, "user_id"),
            Among::Project => (None, None, "model_id"),
        };
        let bucket = user.map(|user| Bucket::of_user(ProjectId::DEFAULT, user)).or(session.map(SessionId::bucket));
        let (bucket, session) = (bucket.map(bucket_value), session.map(SessionId::uuid));
        let (to, none) = ([1_f32, 2.0, 3.0], None::<&str>);
        let params =
            params![&to[..], project_id, project_id, i64::MIN, i64::MAX, 100_i64, none, none, user, bucket, session];
        let plan = planner.explain(&nearest_exactly(3, metric, among), params).await;
        let compares = |node: &&Node<'_>| node.table() == "message_embeddings";
        // Most vectors are of one project: to read all is no fault then.
        let is_all = among == Among::Project && planner.planning == Planning::Pooled;
        if !is_all && !plan.nodes().iter().filter(compares).all(|node| node.walks_by(key)) {
            faults.push(format!("{:?}: {metric:?} among {among:?}: {}", planner.planning, plan.shown()));
        }
    }
}
