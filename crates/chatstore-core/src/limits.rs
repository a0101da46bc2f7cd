//! Every limit of the product that no setting changes, in one place.

/// Most items a page can hold; a larger `limit` is cut to this.
pub const PAGE_ITEMS_MAX: u32 = 100;
/// Items a page holds when the request names no `limit`.
pub const PAGE_ITEMS_DEFAULT: u32 = 20;
/// Deepest `skip`/`offset`; past it a cursor is cheaper and the request is refused.
pub const OFFSET_MAX: u64 = 10_000;
/// Most messages one append may carry.
pub const APPEND_MESSAGES_MAX: usize = 1_000;
/// Most conversations one import request may carry.
pub const IMPORT_SESSIONS_MAX: usize = 1_000;
/// Most messages one import request may carry, over all its conversations.
pub const IMPORT_MESSAGES_MAX: usize = 10_000;
/// Most objects and arrays in the upper levels of a body: what is read into memory of its own.
pub const BODY_CONTAINERS_MAX: usize = 50_000;
/// Faults that one answer lists.
pub const FIELD_ERRORS_MAX: usize = 100;
/// Bytes of all bodies that are being received at once.
pub const BODIES_BYTES_MAX: usize = 256 << 20;
/// Bytes of a session's name.
pub const SESSION_NAME_BYTES_MAX: usize = 4_096;
/// Bytes of a user id.
pub const USER_ID_BYTES_MAX: usize = 256;
/// Bytes of a role.
pub const ROLE_BYTES_MAX: usize = 256;
/// Bytes of a message's kind.
pub const KIND_BYTES_MAX: usize = 64;
/// Bytes of an id that a client brought.
pub const EXTERNAL_ID_BYTES_MAX: usize = 256;
/// Bytes of a metadata object.
pub const METADATA_BYTES_MAX: usize = 16 * 1_024;
/// `metadata[key]=value` filters in one request.
pub const METADATA_FILTERS_MAX: usize = 8;
/// Bytes of a project's or key's name.
pub const NAME_BYTES_MAX: usize = 200;
/// Deepest nesting of arrays and objects in a body.
pub const JSON_DEPTH_MAX: usize = 64;
/// Largest token count of one message.
pub const TOKEN_COUNT_MAX: i64 = 1_000_000_000_000;
/// Largest version that an import may bring.
pub const VERSION_MAX: i64 = 1_000_000_000_000_000;
/// Bytes of text after which a page of messages ends early.
pub const PAGE_BYTES_MAX: usize = 16 << 20;
/// Messages of a deleted session that are erased in one transaction.
pub const ERASE_MESSAGES_BATCH: u32 = 500;
/// Numbers of a vector.
pub const VECTOR_DIMENSIONS_MAX: usize = 4_000;
/// Bytes of an embedding model's name.
pub const EMBEDDING_MODEL_BYTES_MAX: usize = 200;
/// Embedding models of one project.
pub const EMBEDDING_MODELS_MAX: usize = 100;
/// Bytes of a search query.
pub const SEARCH_QUERY_BYTES_MAX: usize = 4_096;
/// Words of a search query that count; the rest is ignored.
pub const SEARCH_WORDS_MAX: usize = 64;
/// Most matches that one search ranks.
pub const SEARCH_MATCHES_MAX: usize = 1_000;
/// Matches of each kind that a hybrid search merges.
pub const SEARCH_FUSED_MAX: usize = 200;
/// Nearest messages that are looked at for some that pass what a query excludes or demands.
pub const SEARCH_JUDGED_MAX: usize = 5_000;
/// Bytes of text that one search reads before it leaves older matches out.
pub const SEARCH_BYTES_MAX: usize = 64 << 20;
/// Messages that a hit shows before, and after, itself.
pub const SEARCH_CONTEXT_MAX: u32 = 10;
/// Messages that are looked at in one step of making derived data anew.
pub const REINDEX_MESSAGES_BATCH: u32 = 500;
/// Bytes of text that are lent to a worker at once.
pub const EMBEDDING_CLAIM_BYTES_MAX: usize = 4 << 20;
/// Addresses whose requests are counted in one process, each budget of each rate for itself.
pub const RATE_BUCKETS_ADDRESSES_MAX: usize = 131_072;
/// The same of keys.
pub const RATE_BUCKETS_KEYS_MAX: usize = 65_536;
/// The same of users.
pub const RATE_BUCKETS_USERS_MAX: usize = 65_536;
/// Rates that may stand in one limit.
pub const RATES_MAX: usize = 4;
/// Origins, or ranges of addresses, that one key may be tied to.
pub const KEY_RANGES_MAX: usize = 50;
/// Public keys of one project.
pub const TOKEN_KEYS_MAX: usize = 10;
/// Bytes of a public key in its text form.
pub const TOKEN_KEY_BYTES_MAX: usize = 4_096;
/// Bytes of a user token.
pub const TOKEN_BYTES_MAX: usize = 8_192;
/// Sessions that a user token may be for.
pub const TOKEN_SESSIONS_MAX: usize = 100;
/// Longest life of a user token, in seconds.
pub const TOKEN_SECONDS_MAX: u64 = 86_400;
/// By how many seconds the clock of who signs a token may differ from ours.
pub const TOKEN_SKEW_SECONDS: u64 = 30;
/// Longest time for which a rotated key's old secret may stay valid, in seconds.
pub const ROTATION_GRACE_SECONDS_MAX: u64 = 30 * 86_400;
/// Sessions of a deleted project that are deleted in one transaction.
pub const ERASE_SESSIONS_BATCH: u32 = 100;
/// Audit events that are stored in one transaction.
pub const AUDIT_EVENTS_BATCH_MAX: usize = 1_000;
/// Most visible characters of an `Idempotency-Key`.
pub const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;
/// For how long a key names its request, in seconds.
pub const IDEMPOTENCY_SECONDS: u64 = 86_400;
/// For how long a request is known by its body where a client's library retries it, in seconds.
pub const SDK_RETRY_SECONDS: u64 = 30;
/// How long a request waits for an earlier one of its kind that is not finished, in milliseconds.
pub const IN_FLIGHT_WAIT_MS: u64 = 2_000;
/// Expired records that are deleted in one transaction.
pub const PURGE_RECORDS_BATCH: u32 = 250;
/// Items that the Conversations wire takes at once.
pub const CONVERSATION_ITEMS_MAX: usize = 20;
/// Pairs of a conversation's metadata on that wire.
pub const CONVERSATION_METADATA_PAIRS_MAX: usize = 16;
/// Characters of a key in it.
pub const CONVERSATION_METADATA_KEY_CHARS_MAX: usize = 64;
/// Characters of a value in it.
pub const CONVERSATION_METADATA_VALUE_CHARS_MAX: usize = 512;
/// Bytes of it: as many pairs of as many characters, all of them escaped surrogate pairs.
pub const CONVERSATION_METADATA_BYTES_MAX: usize = 128 * 1_024;
