-- What search and embeddings derive from messages. Rows are written and removed in the transaction
-- of their message, so they need no look at it to be right.

-- The words of each live message, as lexemes that name project and bucket.
create table message_texts (
    bucket smallint not null,
    session_id uuid not null,
    seq bigint not null,
    project_id uuid not null,
    created_at bigint not null,
    lexemes tsvector not null,
    primary key (bucket, session_id, seq)
);

-- What comes in is kept in a short list first, which takes less work than a place for each lexeme;
-- a search reads that list, too.
create index message_texts_lexemes on message_texts using gin (lexemes)
    with (fastupdate = on, gin_pending_list_limit = 256);

-- One row: the version of the analyser that made the lexemes.
create table text_index (
    only_row smallint primary key check (only_row = 1),
    analyser_version bigint not null
);

-- The length of a model's vectors is that of its first. The id is made from project and name.
create table embedding_models (
    project_id uuid not null,
    model_id uuid not null,
    model text collate "C" not null,
    dimensions integer not null,
    primary key (project_id, model_id)
);

create index embedding_models_model on embedding_models (model);

-- Vectors up to 2,000 numbers stay in their row: a search compares all of a user's. Those that the
-- source made go with its model; those that callers brought stay.
create table message_embeddings (
    bucket smallint not null,
    session_id uuid not null,
    seq bigint not null,
    model_id uuid not null,
    part smallint not null,
    project_id uuid not null,
    user_id text collate "C",
    message_id uuid not null,
    created_at bigint not null,
    dimensions integer not null,
    is_made boolean not null,
    embedding vector not null,
    primary key (bucket, session_id, seq, model_id, part)
) with (toast_tuple_target = 8160);

-- The condition holds for all. It keeps this index from statements that name a message, where it would
-- look as good as the key to a planner that does not know the table yet.
create index message_embeddings_user on message_embeddings (bucket, project_id, user_id, model_id)
    where dimensions > 0;
create index message_embeddings_model on message_embeddings (project_id, model_id, is_made);

-- Messages that wait for their vectors. A job on loan is due again when the loan ends; `version`
-- and `attempts` tell whether an outcome is that of the last loan. `queued_at` is null for those that
-- a reindex or an import queued.
create table embedding_jobs (
    bucket smallint not null,
    session_id uuid not null,
    seq bigint not null,
    message_id uuid not null,
    project_id uuid not null,
    version bigint not null,
    attempts integer not null,
    due_at bigint not null,
    queued_at bigint,
    is_backfill boolean not null,
    parked_reason text,
    primary key (bucket, session_id, seq)
);

create index embedding_jobs_due on embedding_jobs (is_backfill, due_at) where parked_reason is null;
create index embedding_jobs_waiting on embedding_jobs (project_id, queued_at) where parked_reason is null;
create index embedding_jobs_parked on embedding_jobs (project_id, due_at) where parked_reason is not null;

-- One row, once a source was set: the model that makes new vectors, and the one that is searched.
create table embedding_source (
    only_row smallint primary key check (only_row = 1),
    model text collate "C" not null,
    serving text collate "C" not null
);

-- Models that were the source's; what it made with them is to be removed.
create table retired_embedding_models (
    model text collate "C" primary key
);

-- What is being made anew from all messages: after which of them it goes on.
create table reindexes (
    derived text primary key,
    bucket smallint not null,
    session_id uuid not null,
    seq bigint not null
);

-- Messages that are there already become searchable.
insert into reindexes (derived, bucket, session_id, seq)
    select 'text', -32768, '00000000-0000-0000-0000-000000000000', 0 where exists (select from messages);
