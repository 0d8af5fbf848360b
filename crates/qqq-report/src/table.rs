//! Tables that say the same as Markdown, as LaTeX and on a page.

use maud::{Markup, html};

/// A table of models.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Of each column its name.
    pub header: Vec<String>,
    /// Columns before the first one of numbers.
    pub names: usize,
    /// Cells as many as the header has.
    pub rows: Vec<Vec<Cell>>,
    /// What must be known to read it, a sentence each.
    pub notes: Vec<String>,
}

/// A cell of a table.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// What it says.
    pub text: String,
    /// Whether it stands out from the baseline by more than chance.
    pub marked: bool,
}

impl Cell {
    /// Without a mark.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), marked: false }
    }

    /// As a terminal shows it.
    pub fn plain(&self) -> String {
        if self.marked { format!("{} *", self.text) } else { self.text.clone() }
    }
}

impl Table {
    /// As GitHub's Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("**{}**\n\n", markdown(&self.title));
        text += &line(self.header.iter().map(|name| markdown(name)).collect());
        text += &line((0..self.header.len()).map(|i| self.of(i, "---", "---:").to_owned()).collect());
        for row in &self.rows {
            text += &line(row.iter().map(|cell| markdown(&cell.plain())).collect());
        }
        if !self.notes.is_empty() {
            let notes: Vec<String> = self.notes.iter().map(|note| markdown(note)).collect();
            text += &format!("\n{}\n", notes.join(" "));
        }
        text
    }

    /// As a table of LaTeX, with the rules of its package booktabs.
    pub fn latex(&self) -> String {
        let columns: String = (0..self.header.len()).map(|i| self.of(i, "l", "r")).collect();
        let line = |cells: Vec<String>| format!("{} \\\\\n", cells.join(" & "));
        let mut text = format!("\\begin{{table}}\n\\centering\n\\caption{{{}}}\n", latex(&self.title));
        text += &format!("\\begin{{tabular}}{{{columns}}}\n\\toprule\n");
        text += &line(self.header.iter().map(|name| latex(name)).collect());
        text += "\\midrule\n";
        for row in &self.rows {
            let cell = |cell: &Cell| latex(&cell.text) + if cell.marked { "$^{*}$" } else { "" };
            text += &line(row.iter().map(cell).collect());
        }
        text += "\\bottomrule\n\\end{tabular}\n";
        for note in &self.notes {
            text += &format!("\\par\\footnotesize {}\n", latex(note));
        }
        text + "\\end{table}\n"
    }

    /// As a page has it.
    pub(crate) fn html(&self) -> Markup {
        html! {
            div.scroll role="region" tabindex="0" aria-label=(self.title) { table {
                caption { (self.title) }
                thead { tr {
                    @for (i, name) in self.header.iter().enumerate() { th class=(self.of(i, "", "n")) scope="col" { (name) } }
                } }
                tbody {
                    @for row in &self.rows {
                        tr {
                            @for (i, cell) in row.iter().enumerate() {
                                @if i == 0 {
                                    th scope="row" { (cell.text) }
                                } @else {
                                    td class=(self.of(i, "", "n")) {
                                        (cell.text)
                                        @if cell.marked { " " abbr title="differs from the baseline by more than chance" { "*" } }
                                    }
                                }
                            }
                        }
                    }
                }
            } }
            @for note in &self.notes { p.soft { (note) } }
        }
    }

    fn of<'a>(&self, column: usize, name: &'a str, number: &'a str) -> &'a str {
        if column < self.names { name } else { number }
    }
}

/// Text that Markdown takes as it is, on one line.
fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, c) in text.char_indices() {
        // Within a word an underscore is one.
        let within = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let is_inner =
            within(text[..i].chars().next_back()) && within(text[i + c.len_utf8()..].chars().next());
        match c {
            '_' if is_inner => out.push(c),
            '\\' | '|' | '*' | '_' | '`' | '<' | '[' | ']' | '~' => out.extend(['\\', c]),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Text that LaTeX takes as it is.
fn latex(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out += "\\textbackslash{}",
            '~' => out += "\\textasciitilde{}",
            '^' => out += "\\textasciicircum{}",
            '<' => out += "\\textless{}",
            '>' => out += "\\textgreater{}",
            '|' => out += "\\textbar{}",
            // Behind a line's end it would begin an option of that.
            '[' => out += "{[}",
            // Two would be a dash.
            '-' => out += "{-}",
            '*' => out += "$^{*}$",
            '±' => out += "$\\pm$",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let cell = |text: &str, marked| Cell { text: text.into(), marked };
        Table {
            title: "Quality of A&B".into(),
            header: vec!["model".into(), "arc_easy, %".into()],
            names: 1,
            rows: vec![vec![cell("<b>|x_1", false), cell("39.25 ± 1.43", true)]],
            notes: vec!["*: p < 0.05.".into()],
        }
    }

    #[test]
    fn markdown_keeps_names_as_they_are() {
        let expected = "**Quality of A&B**\n\n| model | arc_easy, % |\n| --- | ---: |\n| \\<b>\\|x_1 | 39.25 ± 1.43 \\* |\n\n\\*: p \
                        \\< 0.05.\n";
        assert_eq!(table().markdown(), expected);
        assert_eq!(markdown("_a_ `b` [c]\n\\d"), "\\_a\\_ \\`b\\` \\[c\\] \\\\d");
    }

    #[test]
    fn latex_keeps_names_as_they_are() {
        let expected = "\\begin{table}\n\\centering\n\\caption{Quality of A\\&B}\n\\begin{tabular}{lr}\n\\toprule\nmodel & \
                        arc\\_easy, \\% \\\\\n\\midrule\n\\textless{}b\\textgreater{}\\textbar{}x\\_1 & 39.25 $\\pm$ 1.43$^{*}$ \
                        \\\\\n\\bottomrule\n\\end{tabular}\n\\par\\footnotesize $^{*}$: p \\textless{} 0.05.\n\\end{table}\n";
        assert_eq!(table().latex(), expected);
        assert_eq!(latex("{a}\\^~#$"), "\\{a\\}\\textbackslash{}\\textasciicircum{}\\textasciitilde{}\\#\\$");
    }

    #[test]
    fn pages_name_rows_and_columns() {
        let page = table().html().into_string();
        for part in [
            "<caption>Quality of A&amp;B</caption>",
            "<th class=\"n\" scope=\"col\">arc_easy, %</th>",
            "<th scope=\"row\">&lt;b&gt;|x_1</th>",
            "39.25 ± 1.43 <abbr title=\"differs from the baseline by more than chance\">*</abbr>",
            "<p class=\"soft\">*: p &lt; 0.05.</p>",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
}
