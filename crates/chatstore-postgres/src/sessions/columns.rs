//! The columns of a session, as a macro: `concat!` needs a literal.

/// The columns of `session_row`, in its order.
macro_rules! session_columns {
    () => {
        "s.session_id, s.project_id, s.user_id, s.session_name, s.is_favorite, s.metadata, \
         s.external_id, s.last_seq, s.message_count, s.token_count, s.version, s.created_at, s.updated_at, \
         s.last_message_at, s.deleted_at, s.forked_from"
    };
}
pub(crate) use session_columns;
