-- What the server's role needs, and no more: it reads and writes rows, and leaves the schema alone.
-- The owner of the tables runs it after every migration, under a service file that holds the password:
--
--     psql service=chatstore_owner --set ON_ERROR_STOP=1 --set role=chatstore --file grants.sql

grant usage on schema public to :"role";
grant select on schema_migrations, installation to :"role";
-- The audit log only grows.
grant select, insert on audit_events to :"role";
grant select, insert, update, delete
    on projects, api_keys, sessions, session_metadata, messages, session_erasures,
        message_texts, text_index, embedding_models, message_embeddings, embedding_jobs, embedding_source,
        retired_embedding_models, reindexes, idempotency_records
    to :"role";
