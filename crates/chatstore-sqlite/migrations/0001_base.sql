-- The base schema. Times are microseconds since the Unix epoch, UTC; ids are UUIDs as 16 bytes.

-- One row: what belongs to the installation itself.
create table installation (
    only_row integer primary key check (only_row = 1),
    cursor_secret blob not null check (length(cursor_secret) = 32),
    created_at integer not null
) strict;

create table projects (
    project_id blob primary key,
    name text not null unique,
    created_at integer not null
) strict, without rowid;

create table api_keys (
    key_id text primary key,
    project_id blob not null references projects (project_id),
    name text not null,
    digest blob not null check (length(digest) = 32),
    scopes text not null,
    user_id text,
    created_at integer not null,
    expires_at integer,
    revoked_at integer,
    last_used_at integer
) strict, without rowid;

-- session_no is private to this engine: a short key for everything that hangs on a session. Rows
-- are never removed (a tombstone stays), so it is never given twice.
create table sessions (
    session_no integer primary key,
    session_id blob not null unique,
    project_id blob not null references projects (project_id),
    user_id text,
    session_name text not null,
    is_favorite integer not null,
    metadata text not null,
    external_id text,
    last_seq integer not null,
    message_count integer not null,
    token_count integer,
    version integer not null,
    created_at integer not null,
    updated_at integer not null,
    last_message_at integer,
    -- Whole hours of updated_at and of the last activity. They are indexed where the exact times
    -- are not: an append then touches no index of this table but once an hour.
    updated_hour integer not null,
    active_hour integer not null,
    deleted_at integer,
    forked_from blob
) strict;

create unique index sessions_project on sessions (project_id, session_id);
create index sessions_created on sessions (project_id, created_at, session_id)
    where deleted_at is null;
create index sessions_user_created on sessions (project_id, user_id, created_at, session_id)
    where deleted_at is null;
create index sessions_updated_hour on sessions (project_id, updated_hour)
    where deleted_at is null;
create index sessions_active_hour on sessions (project_id, active_hour)
    where deleted_at is null;
create unique index sessions_external_id on sessions (project_id, external_id, coalesce(user_id, ''))
    where external_id is not null and deleted_at is null;

-- Derived: the top-level scalars of each live session's metadata, for filters.
create table session_metadata (
    project_id blob not null,
    key text not null,
    value text not null,
    session_no integer not null,
    primary key (project_id, key, value, session_no)
) strict, without rowid;

-- message_no is session_no * 2^32 + seq: the table itself stands in the order of its sessions and
-- their seq, so a page of messages is one short walk, and no index of (session, seq) is needed.
create table messages (
    message_no integer primary key,
    message_id blob not null unique,
    parent_id blob,
    role text not null,
    kind text not null,
    status text not null,
    content text not null,
    payload text,
    metadata text not null,
    context text,
    external_id text,
    token_count integer,
    version integer not null,
    created_at integer not null,
    updated_at integer not null,
    deleted_at integer
) strict;

create unique index messages_external_id on messages (message_no >> 32, external_id)
    where external_id is not null and deleted_at is null;

-- Deleted sessions whose messages are still to be blanked, and up to which place they are.
create table session_erasures (
    session_no integer primary key,
    erased_seq integer not null
) strict;
