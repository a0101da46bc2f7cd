//! The statement that a request to the server made PostgreSQL run, found in PostgreSQL's log, as a script of pgbench: it
//! is the same however the engine words it.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result};

use super::{
    conversations::{self, RANDOM_SESSION, SESSION_ID},
    database::{Database, DatabaseServer},
};

/// How long a setting takes to reach every connection, and a line to reach the log.
const SETTLE: Duration = Duration::from_millis(200);

/// A statement and the values of its parameters, as text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Statement {
    sql: String,
    values: Vec<Option<String>>,
}

impl Statement {
    /// The last statement on sessions that `request` causes.
    pub(super) fn of(
        server: &DatabaseServer,
        database: &Database,
        request: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        set(database, "alter system set log_statement = 'all'")?;
        let before = server.log()?.len();
        request()?;
        thread::sleep(SETTLE);
        let log = server.log()?.split_off(before);
        set(database, "alter system reset log_statement")?;
        let found = parse_log(&log).into_iter().rfind(|statement| statement.sql.contains("from sessions s"));
        found.with_context(|| format!("the log holds no statement on sessions: {log}"))
    }

    /// The script, and its variables. The session with the number `n` gives way to a random one.
    pub(super) fn into_script(self, n: usize) -> (String, Vec<(String, String)>) {
        let (id, bucket) = (conversations::id(n), conversations::bucket(n).to_string());
        let mut variables = Vec::new();
        let mut places = Vec::new();
        for (value, place) in self.values.into_iter().zip(1..) {
            places.push(match value {
                None => "null".to_owned(),
                Some(value) if value == id => SESSION_ID.to_owned(),
                Some(value) if value == bucket => ":bucket".to_owned(),
                Some(value) => {
                    variables.push((format!("p{place}"), value));
                    format!(":p{place}")
                }
            });
        }
        let of_session = places.iter().any(|place| place == SESSION_ID);
        let head = if of_session { RANDOM_SESSION } else { "" };
        (format!("{head}{};\n", fill(&self.sql, &places)), variables)
    }
}

fn set(database: &Database, sql: &str) -> Result<()> {
    database.run(sql)?;
    database.run("select pg_reload_conf()")?;
    thread::sleep(SETTLE);
    Ok(())
}

/// Puts `places[0]` where `$1` stands, and so on.
fn fill(sql: &str, places: &[String]) -> String {
    let mut pieces = sql.split('$');
    let mut filled = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let digits = piece.len() - piece.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
        let (number, rest) = piece.split_at(digits);
        let place = number.parse().ok().and_then(|number: usize| places.get(number.checked_sub(1)?));
        match place {
            Some(place) => filled.push_str(place),
            None => filled.extend(["$", number]),
        }
        filled.push_str(rest);
    }
    filled
}

/// Statements with the lines that follow them: a statement goes on in lines with a tab, then come its parameters.
fn parse_log(log: &str) -> Vec<Statement> {
    let mut statements: Vec<Statement> = Vec::new();
    let mut is_open = false;
    for line in log.lines() {
        if let Some((_, sql)) = line.strip_prefix("LOG:  execute ").and_then(|rest| rest.split_once(": ")) {
            statements.push(Statement { sql: sql.to_owned(), values: Vec::new() });
            is_open = true;
        } else if let (true, Some(more), Some(last)) = (is_open, line.strip_prefix('\t'), statements.last_mut()) {
            last.sql.push('\n');
            last.sql.push_str(more);
        } else {
            if let (Some(values), Some(last)) = (line.strip_prefix("DETAIL:  Parameters: "), statements.last_mut()) {
                last.values = parse_values(values);
            }
            is_open = false;
        }
    }
    statements
}

/// Reads `$1 = 'it''s', $2 = NULL`.
fn parse_values(mut text: &str) -> Vec<Option<String>> {
    let mut values = Vec::new();
    while let Some((_, rest)) = text.split_once(" = ") {
        let Some(quoted) = rest.strip_prefix('\'') else {
            values.push(None);
            text = rest;
            continue;
        };
        let mut value = String::new();
        let mut characters = quoted.char_indices().peekable();
        text = "";
        while let Some((at, character)) = characters.next() {
            if character == '\'' && characters.next_if(|(_, next)| *next == '\'').is_none() {
                text = &quoted[at + 1..];
                break;
            }
            value.push(character);
        }
        values.push(Some(value));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "LOG:  execute s1: select 1\n\
        LOG:  execute s7: select m.seq\n\
        \tfrom sessions s where s.id = $2 and $3 is null\n\
        \tlimit $1\n\
        DETAIL:  Parameters: $1 = '51', $2 = 'it''s $1 = ''', $3 = NULL, $4 = ''\n\
        LOG:  disconnection\n\
        \tnot a statement\n";

    #[test]
    fn statements_are_read_with_their_values() {
        let statements = parse_log(LOG);
        assert_eq!(statements.len(), 2);
        assert_eq!(statements[0], Statement { sql: "select 1".to_owned(), values: Vec::new() });
        assert_eq!(statements[1].sql, "select m.seq\nfrom sessions s where s.id = $2 and $3 is null\nlimit $1");
        let values = [Some("51"), Some("it's $1 = '"), None, Some("")];
        assert_eq!(statements[1].values, values.map(|value| value.map(str::to_owned)));
    }

    #[test]
    fn a_script_names_what_is_the_same_and_draws_the_session() {
        let values =
            [Some(conversations::id(1234)), Some(conversations::bucket(1234).to_string()), None, Some("51".to_owned())];
        let sql = "select $$ from sessions where id = $1 and bucket = $2 and ($3::text is null) limit $4 offset $10";
        let (script, variables) = Statement { sql: sql.to_owned(), values: values.to_vec() }.into_script(1234);
        let statement = script.strip_prefix(RANDOM_SESSION).unwrap();
        let expected = format!(
            "select $$ from sessions where id = {SESSION_ID} and bucket = :bucket and (null::text is null) limit :p4 offset $10;\n"
        );
        assert_eq!(statement, expected);
        assert_eq!(variables, [("p4".to_owned(), "51".to_owned())]);
    }

    #[test]
    fn a_script_without_a_session_draws_none() {
        let statement = Statement { sql: "select $1".to_owned(), values: vec![Some("a".to_owned())] };
        assert_eq!(statement.into_script(1234).0, "select :p1;\n");
    }
}
