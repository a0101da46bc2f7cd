//! The contract suite: what every engine must do, one check a sentence.
//!
//! A check is a plain `async fn` that gets a fresh store; [`conformance_tests!`](crate::conformance_tests)
//! makes each of them a test in the engine's crate. [`law`] names store methods without a check and
//! checks that no test runs.
#![expect(clippy::unwrap_used, reason = "a check that fails panics")]

pub mod api_keys;
pub mod archive;
pub mod audit;
pub mod embeddings;
pub mod idempotency;
pub mod law;
pub mod messages;
pub mod projects;
pub mod search;
pub mod sessions;
pub mod store;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use crate::clock::{Ctx, Timestamp};
use crate::ids::{ProjectId, SessionId};
use crate::json::RawJson;
use crate::messages::{Message, MessagePage, MessageQuery, NewMessage};
use crate::page::{Order, PageRequest, PageStart};
use crate::projects::Project;
use crate::sessions::{NewSession, Session, SessionQuery};
use crate::store::{Scope, Store, StoreError};

/// Microseconds between two readings of a check's clock.
const STEP_US: i64 = 1_000_000;
/// Microseconds in an hour.
const HOUR_US: i64 = 3_600_000_000;

/// JSON that no parser would write: spaces, a repeated key, numbers beyond a double, escapes.
const ODD_JSON: &str = "{ \"b\" :1.50 ,\n\t\"a\":1e400,\"a\" : [ ] , \"big\":123456789012345678901234567890.10,\
    \"é\":\"\\u00e9\\ud83d\\ude00 😀\",\"n\":null }";
/// Text that is easily damaged.
const ODD_TEXT: &str = "  Grüße \u{1F600}\u{200D} \u{FEFF}e\u{301}\r\n\t\"'; drop table messages; -- % _ \\ ";

/// A fresh store and what a check needs beside it.
pub struct TestStore {
    /// The engine.
    pub store: Arc<dyn Store>,
    /// A clock that moves one second a reading, and ids that repeat.
    pub ctx: Ctx,
    /// All of the default project.
    pub project: Scope,
    /// All of a second project.
    pub other: Scope,
}

/// Makes the second project in a fresh, migrated store.
pub async fn prepare(store: Arc<dyn Store>) -> TestStore {
    let ctx = Ctx::fixed(Timestamp::parse("2026-01-15T12:00:00Z").unwrap(), STEP_US, 7);
    let created_at = ctx.now();
    let project_id = ctx.new_project_id(created_at);
    store.create_project(Project::new(project_id, "other", created_at), None).await.unwrap();
    TestStore { store, ctx, project: Scope::project(ProjectId::DEFAULT), other: Scope::project(project_id) }
}

impl TestStore {
    /// One user's part of the default project.
    fn user(&self, user_id: &str) -> Scope {
        Scope::user(self.project.project_id, user_id)
    }

    /// A plain session to be stored.
    fn new_session(&self, user_id: Option<&str>) -> NewSession {
        let created_at = self.ctx.now();
        let bucket = self.project.bucket(user_id, None, self.ctx.random());
        NewSession {
            session_id: self.ctx.new_session_id(created_at, bucket),
            user_id: user_id.map(str::to_owned),
            session_name: "a session".to_owned(),
            is_favorite: false,
            metadata: RawJson::empty_object(),
            external_id: None,
            created_at,
        }
    }

    /// The session with an id in the bucket of its owner in `scope`, as a caller mints it.
    fn placed(&self, scope: &Scope, new: NewSession) -> NewSession {
        let bucket = scope.bucket(new.user_id.as_deref(), new.external_id.as_deref(), self.ctx.random());
        NewSession { session_id: self.ctx.new_session_id(new.created_at, bucket), ..new }
    }

    async fn create(&self, new: NewSession) -> Session {
        self.store.create_session(&self.project, new, Vec::new(), None).await.unwrap().value
    }

    /// A stored session of no user.
    async fn session(&self) -> Session {
        self.create(self.new_session(None)).await
    }

    /// A stored session of a user.
    async fn session_of(&self, user_id: &str) -> Session {
        self.create(self.new_session(Some(user_id))).await
    }

    /// The session as it stands now.
    async fn reload(&self, session: &Session) -> Session {
        self.store.get_session(&self.project, session.session_id).await.unwrap().unwrap()
    }

    fn new_message(&self, session: &Session, content: &str) -> NewMessage {
        NewMessage::text(self.ctx.new_message_id(self.ctx.now(), session.session_id), "user", content)
    }

    async fn append(&self, session: &Session, new: Vec<NewMessage>) -> Result<Vec<Message>, StoreError> {
        let answered = self.store.append_messages(&self.project, session.session_id, new, self.ctx.now(), None).await;
        answered.map(|answered| answered.value)
    }

    /// Appends one message.
    async fn say(&self, session: &Session, content: &str) -> Message {
        self.append(session, vec![self.new_message(session, content)]).await.unwrap().remove(0)
    }

    async fn list(&self, session: &Session, query: &MessageQuery) -> Result<MessagePage, StoreError> {
        let page = PageRequest { limit: 100, start: PageStart::Offset(0) };
        self.store.list_messages(&self.project, session.session_id, query, &page).await
    }

    /// All messages of a session, first to last, at most 100.
    async fn messages(&self, session: &Session) -> Vec<Message> {
        let query = MessageQuery { order: Order::Asc, ..MessageQuery::default() };
        self.list(session, &query).await.unwrap().items
    }

    /// All sessions that match, at most 100.
    async fn sessions(&self, scope: &Scope, query: &SessionQuery) -> Vec<SessionId> {
        let page = PageRequest { limit: 100, start: PageStart::Offset(0) };
        let page = self.store.list_sessions(scope, query, &page).await.unwrap();
        assert_eq!(page.next, None);
        page.items.into_iter().map(|session| session.session_id).collect()
    }
}

fn json(text: &str) -> RawJson {
    RawJson::parse(text.to_owned()).unwrap()
}

fn is_invalid<T>(result: Result<T, StoreError>, at: &str) -> bool {
    matches!(result, Err(StoreError::Invalid { pointer, .. }) if pointer == at)
}

/// Runs all futures at once; their outputs in order. Each has been polled before this is first
/// suspended.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|context| {
        let mut result = Poll::Ready(());
        for (future, output) in running.iter_mut().filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(context) {
                Poll::Ready(value) => *output = Some(value),
                Poll::Pending => result = Poll::Pending,
            }
        }
        result
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}

/// Makes every check a test. `$open` names an `async fn` that returns a fresh, migrated store
/// (`Arc<dyn Store>`) and whatever must live as long as it.
#[macro_export]
macro_rules! conformance_tests {
    ($open:path) => {
        $crate::conformance_tests!(@module $open, sessions {
            create_session_stores_every_field_byte_for_byte
            get_session_sees_nothing_outside_its_scope
            list_sessions_shows_nothing_outside_its_scope
            update_session_and_delete_session_find_nothing_outside_their_scope
            create_session_with_a_taken_external_id_is_a_conflict
            an_external_id_is_free_again_after_delete_session
            create_session_with_a_taken_session_id_is_a_conflict
            list_sessions_is_by_creation_oldest_first
            list_sessions_sorts_by_activity_across_hours
            list_sessions_filters_by_user_and_favorite
            list_sessions_filters_by_metadata
            list_sessions_filters_by_creation
            list_sessions_pages_hold_every_session_once
            list_sessions_pages_stay_whole_while_sessions_are_created
            a_full_last_page_of_list_sessions_has_no_next
            update_session_changes_only_what_is_present
            update_session_that_says_nothing_new_changes_nothing
            update_session_moves_the_metadata_filter
            update_session_checks_the_expected_version
            concurrent_update_session_with_one_version_lets_one_win
            update_session_with_a_late_clock_keeps_the_time
            delete_session_returns_it_as_it_was_and_removes_it
            delete_session_checks_the_expected_version
            delete_session_takes_its_messages_away_at_once
            create_session_keeps_to_the_quota_of_its_user
        });
        $crate::conformance_tests!(@module $open, messages {
            append_gives_seq_without_gaps
            append_messages_stores_every_field_byte_for_byte
            append_messages_keeps_odd_and_large_texts
            append_moves_the_counters_of_its_session_but_not_its_version
            append_with_a_late_clock_turns_no_time_back
            append_messages_stores_a_batch_whole_or_not_at_all
            append_messages_to_an_absent_session_is_not_found
            concurrent_append_messages_get_unique_seqs_without_gaps
            concurrent_append_messages_fail_alone
            append_messages_tells_the_first_of_several_faults
            seq_is_never_given_again
            list_messages_pages_hold_every_message_once
            list_messages_is_newest_first_by_default
            list_messages_filters_by_role_and_seq
            list_messages_of_an_empty_session_is_empty_and_of_an_absent_one_not_found
            list_messages_keeps_to_its_session
            update_message_changes_only_what_is_present
            update_message_that_says_nothing_new_changes_nothing
            update_message_of_content_drops_the_payload
            update_message_of_payload_derives_the_content
            update_message_of_content_is_refused_for_other_kinds
            update_message_moves_status_from_in_progress_only
            update_message_moves_the_token_count_of_its_session
            update_message_checks_the_expected_version
            delete_message_returns_it_as_it_was_and_removes_it
            delete_message_checks_the_expected_version
            a_parent_stands_in_the_same_session_and_is_not_deleted
            an_external_id_is_unique_within_its_session
            find_message_knows_a_message_by_both_its_names
            messages_outside_the_scope_are_absent
            append_messages_keeps_to_the_quota_of_its_session
            concurrent_append_messages_never_pass_the_quota
        });
        $crate::conformance_tests!(@module $open, api_keys {
            create_api_key_stores_every_field
            create_api_key_of_no_project_is_not_found
            get_api_key_of_an_unknown_id_is_none
            list_api_keys_is_oldest_first_with_project_names
            list_api_keys_pages_without_gap_or_repetition
            list_credential_ids_names_what_could_be_presented
            update_api_key_changes_only_what_is_named
            rotate_api_key_keeps_the_old_secret_for_a_while
            revoke_api_key_keeps_the_first_time
            changes_of_keys_need_the_authority_for_them
            note_api_key_uses_moves_forward_alone
            concurrent_note_api_key_uses_never_hinder_each_other
            create_first_api_key_lets_one_of_many_callers_win
            create_first_api_key_does_nothing_when_there_was_ever_a_key
        });
        $crate::conformance_tests!(@module $open, projects {
            the_default_project_is_there
            create_project_stores_every_field
            create_project_with_a_taken_name_is_a_conflict
            list_projects_is_oldest_first_and_pages
            update_project_changes_only_what_is_named
            rotate_token_secret_keeps_the_old_one_for_a_while
            delete_project_takes_its_keys_and_its_name_away_at_once
            delete_project_needs_no_name_that_another_may_have
            delete_project_leaves_the_default_one_and_the_others
            erase_deleted_projects_deletes_every_session
            concurrent_erase_deleted_projects_share_the_work
            get_project_usage_follows_every_change
        });
        $crate::conformance_tests!(@module $open, audit {
            append_audit_events_stores_every_field
            append_audit_events_leaves_what_is_there
            list_audit_events_filters
            list_audit_events_pages_newest_first
            concurrent_append_audit_events_are_all_stored
            the_audit_log_outlives_its_project
        });
        $crate::conformance_tests!(@module $open, archive {
            import_session_twice_adds_nothing
            import_session_appends_a_longer_part
            import_session_refuses_a_gap_and_stores_nothing
            import_session_where_it_came_from_adds_nothing
            import_session_of_an_id_of_another_project_is_a_conflict
            import_session_with_a_taken_message_id_is_a_conflict_and_stores_nothing
            import_session_stays_within_its_scope
            import_session_makes_metadata_and_counters
            import_session_in_parts_keeps_the_times_it_came_with
            import_session_brings_nothing_back_into_a_deleted_one
            append_continues_after_import_session
            export_sessions_and_export_messages_keep_tombstones_without_their_words
            export_sessions_and_export_messages_page
            export_sessions_and_export_messages_keep_to_their_scope
            export_messages_ends_a_page_of_large_messages_early
            import_session_keeps_to_quotas_and_stores_nothing_past_them
            import_session_counts_in_get_project_usage
        });
        $crate::conformance_tests!(@between $open, archive_between {
            export_and_import_session_make_an_equal_store
        });
        $crate::conformance_tests!(@module $open, search {
            search_text_finds_what_was_just_appended
            search_text_speaks_the_query_language
            search_text_finds_scripts_without_spaces
            search_text_finds_nothing_outside_its_scope
            search_text_filters
            search_text_forgets_what_was_deleted_or_changed
            search_text_is_in_a_total_order
            search_text_scores_by_query_and_message_alone
            search_text_ranks_the_newest_of_very_many
            search_text_agrees_with_a_look_at_every_message
            search_text_finds_imported_messages
            search_vectors_finds_the_nearest_first
            search_vectors_is_exact_however_selective_the_filter
            search_vectors_finds_nothing_outside_its_scope
            search_vectors_never_mixes_models
            search_vectors_forgets_what_was_deleted_or_changed
            search_vectors_sees_every_change_at_once
            get_found_messages_keeps_the_order_and_leaves_out_what_is_gone
            reindex_some_of_text_gives_the_same_answers
            reindex_some_may_be_called_by_many_at_once
            concurrent_append_messages_are_all_found_by_search_text
            failed_append_messages_leave_nothing_to_search_text
        });
        $crate::conformance_tests!(@module $open, embeddings {
            append_messages_stores_embeddings_bit_for_bit
            append_messages_refuses_another_length_and_stores_nothing
            a_model_of_another_project_has_its_own_length
            set_embedding_replaces_the_one_of_its_model
            set_embedding_and_list_embeddings_keep_to_their_scope
            claim_embedding_jobs_lends_each_message_once
            claim_embedding_jobs_is_oldest_first_and_bounded_in_bytes
            claim_embedding_jobs_and_reindex_some_pass_over_deleted_projects
            complete_embedding_jobs_stores_vectors_and_ends_the_wait
            complete_embedding_jobs_ignores_what_came_too_late
            an_edit_drops_the_vectors_of_the_old_text
            complete_embedding_jobs_puts_off_and_puts_aside
            what_was_put_aside_waits_for_somebody_or_another_model
            a_vector_of_another_length_puts_its_job_aside
            get_embedding_backlog_tells_since_when
            a_brought_vector_of_the_source_ends_the_wait
            set_embedding_source_lets_the_old_model_serve_until_the_new_one_can
            set_embedding_source_keeps_the_vectors_that_callers_brought
            set_embedding_source_takes_a_model_again_with_another_length
            set_embedding_source_queues_what_was_stored_without_it
            set_embedding_source_serves_at_once_where_nothing_was_embedded
            reindex_some_of_embeddings_queues_what_has_no_vector_of_the_source
            import_session_brings_embeddings_and_queues_the_rest
        });
        $crate::conformance_tests!(@module $open, idempotency {
            a_keyed_append_is_stored_once_and_answered_alike
            a_key_with_another_body_is_refused
            a_replay_shows_what_was_answered_and_not_what_became_of_it
            a_replay_of_what_is_deleted_is_gone
            get_idempotency_record_tells_what_would_answer
            what_was_refused_leaves_no_record
            a_record_that_has_expired_counts_no_more
            purge_idempotency_records_takes_what_has_expired
            a_keyed_create_session_with_messages_is_one_whole
            create_session_with_messages_stores_all_or_nothing
            concurrent_requests_with_one_key_are_done_once
            a_request_known_by_its_body_is_replayed_to_each_retry_once
            a_request_known_by_its_body_is_done_anew_once_what_it_made_is_deleted
            a_retry_repeats_nothing_of_another_time_than_its_tries
            equal_requests_that_begin_with_what_is_there_are_told_apart
            a_keyed_append_of_nothing_is_a_request_like_any
            what_is_not_stored_is_not_counted
            concurrent_retries_known_by_their_body_answer_for_one_request_each
            append_messages_takes_what_it_knows_by_its_external_id
            append_messages_knows_its_own_ids_as_external_ids
            a_replay_gives_back_what_was_there_before_the_request
            a_replay_writes_what_was_there_as_it_is_stored
            create_project_and_create_api_key_are_done_once
            rotate_token_secret_is_done_once
        });
        $crate::conformance_tests!(@module $open, store {
            check_answers_ok
            cursor_key_stays_the_same
            stats_count_appends_that_succeeded
            writes_run_to_their_end_when_the_caller_goes_away
            calls_after_close_are_unavailable
        });

        mod law {
            #[test]
            fn every_store_method_has_a_check() {
                assert_eq!($crate::conformance::law::methods_without_check(), Vec::<String>::new());
            }

            #[test]
            fn every_check_is_a_test() {
                assert_eq!($crate::conformance::law::checks_without_test(), Vec::<String>::new());
            }
        }
    };
    (@module $open:path, $noun:ident { $($check:ident)+ }) => {
        mod $noun {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $check() {
                    let (store, _keep) = $open().await;
                    $crate::conformance::$noun::$check($crate::conformance::prepare(store).await).await;
                }
            )+
        }
    };
    // Checks that need two stores.
    (@between $open:path, $module:ident { $($check:ident)+ }) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $check() {
                    let ((from, _keep), (into, _keep_too)) = ($open().await, $open().await);
                    let from = $crate::conformance::prepare(from).await;
                    let into = $crate::conformance::prepare(into).await;
                    $crate::conformance::archive::$check(from, into).await;
                }
            )+
        }
    };
}
