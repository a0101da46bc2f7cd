//! Creating a session, with its first messages if it brings some.

use chatstore_core::idempotency::{Answered, Claim, IdempotencyRecord};
use chatstore_core::ids::SessionId;
use chatstore_core::messages::NewMessage;
use chatstore_core::sessions::{NewSession, Session};
use chatstore_core::store::{Scope, StoreError};

use super::{check_session_quota, find_session, insert_session};
use crate::AppendForm;
use crate::idempotency::{claim_first, require_claim_of};
use crate::messages::append::Append;
use crate::messages::append::fresh::insert_fresh;
use crate::messages::insert::require_home;
use crate::pool::{Db, Failure};
use crate::search::texts::read_texts;
use crate::sessions::SELECT_SESSION;

/// A session that is to be made.
pub(super) struct Creation {
    new: NewSession,
    /// Its first messages.
    append: Append,
    form: AppendForm,
}

impl Creation {
    /// Reads what is to be stored, before the transaction.
    pub(super) async fn new(
        scope: &Scope,
        new: NewSession,
        messages: Vec<NewMessage>,
        claim: Option<&Claim>,
        form: AppendForm,
    ) -> Result<Self, StoreError> {
        if scope.user_id.is_some() && new.user_id != scope.user_id {
            let detail = "is another than the caller speaks for".to_owned();
            return Err(StoreError::Invalid { pointer: "/user_id".to_owned(), detail });
        }
        let (session_id, now) = (new.session_id, new.created_at);
        require_home(session_id, messages.iter().map(|message| message.message_id))?;
        require_claim_of(scope, claim)?;
        let texts = messages.iter().map(|message| (scope.project_id, session_id.bucket(), message.content.as_str()));
        let words = read_texts(texts.collect()).await?.into();
        let append = Append { scope: scope.clone(), session_id, messages, words, now, claim: claim.cloned() };
        Ok(Self { new, append, form })
    }

    /// Makes it, or answers it as an earlier one of its kind, inside a transaction.
    pub(super) async fn run(&self, db: &Db) -> Result<Answered<Session>, Failure> {
        let Append { scope, session_id, messages, claim, .. } = &self.append;
        if let Some(record) = claim_first(db, claim.as_ref(), session_id.to_string()).await? {
            return self.replay(db, &record).await;
        }
        let session = self.new.clone().with_messages(scope.project_id, messages);
        check_session_quota(db, &scope.quotas, &session).await?;
        // Of several faults the first is told: what stands before a repeated name may have one of its own.
        let repeated = self.append.first_repeated_name();
        let ns: Vec<usize> = (0..repeated.unwrap_or(messages.len())).collect();
        if !ns.is_empty() {
            scope.quotas.check_messages(ns.len() as u64)?;
        }
        insert_session(db, &session, self.append.stored_bytes()).await?;
        insert_fresh(db, self.form, &self.append.only(&ns), &ns, 0, session.user_id.as_deref()).await?;
        match repeated {
            None => Ok(Answered::first(session)),
            Some(n) => Err(StoreError::ExternalIdTaken { n }.into()),
        }
    }

    async fn replay(&self, db: &Db, record: &IdempotencyRecord) -> Result<Answered<Session>, Failure> {
        let damaged = || StoreError::internal("a record cannot be read");
        let session_id = SessionId::parse(&record.target).ok_or_else(damaged)?;
        let scope = &self.append.scope;
        find_session(db, SELECT_SESSION, scope, session_id).await?.ok_or(StoreError::Gone)?;
        let new = NewSession { session_id, created_at: record.created_at, ..self.new.clone() };
        Ok(Answered::replay(new.with_messages(scope.project_id, &self.append.messages)))
    }
}
