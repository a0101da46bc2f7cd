-- What the first of several equal requests did, for as long as it may come again. Nothing that was said stands here.

-- place tells requests apart that are known by their bodies alone; it is 0 where a key names the request. target is what
-- was made, or the session that was appended to; places are those of the messages in the answer.
create table idempotency_records (
    bucket smallint not null,
    project_id uuid not null,
    claim_id bytea not null check (octet_length(claim_id) = 32),
    place bigint not null,
    fingerprint bytea not null check (octet_length(fingerprint) = 32),
    target text collate "C" not null,
    places text collate "C" not null,
    retry integer not null,
    created_at bigint not null,
    expires_at bigint not null,
    primary key (bucket, project_id, claim_id, place)
);

create index idempotency_records_expires on idempotency_records (expires_at);
