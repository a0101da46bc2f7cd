//! The statements of message lists, and their bounds.

use chatstore_core::messages::MessageQuery;
use chatstore_core::page::{MessagePosition, Order, PageRequest, PageStart};

use super::{SEQ_END, message_columns};

pub(super) const LIST_MESSAGES_ASC: &str = concat!(
    "select ",
    message_columns!(),
    " from messages m where m.message_no > ?1 and m.message_no < ?2 and m.deleted_at is null
        and (?3 is null or m.role = ?3)
    order by m.message_no asc limit ?4 offset ?5"
);
pub(super) const LIST_MESSAGES_DESC: &str = concat!(
    "select ",
    message_columns!(),
    " from messages m where m.message_no > ?1 and m.message_no < ?2 and m.deleted_at is null
        and (?3 is null or m.role = ?3)
    order by m.message_no desc limit ?4 offset ?5"
);

/// The statement of a list and its bounds: after which and before which `seq`, and the offset.
pub(super) fn list_bounds(query: &MessageQuery, page: &PageRequest<MessagePosition>) -> (&'static str, i64, i64, i64) {
    let mut after = query.after_seq.unwrap_or(0).clamp(0, SEQ_END - 1);
    let mut before = query.before_seq.unwrap_or(SEQ_END).clamp(0, SEQ_END);
    let mut offset = 0;
    match (&page.start, query.order) {
        (PageStart::Offset(n), _) => offset = i64::try_from(*n).unwrap_or(i64::MAX),
        (PageStart::After(position), Order::Asc) => after = after.max(position.seq),
        (PageStart::After(position), Order::Desc) => before = before.min(position.seq),
    }
    let sql = match query.order {
        Order::Asc => LIST_MESSAGES_ASC,
        Order::Desc => LIST_MESSAGES_DESC,
    };
    (sql, after, before, offset)
}
