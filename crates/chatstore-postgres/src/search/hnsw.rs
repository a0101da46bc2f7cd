//! Indexes of vectors, one for each dimension: built by the owner of the tables, used by searches in
//! whole projects.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chatstore_core::ids::ProjectId;
use chatstore_core::store::StoreError;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::connect::Target;
use crate::connect::server::ServerReport;
use crate::error::{OpenError, open_error, open_error_at};
use crate::migrate::require_current;
use crate::params::params;
use crate::pool::Pool;

/// Fewer vectors of a model are compared one by one.
pub(crate) const FEW_VECTORS_MAX: i64 = 5_000;
/// Vectors that an index is asked for at least: the more, the fewer of the nearest are missed.
pub(super) const CANDIDATES_MIN: usize = 100;
/// What pgvector allows for `hnsw.ef_search`.
const EF_SEARCH_MAX: usize = 1_000;
/// How long the answer is believed whether an index serves a model.
const BELIEVED_FOR: Duration = Duration::from_secs(30);
/// Models whose answers are kept at most.
const BELIEVED_MAX: usize = 1_000;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const SELECT_IS_SERVED: &str = "select exists (
        select from pg_catalog.pg_index i where i.indexrelid = to_regclass($1) and i.indisvalid)
    and (select count(*) from (
        select from message_embeddings e where e.project_id = $2 and e.model_id = $3 limit $4) e) >= $4";
/// Lengths of which some project has a model of many vectors.
const SELECT_DIMENSIONS: &str = "select distinct d.dimensions from embedding_models d
    where (select count(*) from (select from message_embeddings e
        where e.project_id = d.project_id and e.model_id = d.model_id limit $1) e) >= $1
    order by d.dimensions";
/// Whether the index is there, is whole, and is being built at this moment.
const SELECT_STATE: &str = "select i.indisvalid,
        exists (select from pg_catalog.pg_stat_progress_create_index p where p.index_relid = i.indexrelid)
    from pg_catalog.pg_index i where i.indexrelid = to_regclass($1)";
/// Building takes as long as it takes.
const SET_NO_LIMITS: &str =
    "set statement_timeout = 0; set lock_timeout = 0; set idle_in_transaction_session_timeout = 0";

#[cfg(test)]
pub(crate) const STATEMENTS: &[&str] = &[SELECT_IS_SERVED, SELECT_DIMENSIONS, SELECT_STATE];

/// What an index holds of a vector: half precision, and its direction alone, so that no number
/// leaves the range of a half.
pub(super) fn indexed(vector: &str, dimensions: i32) -> String {
    format!("l2_normalize({vector})::halfvec({dimensions})")
}

fn index_name(dimensions: i32) -> String {
    format!("message_embeddings_hnsw_{dimensions}")
}

/// The settings under which an index gives `candidates` vectors: it goes on where others than the
/// project's stand in between, and the planner has no choice but the index.
pub(super) fn settings(candidates: usize) -> String {
    let ef_search = candidates.clamp(CANDIDATES_MIN, EF_SEARCH_MAX);
    format!(
        "set local hnsw.iterative_scan = relaxed_order; set local hnsw.ef_search = {ef_search}; \
         set local enable_sort = off; set local enable_seqscan = off"
    )
}

/// Which models are served by an index, as far as was asked lately.
#[derive(Default)]
pub(crate) struct Indexes {
    believed: Mutex<HashMap<Uuid, (Instant, bool)>>,
}

impl Indexes {
    /// Whether there is an index for a model of many vectors.
    pub(super) async fn serve(
        &self,
        pool: &Pool,
        project_id: ProjectId,
        model_id: Uuid,
        dimensions: i32,
    ) -> Result<bool, StoreError> {
        let now = Instant::now();
        let believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner).get(&model_id).copied();
        if let Some((_, serves)) = believed.filter(|(since, _)| now - *since < BELIEVED_FOR) {
            return Ok(serves);
        }
        let input = (index_name(dimensions), project_id.uuid(), model_id);
        let serves = pool
            .read(input, async |db, input| {
                let params = params![input.0.as_str(), input.1, input.2, FEW_VECTORS_MAX];
                let row = db.query_opt(SELECT_IS_SERVED, params).await?;
                Ok(row.map_or(Ok(false), |row| row.try_get(0))?)
            })
            .await?;
        let mut believed = self.believed.lock().unwrap_or_else(PoisonError::into_inner);
        if believed.len() >= BELIEVED_MAX {
            believed.clear();
        }
        believed.insert(model_id, (now, serves));
        Ok(serves)
    }
}

/// Builds the indexes that searches by vectors in a whole project use, one for each length of
/// vectors of which some project has many, in the database at `url`, while it is in use; those that are there are left as
/// they are. The role must own the tables. Tells `report` what it does, a sentence each, and returns
/// the names of what it built.
///
/// # Errors
/// A sentence for the operator: the database cannot be reached or lacks migrations, or the role is
/// not the owner's.
pub async fn build_vector_indexes(url: &str, mut report: impl FnMut(&str)) -> Result<Vec<String>, OpenError> {
    let target = Target::parse(url)?;
    let client = target.connect(CONNECT_TIMEOUT).await?;
    let shown = target.shown();
    ServerReport::read(&client, shown).await?;
    require_current(&client, shown).await?;
    let at = open_error_at(shown);
    client.batch_execute(SET_NO_LIMITS).await.map_err(&at)?;
    let mut built = Vec::new();
    for row in client.query_typed(SELECT_DIMENSIONS, params![FEW_VECTORS_MAX]).await.map_err(&at)? {
        let dimensions: i32 = row.try_get(0).map_err(&at)?;
        let name = index_name(dimensions);
        match state(&client, &name).await.map_err(&at)? {
            State::Whole => report(&format!("the index {name} is there")),
            State::Building => report(&format!("the index {name} is being built by another process")),
            State::Absent => {
                build(&client, &name, dimensions, &mut report).await.map_err(|error| refusal(shown, &error))?;
                built.push(name);
            }
            State::Broken => {
                report(&format!("the index {name} was left unfinished and is dropped"));
                let drop = format!("drop index concurrently if exists {name}");
                client.batch_execute(&drop).await.map_err(|error| refusal(shown, &error))?;
                build(&client, &name, dimensions, &mut report).await.map_err(|error| refusal(shown, &error))?;
                built.push(name);
            }
        }
    }
    Ok(built)
}

/// How far an index is.
enum State {
    Absent,
    Whole,
    Building,
    Broken,
}

async fn state(client: &Client, name: &str) -> Result<State, tokio_postgres::Error> {
    let rows = client.query_typed(SELECT_STATE, params![name]).await?;
    let Some(row) = rows.first() else { return Ok(State::Absent) };
    Ok(match (row.try_get(0)?, row.try_get(1)?) {
        (true, _) => State::Whole,
        (false, true) => State::Building,
        (false, false) => State::Broken,
    })
}

async fn build(
    client: &Client,
    name: &str,
    dimensions: i32,
    report: &mut impl FnMut(&str),
) -> Result<(), tokio_postgres::Error> {
    report(&format!("building the index {name}"));
    let began = Instant::now();
    let create = format!(
        "create index concurrently {name} on message_embeddings using hnsw (({}) halfvec_cosine_ops) \
         where dimensions = {dimensions}",
        indexed("embedding", dimensions)
    );
    client.batch_execute(&create).await?;
    report(&format!("the index {name} was built in {} s", began.elapsed().as_secs()));
    Ok(())
}

fn refusal(shown: &str, error: &tokio_postgres::Error) -> OpenError {
    if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) {
        return OpenError::new(format!(
            "{shown} lets nobody but the owner of its tables build indexes; name that role in MIGRATE_DATABASE_URL"
        ));
    }
    open_error(shown, error)
}
