//! Items on their way in: which messages they become, and which of them are there already.

use std::collections::HashSet;
use std::pin::pin;

use chatstore_core::clock::Timestamp;
use chatstore_core::idempotency::{Answered, Claim, IdempotencyRecord, Recognition};
use chatstore_core::ids::{MessageId, SessionId};
use chatstore_core::json::RawJson;
use chatstore_core::messages::{Message, MessageQuery, NewMessage, payload_text};
use chatstore_core::page::PageRequest;
use chatstore_core::store::StoreError;
use futures_util::stream::{self, Stream, StreamExt as _, TryStreamExt as _};

use crate::api::embeddings::is_wanted;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, Code};
use crate::openai::conversations::conversation_error;
use crate::openai::error::ALREADY_IN_CONVERSATION;
use crate::openai::item::{Item, Sent, read, shown, shown_as};

/// Items that are looked up at once.
const LOOKED_UP_AT_ONCE: usize = 4;

/// Items for one conversation.
#[derive(Clone, Copy)]
pub(in crate::openai) struct Appending<'a> {
    pub(in crate::openai) app: &'a App,
    pub(in crate::openai) caller: &'a Caller,
    pub(in crate::openai) session_id: SessionId,
    /// Whether the conversation is made with them.
    pub(in crate::openai) is_new: bool,
    pub(in crate::openai) now: Timestamp,
}

/// What stands in a body, and what it means.
struct Meant {
    message: NewMessage,
    /// The message that it references.
    references: Option<MessageId>,
    /// Whether that one is stored again: it is another conversation's.
    is_copy: bool,
}

impl Appending<'_> {
    /// The messages that the items of a body become, of a request with this claim.
    pub(in crate::openai) async fn read(
        self,
        items: Vec<RawJson>,
        claim: Option<&Claim>,
    ) -> Result<Vec<NewMessage>, ApiError> {
        let items_max = self.app.access.openai.items_at_once();
        if items.len() > items_max {
            return Err(ApiError::invalid_field("/items", format!("must hold at most {items_max} items")));
        }
        let sent: Vec<Sent> = items
            .into_iter()
            .enumerate()
            .map(|(n, item)| {
                let at = format!("/items/{n}");
                read(&at, item).and_then(|sent| self.check_size(&at, sent))
            })
            .collect::<Result<_, _>>()?;
        let has_references = sent.iter().any(|sent| matches!(sent, Sent::Reference(_)));
        let record = if has_references { self.record(claim).await? } else { None };
        let meant = sent.into_iter().enumerate().map(|(n, sent)| self.meant(n, sent, place(record.as_ref(), n)));
        self.within_limits(stream::iter(meant).buffered(LOOKED_UP_AT_ONCE)).await
    }

    /// What a request with a key did when it was first sent, if it was.
    async fn record(self, claim: Option<&Claim>) -> Result<Option<IdempotencyRecord>, ApiError> {
        let Some(claim) = claim.filter(|claim| claim.recognition == Recognition::Key) else { return Ok(None) };
        self.app.store.get_idempotency_record(claim).await.map_err(items_error)
    }

    /// The messages, unless references make more of a body than a body may be, or than its project has room for.
    async fn within_limits(
        self,
        meant: impl Stream<Item = Result<Meant, ApiError>>,
    ) -> Result<Vec<NewMessage>, ApiError> {
        let bytes_max = self.app.limits.body_bytes_max;
        let (mut messages, mut referenced) = (Vec::new(), HashSet::new());
        let (mut bytes, mut copied) = (0, 0);
        let mut meant = pin!(meant);
        while let Some(Meant { message, references, is_copy }) = meant.try_next().await? {
            bytes += message.payload.as_ref().map_or(message.content.len(), RawJson::bytes);
            if references.is_some() && bytes > bytes_max {
                let detail = format!("With the items that it references a body may have at most {bytes_max} bytes.");
                return Err(ApiError::new(Code::BodyTooLarge, detail));
            }
            if references.is_some_and(|message_id| !referenced.insert(message_id)) {
                return Err(items_error(StoreError::ExternalIdTaken { n: messages.len() }));
            }
            copied += if is_copy { message.bytes() } else { 0 };
            messages.push(message);
        }
        if copied > 0 {
            self.app.usages.admit(&self.caller.scope, copied).await?;
        }
        Ok(messages)
    }

    fn check_size(self, at: &str, sent: Sent) -> Result<Sent, ApiError> {
        let bytes_max = self.app.limits.content_bytes_max;
        match &sent {
            Sent::Item(item) if payload_text(&item.json).len() > bytes_max => {
                Err(ApiError::content_too_large(at.to_owned(), bytes_max))
            }
            _ => Ok(sent),
        }
    }

    async fn meant(self, n: usize, sent: Sent, done_at: Option<(SessionId, i64)>) -> Result<Meant, ApiError> {
        match (sent, done_at) {
            (Sent::Item(item), _) => Ok(Meant { message: self.new_message(item), references: None, is_copy: false }),
            (Sent::Reference(_), Some((session_id, seq))) => self.referenced_before(session_id, seq).await,
            (Sent::Reference(name), None) => self.referenced(n, name).await,
        }
    }

    fn new_message(self, item: Item) -> NewMessage {
        let message_id = self.app.ctx.new_message_id(self.now, self.session_id);
        let content = payload_text(&item.json);
        NewMessage {
            kind: item.kind,
            status: item.status,
            embed: !content.is_empty() && is_wanted(self.app, None),
            payload: Some(item.json),
            external_id: item.id,
            ..NewMessage::text(message_id, item.role, content)
        }
    }

    /// The item that a reference means: one of this conversation, or a copy of one that the caller may read.
    async fn referenced(self, n: usize, name: String) -> Result<Meant, ApiError> {
        if let Some(stored) = self.stored(&name).await? {
            return Ok(self.referenced_here(stored, name));
        }
        let elsewhere = match MessageId::parse_item_id(&name) {
            Some(id) => self.app.store.get_message(&self.caller.scope, id).await.map_err(conversation_error)?,
            None => None,
        };
        let may_be_read = |message: &Message| message.is_named(&name) && self.caller.may_see(message.session_id);
        let not_found = || {
            let detail = format!("Item with the id in `items[{n}]` not found.");
            ApiError::on_conversations("invalid_value", format!("/items/{n}/id"), detail)
        };
        let copied = elsewhere.filter(may_be_read).ok_or_else(not_found)?;
        // A model refuses an item under an id of another type: the copy has the one that is shown, however it was written.
        let (id, item) = shown(&copied);
        if id != name
            && MessageId::parse_item_id(&id) == Some(copied.message_id)
            && let Some(stored) = self.stored(&id).await?
        {
            return Ok(self.referenced_here(stored, id));
        }
        let Ok(Sent::Item(item)) = read("", item) else { return Err(not_found()) };
        Ok(Meant { message: self.new_message(item), references: Some(copied.message_id), is_copy: true })
    }

    /// The item that a reference meant when its request was first sent: it stands where that request put it, whatever
    /// became of the one that it was a copy of.
    async fn referenced_before(self, session_id: SessionId, seq: i64) -> Result<Meant, ApiError> {
        let query = MessageQuery {
            after_seq: Some(seq.saturating_sub(1)),
            before_seq: Some(seq.saturating_add(1)),
            ..MessageQuery::default()
        };
        let page = PageRequest { limit: 1, ..PageRequest::default() };
        let stored = match self.app.store.list_messages(&self.caller.scope, session_id, &query, &page).await {
            Err(StoreError::NotFound) => None,
            found => found.map_err(items_error)?.items.pop(),
        };
        let stored = stored.ok_or_else(|| items_error(StoreError::Gone))?;
        let name = stored.external_id.clone().unwrap_or_else(|| shown(&stored).0);
        Ok(self.referenced_here(stored, name))
    }

    fn referenced_here(self, stored: Message, name: String) -> Meant {
        Meant { references: Some(stored.message_id), is_copy: false, message: self.again(stored, name) }
    }

    /// The item of this name in the conversation.
    async fn stored(self, name: &str) -> Result<Option<Message>, ApiError> {
        if self.is_new {
            return Ok(None);
        }
        let found = self.app.store.find_message(&self.caller.scope, self.session_id, name).await;
        Ok(found.map_err(conversation_error)?.filter(|message| message.deleted_at.is_none()))
    }

    /// What the store takes for a message that it has under this name.
    fn again(self, stored: Message, name: String) -> NewMessage {
        let message_id = self.app.ctx.new_message_id(self.now, self.session_id);
        NewMessage {
            parent_id: stored.parent_id,
            kind: stored.kind,
            status: stored.status,
            payload: stored.payload,
            metadata: stored.metadata,
            context: stored.context,
            token_count: stored.token_count,
            external_id: Some(name),
            ..NewMessage::text(message_id, stored.role, stored.content)
        }
    }

    /// Appends the messages, all or none.
    pub(in crate::openai) async fn append(
        self,
        messages: Vec<NewMessage>,
        claim: Option<&Claim>,
    ) -> Result<Answered<Vec<Message>>, ApiError> {
        let append = async |messages| {
            self.app.store.append_messages(&self.caller.scope, self.session_id, messages, self.now, claim).await
        };
        if self.app.access.openai.is_strict {
            return append(self.refused_if_known(messages).await?).await.map_err(items_error);
        }
        let named = messages.iter().any(|message| message.external_id.is_some());
        let sent = if named { messages.clone() } else { Vec::new() };
        match append(messages).await {
            Err(StoreError::ExternalIdTaken { .. }) => append(self.recognised(sent).await?).await,
            appended => appended,
        }
        .map_err(items_error)
    }

    /// The same messages, but for those that are shown as they are sent: they are what is stored, however it is written
    /// there. That is what items are that were read here and come back.
    async fn recognised(self, messages: Vec<NewMessage>) -> Result<Vec<NewMessage>, ApiError> {
        let recognise = async |message: NewMessage| {
            let Some(name) = message.external_id.clone() else { return Ok(message) };
            let Some(stored) = self.stored(&name).await? else { return Ok(message) };
            let sent = message.clone().into_message(stored.project_id, self.session_id, 0, self.now);
            let is_same = shown(&sent).1.has_value_of(&shown_as(&stored, &name));
            Ok(if is_same { self.again(stored, name) } else { message })
        };
        stream::iter(messages.into_iter().map(recognise)).buffered(LOOKED_UP_AT_ONCE).try_collect().await
    }

    /// The same messages, but those whose ids are taken say what no item says, so that the store refuses them, unless it
    /// knows the request. What is stored at the very same time is taken for the same item all the same.
    async fn refused_if_known(self, messages: Vec<NewMessage>) -> Result<Vec<NewMessage>, ApiError> {
        let refuse = async |message: NewMessage| {
            let Some(name) = &message.external_id else { return Ok(message) };
            let is_known = self.stored(name).await?.is_some();
            let context = if is_known { RawJson::parse("null".to_owned()).ok() } else { None };
            Ok(NewMessage { context, ..message })
        };
        stream::iter(messages.into_iter().map(refuse)).buffered(LOOKED_UP_AT_ONCE).try_collect().await
    }
}

/// Where a request of this record put its item `n`. That of a conversation names no places: its items are the first ones.
fn place(record: Option<&IdempotencyRecord>, n: usize) -> Option<(SessionId, i64)> {
    let record = record?;
    let nth = || i64::try_from(n).ok()?.checked_add(1);
    Some((SessionId::parse(&record.target)?, record.places.0.get(n).copied().or_else(nth)?))
}

/// What a store's error means for a request that brings items.
pub(in crate::openai) fn items_error(error: StoreError) -> ApiError {
    match error {
        StoreError::ExternalIdTaken { n } => {
            let detail = format!("Item already in conversation: `items[{n}]` has the id of another item.");
            ApiError::on_conversations(ALREADY_IN_CONVERSATION, "/items", detail)
        }
        error => conversation_error(error),
    }
}
