//! Pieces of statements about sessions, as macros: `concat!` needs literals.

/// The columns of `session_row`, in its order.
macro_rules! session_columns {
    () => {
        "s.session_id, s.project_id, s.user_id, s.session_name, s.is_favorite, s.metadata, \
         s.external_id, s.last_seq, s.message_count, s.token_count, s.version, s.created_at, s.updated_at, \
         s.last_message_at, s.deleted_at, s.forked_from"
    };
}
pub(crate) use session_columns;

/// Whether a session that is named by its key is not deleted. No partial index fits this form: to a
/// planner that does not know the tables yet, each would look as good as the key.
macro_rules! is_live {
    () => {
        "num_nulls(s.deleted_at) = 1"
    };
}
pub(crate) use is_live;
