//! Messages by the names that clients know them by: their external ids, or their own in the form of the wire.

use std::collections::{HashMap, HashSet};

use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::messages::Message;
use chatstore_core::store::{Scope, StoreError};
use uuid::Uuid;

use super::Append;
use crate::columns::bucket_value;
use crate::messages::{message_columns, message_row};
use crate::params::params;
use crate::pool::{Db, Failure, Plan};
use crate::sessions::is_live;

/// One row even where none of them is there, so that it differs from no session. The order of the external ids is that of
/// the index that is meant, and `offset 0` keeps the planner from looking through the session's messages.
const SELECT_NAMED: &str = concat!(
    "select ",
    message_columns!(),
    " from sessions s left join lateral (
        select e.* from unnest($5::text[]) x(external_id) cross join lateral (
            select m.* from messages m
            where m.bucket = $1 and m.session_id = $2 and m.external_id >= x.external_id
                and m.external_id <= x.external_id and m.deleted_at is null
            order by m.external_id offset 0) e
        union all
        select i.* from unnest($6::uuid[]) x(message_id) cross join lateral (
            select m.* from messages m where m.bucket = $1 and m.message_id = x.message_id offset 0) i
        where i.session_id = $2) m on true
    where s.bucket = $1 and s.session_id = $2 and s.project_id = $3 and ",
    is_live!(),
    " and ($4::text is null or s.user_id = $4)"
);

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[SELECT_NAMED];

/// The message of a session that this name names: the one with that external id, else the one whose id it spells, also if
/// that is deleted. `NotFound` if there is no such session.
pub(crate) async fn find_named(
    db: &Db,
    scope: &Scope,
    session_id: SessionId,
    name: &str,
) -> Result<Option<Message>, Failure> {
    let spelled = MessageId::parse_item_id(name).filter(|message_id| message_id.bucket() == session_id.bucket());
    // PostgreSQL's texts hold no NUL, and so no name does.
    let external_ids: Vec<&str> = Some(name).filter(|name| !name.contains('\0')).into_iter().collect();
    let params = params![
        bucket_value(session_id.bucket()),
        session_id.uuid(),
        scope.project_id.uuid(),
        scope.user_id.as_deref(),
        external_ids,
        spelled.map(MessageId::uuid).into_iter().collect::<Vec<Uuid>>(),
    ];
    let rows = db.query(SELECT_NAMED, params).await?;
    if rows.is_empty() {
        return Err(StoreError::NotFound.into());
    }
    let mut found = None;
    for row in rows.iter().filter(|row| !matches!(row.try_get::<_, Option<i64>>(0), Ok(None))) {
        let message = message_row(row, session_id, scope.project_id)?;
        let has_name = message.deleted_at.is_none() && message.external_id.as_deref() == Some(name);
        if has_name || (found.is_none() && message.is_named(name)) {
            found = Some(message);
        }
    }
    Ok(found)
}

/// For each message of an append the one that its external id names and that says the same, if there is one; and the
/// first whose name is that of something else, or of one before it. The session is held.
pub(super) async fn find_repeated(db: &Db, append: &Append) -> Result<(Vec<Option<Message>>, Option<usize>), Failure> {
    let names = Names::of(append);
    let mut repeated = vec![None; append.messages.len()];
    let mut taken = append.first_repeated_name();
    if names.by_external_id.is_empty() {
        return Ok((repeated, taken));
    }
    let mut met = HashSet::new();
    for (n, found) in select_named(db, append, &names).await?.into_iter().enumerate() {
        let Some((message_id, same)) = found else { continue };
        // Two names may be of one message.
        if !met.insert(message_id) || same.is_none() {
            taken = Some(taken.map_or(n, |first| first.min(n)));
        }
        repeated[n] = same;
    }
    Ok((repeated, taken))
}

/// The places of an append's messages by what names them.
#[derive(Default)]
struct Names<'a> {
    by_external_id: HashMap<&'a str, usize>,
    /// One id may be spelled in several ways.
    by_message_id: HashMap<MessageId, Vec<usize>>,
}

impl<'a> Names<'a> {
    fn of(append: &'a Append) -> Self {
        let mut names = Self::default();
        for (n, message) in append.messages.iter().enumerate() {
            let Some(name) = message.external_id.as_deref() else { continue };
            names.by_external_id.entry(name).or_insert(n);
            if let Some(message_id) = append.spelled(name) {
                names.by_message_id.entry(message_id).or_default().push(n);
            }
        }
        names
    }
}

/// What a name names: its id, and the message if it says the same.
type Found = (MessageId, Option<Message>);

/// Looks the names up. What says something else is not kept, so that no more is held than the request is large.
async fn select_named(db: &Db, append: &Append, names: &Names<'_>) -> Result<Vec<Option<Found>>, Failure> {
    let (scope, session_id) = (&append.scope, append.session_id);
    let params = params![
        bucket_value(session_id.bucket()),
        session_id.uuid(),
        scope.project_id.uuid(),
        scope.user_id.as_deref(),
        names.by_external_id.keys().copied().collect::<Vec<&str>>(),
        names.by_message_id.keys().map(|message_id| message_id.uuid()).collect::<Vec<Uuid>>(),
    ];
    let mut found: Vec<Option<Found>> = vec![None; append.messages.len()];
    let mut rows = db.stream(Plan::Kept, SELECT_NAMED, params).await?;
    while let Some(row) = rows.next().await? {
        if row.try_get::<_, Option<i64>>(0)?.is_none() {
            continue;
        }
        let message = message_row(&row, session_id, scope.project_id)?;
        if message.deleted_at.is_some() {
            continue;
        }
        let by_external_id = message.external_id.as_deref().and_then(|name| names.by_external_id.get(name));
        let spelled = names.by_message_id.get(&message.message_id).into_iter().flatten();
        let named =
            spelled.filter(|n| append.messages[**n].external_id.as_deref().is_some_and(|id| message.is_named(id)));
        for (&n, goes_first) in by_external_id.map(|n| (n, true)).into_iter().chain(named.map(|n| (n, false))) {
            if goes_first || found[n].is_none() {
                let same = append.messages[n].says_what(&message).then(|| message.clone());
                found[n] = Some((message.message_id, same));
            }
        }
    }
    Ok(found)
}
