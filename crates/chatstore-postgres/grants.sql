-- What the server's role needs, and no more: it reads and writes rows, and leaves the schema alone.
-- The owner of the tables runs it after every migration:
--
--     psql --set role=chatstore --file grants.sql "$MIGRATE_DATABASE_URL"

grant usage on schema public to :"role";
grant select on schema_migrations, installation to :"role";
grant select, insert, update, delete
    on projects, api_keys, sessions, session_metadata, messages, session_erasures
    to :"role";
