-- Who may do what, and how much: settings and secrets of projects, rotation and settings of keys, the
-- audit log, and the bytes that quotas count.

-- A deleted project keeps its row: the name is then U+0001 and its id, settings and secrets are gone. erased_at is
-- when its last session was deleted.
alter table projects add column settings text not null default '{}';
alter table projects add column token_secret blob check (length(token_secret) = 32);
alter table projects add column previous_token_secret blob check (length(previous_token_secret) = 32);
alter table projects add column previous_token_secret_expires_at integer;
alter table projects add column updated_at integer not null default 0;
alter table projects add column deleted_at integer;
alter table projects add column erased_at integer;
update projects set updated_at = created_at;

create index projects_created on projects (created_at, project_id) where deleted_at is null;
create index projects_erasable on projects (project_id) where deleted_at is not null and erased_at is null;

alter table api_keys add column previous_digest blob check (length(previous_digest) = 32);
alter table api_keys add column previous_expires_at integer;
alter table api_keys add column settings text not null default '{}';
alter table api_keys add column updated_at integer not null default 0;
update api_keys set updated_at = created_at;

create index api_keys_created on api_keys (created_at, key_id);
create index api_keys_project on api_keys (project_id, created_at, key_id);

-- Bytes of UTF-8 in the content, payload, metadata and context of the session's live messages.
alter table sessions add column stored_bytes integer not null default 0;
update sessions set stored_bytes = (
    select coalesce(sum(octet_length(m.content) + coalesce(octet_length(m.payload), 0)
        + octet_length(m.metadata) + coalesce(octet_length(m.context), 0)), 0)
    from messages m
    where m.message_no > sessions.session_no << 32 and m.message_no < (sessions.session_no + 1) << 32
        and m.deleted_at is null)
where deleted_at is null;

-- It outlives what it tells of, so it refers to nothing.
create table audit_events (
    event_id blob primary key,
    project_id blob not null,
    created_at integer not null,
    actor text not null,
    actor_id text,
    user_id text,
    action text not null,
    target_id text,
    outcome text not null,
    address text,
    request_id text
) strict, without rowid;

create index audit_events_project on audit_events (project_id, event_id);
create index audit_events_project_action on audit_events (project_id, action, event_id);
create index audit_events_action on audit_events (action, event_id);
create index audit_events_actor on audit_events (actor_id, event_id) where actor_id is not null;
