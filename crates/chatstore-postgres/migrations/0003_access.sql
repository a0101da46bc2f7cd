-- Projects and keys with limits of their own, the audit log, and how many bytes each session holds.

-- Counting the bytes at the end takes as long as there are messages.
set local statement_timeout = 0;

alter table projects
    -- JSON.
    add column settings text not null default '{}',
    add column token_secret bytea check (octet_length(token_secret) = 32),
    add column previous_token_secret bytea check (octet_length(previous_token_secret) = 32),
    add column previous_token_secret_expires_at bigint,
    add column updated_at bigint,
    -- From then on it is absent, its name is U+0001 and its id, and nothing of what it said is left here.
    add column deleted_at bigint,
    -- Since when nothing can be left in it.
    add column erased_at bigint;
update projects set updated_at = created_at;
alter table projects alter column updated_at set not null;

create index projects_created on projects (created_at, project_id) where deleted_at is null;
create index projects_erasable on projects (project_id) where deleted_at is not null and erased_at is null;

-- No index stands on what a use of a key changes.
alter table api_keys
    -- The digest before the last rotation, and from when on it is refused.
    add column previous_digest bytea check (octet_length(previous_digest) = 32),
    add column previous_expires_at bigint,
    -- JSON.
    add column settings text not null default '{}',
    add column updated_at bigint,
    add constraint api_keys_previous check (num_nulls(previous_digest, previous_expires_at) in (0, 2));
update api_keys set updated_at = created_at;
alter table api_keys alter column updated_at set not null;

create index api_keys_created on api_keys (created_at, key_id);
create index api_keys_project on api_keys (project_id, created_at, key_id);

-- What was done by whom. It only grows: the server's role may neither change nor delete a row. Ids grow with time.
create table audit_events (
    event_id uuid primary key,
    project_id uuid not null,
    created_at bigint not null,
    actor text not null,
    actor_id text collate "C",
    user_id text,
    action text collate "C" not null,
    target_id text,
    outcome text not null,
    address text,
    request_id text
);

create index audit_events_project on audit_events (project_id, event_id);
create index audit_events_action on audit_events (action, event_id);
create index audit_events_project_action on audit_events (project_id, action, event_id);
create index audit_events_actor on audit_events (actor_id, event_id);
create index audit_events_project_actor on audit_events (project_id, actor_id, event_id);

-- Bytes of UTF-8 in the contents, payloads, metadata and contexts of its messages that are not deleted. No index
-- stands on it: every append changes it.
alter table sessions add column stored_bytes bigint not null default 0;
update sessions s set stored_bytes = m.bytes
    from (
        select bucket, session_id, sum(octet_length(content)::bigint + coalesce(octet_length(payload), 0)
            + octet_length(metadata) + coalesce(octet_length(context), 0)) as bytes
        from messages where deleted_at is null group by bucket, session_id) m
    where s.bucket = m.bucket and s.session_id = m.session_id and s.deleted_at is null;
