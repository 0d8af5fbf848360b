//! Tables.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::console::Console;

/// A table with a header; columns from `numbers` on are aligned to the right.
pub fn table<S: Into<String>>(
    console: &Console,
    header: &[&str],
    numbers: usize,
    rows: impl IntoIterator<Item = Vec<S>>,
) -> String {
    let mut table = Table::new();
    table.load_style(if console.fancy_out() { presets::UTF8_HORIZONTAL_ONLY } else { presets::NOTHING });
    table.force_no_tty();
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.into_iter().map(Into::<String>::into));
    }
    for i in numbers..header.len() {
        if let Some(column) = table.column_mut(i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Names and values, one pair a line.
pub fn pairs<S: Into<String>>(rows: impl IntoIterator<Item = (&'static str, S)>) -> String {
    let rows: Vec<(&str, String)> = rows.into_iter().map(|(k, v)| (k, v.into())).collect();
    let width = rows.iter().map(|(k, _)| k.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(k, v)| format!("{k:width$}  {v}\n")).collect()
}
