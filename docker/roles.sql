-- Run once by the PostgreSQL image, as chatstore_owner in a new database. chatstore_owner migrates; the server works as
-- chatstore, which may read and write rows and no more, and knows its own password alone.

\getenv password POSTGRES_APP_PASSWORD
create role chatstore login password :'password';
alter default privileges in schema public grant select, insert, update, delete on tables to chatstore;
