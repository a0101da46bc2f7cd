//! Search by meaning: every vector that may count is compared, so the answer is exact.

use std::collections::HashSet;

use chatstore_core::embeddings::VectorQuery;
use chatstore_core::search::{RankedMessage, SearchFilter};
use chatstore_core::store::{Scope, StoreError};
use rusqlite::{Row, params};

use super::cache::{Matrix, VectorCache};
use super::candidates::{Candidates, session_no};
use super::nearness::{Nearness, length};
use crate::embeddings::vectors::{SELECT_MODEL, model_row, read_blob, wrong_length};
use crate::messages::message_no;
use crate::reader::Reader;
use crate::writer::Failure;

const SELECT_OWNER_OF_USER: &str =
    "select owner_no, generation from embedding_owners where project_id = ?1 and user_id = ?2";
const LIST_OWNERS: &str = "select owner_no, generation from embedding_owners where project_id = ?1";
const LIST_VECTORS_OF_OWNER: &str = "select embedding_no, message_no, vector from message_embeddings
    where model_no = ?1 and owner_no = ?2 and embedding_no > ?3 order by embedding_no";
/// Out of the index alone.
const LIST_EMBEDDING_NOS: &str = "select embedding_no from message_embeddings
    where model_no = ?1 and owner_no = ?2 and embedding_no <= ?3 order by embedding_no";
const LIST_VECTORS_OF_SESSION: &str = "select embedding_no, message_no, vector from message_embeddings
    where message_no > ?1 and message_no < ?2 and model_no = ?3";

#[cfg(test)]
pub(super) const STATEMENTS: &[&str] = &[
    SELECT_MODEL,
    SELECT_OWNER_OF_USER,
    LIST_OWNERS,
    LIST_VECTORS_OF_OWNER,
    LIST_EMBEDDING_NOS,
    LIST_VECTORS_OF_SESSION,
];

/// A score and the message it is of.
type Scored = (f64, i64);

/// Whose vectors stand together, and its generation.
struct Owner {
    owner_no: i64,
    generation: i64,
}

pub(super) fn search(
    reader: &Reader,
    cache: &VectorCache,
    scope: &Scope,
    query: &VectorQuery,
    filter: &SearchFilter,
    limit: usize,
) -> Result<Vec<RankedMessage>, Failure> {
    let model = reader.query_row(SELECT_MODEL, params![scope.project_id.as_bytes(), query.model], model_row)?;
    let Some((model_no, dimensions)) = model else {
        return Ok(Vec::new());
    };
    if query.vector.dimensions() != dimensions {
        return Err(wrong_length(dimensions).into());
    }
    if limit == 0 || filter.contradicts(scope) {
        return Ok(Vec::new());
    }
    let mut scan = Scan { reader, cache, nearness: Nearness::new(query), model_no, dimensions, scores: Vec::new() };
    match (filter.session_id, filter.user(scope)) {
        (Some(session_id), _) => match session_no(reader, scope, filter, session_id)? {
            Some(session_no) => scan.session(session_no)?,
            None => return Ok(Vec::new()),
        },
        (None, Some(user_id)) => {
            let params = params![scope.project_id.as_bytes(), user_id];
            if let Some(owner) = reader.query_row(SELECT_OWNER_OF_USER, params, owner_row)? {
                scan.owner(&owner, false)?;
            }
        }
        (None, None) => {
            let params = params![scope.project_id.as_bytes()];
            for owner in reader.query(LIST_OWNERS, params, owner_row, |_| size_of::<Owner>())? {
                // What is searched a whole project at a time takes nothing from users' memory.
                scan.owner(&owner, true)?;
            }
        }
    }
    nearest(Candidates::new(reader, scope, filter, false), scan.scores, limit)
}

fn owner_row(row: &Row<'_>) -> rusqlite::Result<Owner> {
    Ok(Owner { owner_no: row.get(0)?, generation: row.get(1)? })
}

/// One search's walk over vectors.
struct Scan<'a> {
    reader: &'a Reader,
    cache: &'a VectorCache,
    nearness: Nearness<'a>,
    model_no: i64,
    dimensions: usize,
    scores: Vec<Scored>,
}

impl Scan<'_> {
    fn session(&mut self, session_no: i64) -> Result<(), Failure> {
        let params = params![message_no(session_no, 0), message_no(session_no + 1, 0), self.model_no];
        let (reader, dimensions) = (self.reader, self.dimensions);
        visit_vectors(reader, dimensions, LIST_VECTORS_OF_SESSION, params, |_, message_no, vector| {
            self.scores.push((self.nearness.score(vector, length(vector)), message_no));
        })
    }

    /// What is in memory of an owner's vectors, without those that were taken away since. One that
    /// knows more than this search may see is of no use.
    fn kept(&self, owner: &Owner) -> Result<Option<Matrix>, Failure> {
        let kept = self.cache.get((owner.owner_no, self.model_no));
        let Some(mut matrix) = kept.filter(|matrix| matrix.generation() <= owner.generation) else {
            return Ok(None);
        };
        if matrix.generation() < owner.generation {
            let params = params![self.model_no, owner.owner_no, matrix.last_embedding_no];
            let left = self.reader.query(LIST_EMBEDDING_NOS, params, |row| row.get(0), |_| size_of::<i64>())?;
            matrix.retain(owner.generation, &left);
        }
        Ok(Some(matrix))
    }

    /// Compares what is in memory, then the rows that have come since.
    fn owner(&mut self, owner: &Owner, beside_others: bool) -> Result<(), Failure> {
        let key = (owner.owner_no, self.model_no);
        let mut matrix = self.kept(owner)?.unwrap_or_else(|| Matrix::new(owner.generation));
        let known = matrix.last_embedding_no;
        self.reader.spend(matrix.bytes())?;
        matrix.visit(self.dimensions, |message_no, vector, length| {
            self.scores.push((self.nearness.score(vector, length), message_no));
        });
        let room = self.cache.room(key, beside_others);
        let mut keeps = true;
        let params = params![self.model_no, owner.owner_no, known];
        let (reader, dimensions) = (self.reader, self.dimensions);
        visit_vectors(reader, dimensions, LIST_VECTORS_OF_OWNER, params, |embedding_no, message_no, vector| {
            self.scores.push((self.nearness.score(vector, length(vector)), message_no));
            if keeps {
                matrix.push(embedding_no, message_no, vector);
                keeps = matrix.bytes() <= room;
                if !keeps {
                    matrix = Matrix::default();
                }
            }
        })?;
        if keeps {
            self.cache.put(key, matrix);
        }
        Ok(())
    }
}

fn visit_vectors(
    reader: &Reader,
    dimensions: usize,
    sql: &str,
    params: impl rusqlite::Params,
    mut visit: impl FnMut(i64, i64, &[f32]),
) -> Result<(), Failure> {
    let mut vector = Vec::with_capacity(dimensions);
    reader.visit(sql, params, |row| {
        let blob = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
        reader.spend(blob.len())?;
        read_blob(blob, &mut vector);
        if vector.len() != dimensions {
            return Err(StoreError::internal("a vector has another length than its model").into());
        }
        visit(row.get(0)?, row.get(1)?, &vector);
        Ok(())
    })
}

/// The best `limit` of those that may be found: scores are put in order only as far as needed.
fn nearest(
    mut candidates: Candidates<'_>,
    mut scores: Vec<Scored>,
    limit: usize,
) -> Result<Vec<RankedMessage>, Failure> {
    let mut found: Vec<RankedMessage> = Vec::new();
    let mut seen = HashSet::new();
    let (mut ordered, mut step) = (0, limit.saturating_mul(2).max(64));
    for at in 0..scores.len() {
        if at == ordered {
            let rest = &mut scores[ordered..];
            let part = step.min(rest.len());
            if part < rest.len() {
                rest.select_nth_unstable_by(part, |a, b| b.0.total_cmp(&a.0));
            }
            rest[..part].sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
            ordered += part;
            step *= 2;
        }
        let (score, message_no) = scores[at];
        // All that are as near as the last are looked at: their order is not that of scores.
        if found.get(limit - 1).is_some_and(|last| score < last.score) {
            break;
        }
        if seen.insert(message_no)
            && let Some(candidate) = candidates.find(message_no)?
        {
            found.push(RankedMessage { score, ..candidate.message });
        }
    }
    found.sort_unstable_by(RankedMessage::order);
    found.truncate(limit);
    Ok(found)
}
