-- Search and embeddings. All of it but embedding_source is derived from messages, or was brought for
-- them, and can be made anew.

-- Lexemes of the latest texts, which are not in message_terms yet: to add some hundred at once costs
-- FTS5 a tenth of adding them one by one. A search looks through these rows, too.
create table pending_texts (
    message_no integer primary key,
    created_at integer not null,
    lexemes text not null
) strict;

-- Which message a row of message_terms stands for: its rowid is text_no. It rises with what is
-- indexed, which message_no does not, and FTS5 writes rising rowids in one piece. It is never given
-- twice: what stood there may still have words in the index.
create table message_texts (
    text_no integer primary key autoincrement,
    message_no integer not null unique,
    created_at integer not null
) strict;

-- The words of live messages, as core's analyser makes them: a row is a list of lexemes with a space
-- between. Every other character belongs to a lexeme.
create virtual table message_terms using fts5 (
    lexemes,
    content = '',
    detail = none,
    columnsize = 0,
    tokenize = "ascii tokenchars '!""#$%&''()*+,-./:;<=>?@[\]^_`{|}~'"
);
-- Words that are deleted leave the index then and there, not some day with a merge.
insert into message_terms (message_terms, rank) values ('secure-delete', 1);

-- Every word of message_terms with the rows that have it: a walk over it can be stopped at any row.
create virtual table message_words using fts5vocab (message_terms, instance);

-- Lexemes of texts that are gone: nobody finds them any more, and they leave message_terms a few at a
-- time, for each is sought there. Long texts have several rows, one after the other.
create table deleted_terms (
    deleted_no integer primary key,
    text_no integer not null,
    lexemes text not null
) strict;

-- One row: what made message_terms.
create table text_index (
    only_row integer primary key check (only_row = 1),
    analyser_version integer not null
) strict;

-- What is being made anew, and the last message that was looked at.
create table reindexes (
    derived text primary key,
    position integer not null
) strict, without rowid;

create table embedding_models (
    model_no integer primary key,
    project_id blob not null references projects (project_id),
    model text not null,
    dimensions integer not null
) strict;

create unique index embedding_models_project on embedding_models (project_id, model);
create index embedding_models_model on embedding_models (model);

-- Whose vectors stand together: those of one user, or of all sessions without one (''). generation
-- changes whenever a vector of the owner is taken away, so that a copy in memory knows its age.
create table embedding_owners (
    owner_no integer primary key,
    project_id blob not null references projects (project_id),
    user_id text not null,
    generation integer not null
) strict;

create unique index embedding_owners_user on embedding_owners (project_id, user_id);

-- A vector: 32-bit floats, little-endian. Long texts have several parts, from 0. The embedding source
-- made it, or somebody brought it: then it goes only with its message. No number is given twice, so that
-- a copy in memory can tell which are gone.
create table message_embeddings (
    embedding_no integer primary key autoincrement,
    owner_no integer not null,
    model_no integer not null,
    message_no integer not null,
    part integer not null,
    is_made integer not null,
    vector blob not null
) strict;

create unique index message_embeddings_message on message_embeddings (message_no, model_no, part);
create index message_embeddings_owner on message_embeddings (model_no, owner_no);
create index message_embeddings_made on message_embeddings (model_no) where is_made = 1;

-- Messages that wait for vectors. One that is lent is due again when its lease ends. queued_at is
-- null for those that a reindex or an import queued.
create table embedding_jobs (
    message_no integer primary key,
    project_id blob not null,
    version integer not null,
    attempts integer not null,
    due_at integer not null,
    is_backfill integer not null,
    queued_at integer,
    parked_reason text
) strict;

create index embedding_jobs_due on embedding_jobs (is_backfill, due_at) where parked_reason is null;
create index embedding_jobs_waiting on embedding_jobs (project_id, queued_at) where parked_reason is null;
create index embedding_jobs_parked on embedding_jobs (project_id, due_at) where parked_reason is not null;

-- One row, once a source was set: the model that makes new vectors, and the one that is searched.
create table embedding_source (
    only_row integer primary key check (only_row = 1),
    model text not null,
    serving text not null
) strict;

-- Models that were the source's and whose vectors, if it made them, are to be removed.
create table retired_embedding_models (
    model text primary key
) strict, without rowid;
