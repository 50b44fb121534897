//! What the documents say of metrics, so that tests can hold it against the tables: the reference table, and the names that dashboards
//! and alerts use.

use crate::family::Family;

/// The rows that the reference shows of a table, as Markdown.
pub fn table(families: &[Family]) -> String {
    let mut text =
        String::from("| metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n");
    for family in families {
        let labels: Vec<String> = family.labels.iter().map(|l| format!("`{l}`")).collect();
        let unit = match family.unit {
            "" => "–",
            unit => unit,
        };
        let labels = match labels.is_empty() {
            true => "–".to_owned(),
            false => labels.join(", "),
        };
        text += &format!(
            "| `{}` | {} | {unit} | {labels} | {} |\n",
            family.shown_name(),
            family.kind.name(),
            family.help
        );
    }
    text
}

/// Words of `text` that begin with `prefix` and name no series of the table.
pub fn unknown_names(prefix: &str, families: &[Family], text: &str) -> Vec<String> {
    let known: Vec<String> = families.iter().flat_map(Family::series_names).collect();
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_word(c));
    let mut unknown: Vec<String> = words
        .filter(|word| word.starts_with(prefix) && !known.iter().any(|name| name == word))
        .map(str::to_owned)
        .collect();
    unknown.sort();
    unknown.dedup();
    unknown
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Family] = &[
        Family::counter("x_hits", "", &["class"], "Reads answered."),
        Family::gauge("x_used_bytes", "bytes", &[], "Held."),
        Family::histogram("x_wait_seconds", &[], "Waits."),
    ];

    #[test]
    fn the_table_shows_what_queries_name() {
        let rows = "| `x_hits_total` | counter | – | `class` | Reads answered. |\n\
            | `x_used_bytes` | gauge | bytes | – | Held. |\n\
            | `x_wait_seconds` | histogram | seconds | – | Waits. |\n";
        assert!(table(TABLE).ends_with(rows), "{}", table(TABLE));
    }

    #[test]
    fn names_that_are_not_served_are_found() {
        let queries = r#"rate(x_hits_total{class="fill"}[5m]) / x_used_bytes; x_wait_seconds_bucket; x_hits; (x_gone)"#;
        assert_eq!(unknown_names("x_", TABLE, queries), ["x_gone", "x_hits"]);
    }
}
