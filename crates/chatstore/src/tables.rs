//! What commands show: tables, and what is known of one thing.

use chatstore_core::clock::Timestamp;
use chatstore_core::rates::ClassRates;

/// What stands where there is nothing.
pub(crate) const NOTHING: &str = "-";

/// A moment, to the minute.
pub(crate) fn minute(at: Timestamp) -> String {
    at.to_string().chars().take(16).collect::<String>().replace('T', " ")
}

/// Columns as wide as their widest cell. What would move a terminal's cursor is shown as `?`.
pub(crate) fn table<const COLUMNS: usize>(titles: [&str; COLUMNS], rows: Vec<[String; COLUMNS]>) -> String {
    let rows: Vec<[String; COLUMNS]> = std::iter::once(titles.map(str::to_owned))
        .chain(rows)
        .map(|row| row.map(|cell| cell.replace(char::is_control, "?")))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (n, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0);
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One thing: a line for each of its properties, without those that it does not have.
pub(crate) fn properties(lines: Vec<(&str, Option<String>)>) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let shown = lines.into_iter().filter_map(|(name, value)| {
        let value = value?.replace(char::is_control, "?");
        Some(format!("{name:width$}  {value}\n"))
    });
    shown.collect()
}

/// The limits of each class that has its own.
pub(crate) fn limits(limits: &ClassRates) -> [(&'static str, Option<String>); 3] {
    [("limit of reads", &limits.reads), ("limit of writes", &limits.writes), ("limit of searches", &limits.search)]
        .map(|(name, rates)| (name, rates.as_ref().map(ToString::to_string)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_control_characters_harmless() {
        let rows = vec![["1".to_owned(), "a\nb".to_owned()], ["222".to_owned(), String::new()]];
        assert_eq!(table(["ID", "NAME"], rows), "ID   NAME\n1    a?b\n222\n");
        assert_eq!(properties(vec![("id", Some("1".into())), ("absent", None)]), "id      1\n");
    }
}
