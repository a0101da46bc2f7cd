-- The base schema. Times are microseconds since the Unix epoch, UTC.
--
-- Every table of a session's rows begins its keys with `bucket`, the low 16 bits of the session's
-- id as the application gives them: a database that is sharded by it keeps a session, and all
-- sessions of one user, on one node. There are no foreign keys between these tables: a write
-- holds its session's row, which proves that it exists. Texts that are compared are in "C": bytes.

-- One row: what belongs to the installation itself.
create table installation (
    only_row smallint primary key check (only_row = 1),
    cursor_secret bytea not null check (octet_length(cursor_secret) = 32),
    created_at bigint not null
);

create table projects (
    project_id uuid primary key,
    name text collate "C" not null unique,
    created_at bigint not null
);

create table api_keys (
    key_id text collate "C" primary key,
    project_id uuid not null references projects (project_id),
    name text not null,
    digest bytea not null check (octet_length(digest) = 32),
    scopes text not null,
    user_id text collate "C",
    created_at bigint not null,
    expires_at bigint,
    revoked_at bigint,
    last_used_at bigint
);

-- No index stands on what an append changes, and pages keep room for another version of each row:
-- an append is then a heap-only update.
create table sessions (
    bucket smallint not null,
    session_id uuid not null,
    project_id uuid not null,
    user_id text collate "C",
    session_name text not null,
    is_favorite boolean not null,
    metadata text not null,
    external_id text collate "C",
    last_seq bigint not null,
    message_count bigint not null,
    token_count bigint,
    version bigint not null,
    created_at bigint not null,
    updated_at bigint not null,
    last_message_at bigint,
    -- Whole hours of updated_at and of the last activity. They are indexed where the exact times
    -- are not: an append then changes no indexed column but once an hour.
    updated_hour bigint not null,
    active_hour bigint not null,
    deleted_at bigint,
    forked_from uuid,
    primary key (bucket, session_id)
) with (fillfactor = 50);

create unique index sessions_external_id on sessions (bucket, project_id, external_id, coalesce(user_id, ''))
    where external_id is not null and deleted_at is null;
create index sessions_user_created on sessions (bucket, project_id, user_id, created_at, session_id)
    where deleted_at is null;
create index sessions_created on sessions (project_id, created_at, session_id)
    where deleted_at is null;
create index sessions_updated_hour on sessions (project_id, updated_hour)
    where deleted_at is null;
create index sessions_active_hour on sessions (project_id, active_hour)
    where deleted_at is null;
-- Exports walk a project in the order of its ids, tombstones included.
create index sessions_project on sessions (project_id, session_id);

-- Derived: the top-level scalars of each live session's metadata, for filters. A pair is its
-- SHA-256, for keys and values are longer than an index holds.
create table session_metadata (
    bucket smallint not null,
    session_id uuid not null,
    project_id uuid not null,
    pair_digest bytea not null check (octet_length(pair_digest) = 32),
    primary key (bucket, session_id, pair_digest)
);

create index session_metadata_pair on session_metadata (project_id, pair_digest, session_id);

create table messages (
    bucket smallint not null,
    session_id uuid not null,
    seq bigint not null,
    message_id uuid not null,
    parent_id uuid,
    role text not null,
    kind text not null,
    status text not null,
    content text not null,
    payload text,
    metadata text not null,
    context text,
    external_id text collate "C",
    token_count bigint,
    version bigint not null,
    created_at bigint not null,
    updated_at bigint not null,
    deleted_at bigint,
    primary key (bucket, session_id, seq)
);

create unique index messages_message_id on messages (bucket, message_id);
create unique index messages_external_id on messages (bucket, session_id, external_id)
    where external_id is not null and deleted_at is null;

-- Deleted sessions whose messages are still to be blanked, and up to which place they are.
create table session_erasures (
    bucket smallint not null,
    session_id uuid not null,
    erased_seq bigint not null,
    primary key (bucket, session_id)
);
