//! Which message of a session a name names.

use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::messages::Message;
use chatstore_core::store::Scope;
use rusqlite::{CachedStatement, OptionalExtension as _, Row, params};

use super::{message_columns, message_row};

pub(super) const SELECT_BY_EXTERNAL_ID: &str = concat!(
    "select ",
    message_columns!(),
    " from messages m where m.message_no >> 32 = ?1 and m.external_id = ?2 and m.deleted_at is null"
);
pub(super) const SELECT_BY_ID: &str =
    concat!("select ", message_columns!(), " from messages m where m.message_no >> 32 = ?1 and m.message_id = ?2");

/// A session, to look for messages in.
#[derive(Clone, Copy)]
pub(super) struct InSession<'a> {
    pub(super) session_no: i64,
    pub(super) session_id: SessionId,
    pub(super) scope: &'a Scope,
}

impl InSession<'_> {
    /// The message that `name` names ([`Message::is_named`]): by its external id, while it is not deleted, or by its own.
    pub(super) fn find<'c>(
        self,
        prepare: impl Fn(&'static str) -> rusqlite::Result<CachedStatement<'c>>,
        name: &str,
    ) -> rusqlite::Result<Option<Message>> {
        let map = |row: &Row<'_>| message_row(row, self.session_id, self.scope.project_id);
        let by_external_id =
            prepare(SELECT_BY_EXTERNAL_ID)?.query_row(params![self.session_no, name], map).optional()?;
        match (by_external_id, MessageId::parse_item_id(name)) {
            (None, Some(message_id)) => {
                let params = params![self.session_no, message_id.as_bytes()];
                let by_id = prepare(SELECT_BY_ID)?.query_row(params, map).optional()?;
                Ok(by_id.filter(|message| message.is_named(name)))
            }
            (found, _) => Ok(found),
        }
    }
}
