-- What the first of several equal requests did, for as long as it may come again. Nothing that was said stands here.

-- place tells requests apart that are known by their bodies alone; it is 0 where a key names the request. target is what
-- was made, or the session that was appended to; places are those of the messages in the answer. Rows stand in the order
-- in which they came: only entries of the index by claim, which come in no order, cost a page each.
create table idempotency_records (
    record_no integer primary key,
    project_id blob not null,
    claim_id blob not null check (length(claim_id) = 32),
    place integer not null,
    fingerprint blob not null check (length(fingerprint) = 32),
    target text not null,
    places text not null,
    retry integer not null,
    created_at integer not null,
    expires_at integer not null
) strict;

create unique index idempotency_records_claim on idempotency_records (project_id, claim_id, place);
create index idempotency_records_expires on idempotency_records (expires_at);
