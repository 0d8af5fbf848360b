//! The tables of a comparison, and its figures.

use crossterm::terminal;
use qqq_report::{Cell, Comparison, Scatter, Table};

use super::{
    judge::{Compared, Difference, Judged, LEVEL, Outcome},
    measure::Found,
};
use crate::{
    commands::{bench::Rate, eval::Protocol},
    console::Console,
    format,
    table::table,
};

/// What is not there.
const NONE: &str = "-";
/// Decimal places that every perplexity and every percentage has.
const PLACES: usize = 2;

/// What a column says of a model.
type Column<'a> = (String, Box<dyn Fn(&Judged) -> Cell + 'a>);

/// A vertical axis of figures: names of their files and of the axis, and its number of a model.
type Axis<'a> = (String, String, Box<dyn Fn(&Judged) -> Option<f64> + 'a>);

/// All tables that there are numbers for.
pub fn tables(outcome: &Outcome<'_>) -> Vec<Table> {
    let mut tables: Vec<Table> = (0..outcome.texts.len()).map(|i| on_text(outcome, i)).collect();
    if !outcome.tasks.is_empty() {
        tables.push(on_tasks(outcome));
    }
    tables.push(size_and_speed(outcome));
    tables
}

fn made(outcome: &Outcome<'_>, title: String, columns: Vec<Column<'_>>, notes: Vec<String>) -> Table {
    let mut header = vec!["model".to_owned(), "layers".into()];
    header.extend(columns.iter().map(|(name, _)| name.clone()));
    let row = |model: &Judged| {
        let mut row = vec![Cell::new(model.name.as_str()), Cell::new(kinds(model))];
        row.extend(columns.iter().map(|(_, cell)| cell(model)));
        row
    };
    Table { title, header, names: 2, rows: outcome.models.iter().map(row).collect(), notes }
}

/// Kinds of a model's layers.
fn kinds(model: &Judged) -> String {
    match &model.simulated {
        Some(simulated) => format!("{}, simulated", simulated.method),
        None => model.size.schemes.join(", "),
    }
}

/// Of the text with this number.
fn on_text(outcome: &Outcome<'_>, i: usize) -> Table {
    let perplexity = move |model: &Judged| {
        cell(model.on_texts.get(i), |on| {
            let partial = if on.partial { " (PARTIAL)" } else { "" };
            format!("{}{partial}", short(on.perplexity.mean, on.perplexity.standard_error, PLACES))
        })
    };
    let divergence = move |model: &Judged| {
        unmarked(model.on_texts.get(i), |on| on.kl_divergence.map(|kl| short(kl.mean, kl.standard_error, 4)))
    };
    let agreement = move |model: &Judged| {
        unmarked(model.on_texts.get(i), |on| {
            let percent = on.top1_agreement.map(|share| (100.0 * share.mean, share.standard_error));
            percent.map(|(mean, error)| short(mean, error.map(|e| 100.0 * e), PLACES))
        })
    };
    let columns: Vec<Column<'_>> = vec![
        ("perplexity".into(), Box::new(perplexity)),
        ("KL divergence".into(), Box::new(divergence)),
        ("top-1, %".into(), Box::new(agreement)),
    ];
    let baseline = &outcome.baseline;
    let mut notes = vec![format!(
        "Perplexity ± its standard error; KL divergence from {baseline} in nats per token; top-1: how often the likeliest next token is \
         that of {baseline}."
    )];
    if outcome.models.iter().filter_map(|model| model.on_texts.get(i)).any(|one| is_marked(one.difference)) {
        notes.push(format!(
            "*: the perplexity differs from that of {baseline}, p < {LEVEL} (t test, paired by window; Holm's correction for the models \
             of a column)."
        ));
    }
    made(outcome, format!("Quality on {}", outcome.texts[i].name()), columns, notes)
}

fn on_tasks(outcome: &Outcome<'_>) -> Table {
    let percent = |mean: f64, error: Option<f64>| short(100.0 * mean, error.map(|e| 100.0 * e), PLACES);
    let mut columns: Vec<Column<'_>> = Vec::new();
    for (i, task) in outcome.tasks.iter().enumerate() {
        let one = move |model: &Judged| {
            cell(model.on_tasks.get(i), |on| {
                let partial = if on.partial { " (PARTIAL)" } else { "" };
                format!("{}{partial}", percent(on.acc.mean, on.acc.standard_error))
            })
        };
        columns.push((task.task.into(), Box::new(one)));
    }
    let average = move |model: &Judged| match &model.average {
        Some(Compared { found, difference }) => {
            Cell { text: percent(found.mean, found.standard_error), marked: is_marked(*difference) }
        }
        None => Cell::new(NONE),
    };
    columns.push(("average".into(), Box::new(average)));
    let asked = outcome.asked.as_ref().map(Protocol::describe).unwrap_or_default();
    let mut notes = vec![format!("Accuracy (acc) in % ± its standard error; {asked}.")];
    let tasks = outcome.models.iter().flat_map(|model| &model.on_tasks).map(|one| one.difference);
    let averages = outcome.models.iter().filter_map(|model| model.average.as_ref()).map(|one| one.difference);
    if tasks.chain(averages).any(is_marked) {
        notes.push(format!(
            "*: differs from {}, p < {LEVEL} (McNemar's exact test, paired by question; the average by a normal test; Holm's correction \
             for the models of a column).",
            outcome.baseline
        ));
    }
    made(outcome, "Accuracy on tasks".into(), columns, notes)
}

fn size_and_speed(outcome: &Outcome<'_>) -> Table {
    let or_none = |text: Option<String>| Cell::new(text.unwrap_or_else(|| NONE.into()));
    let real = |model: &Judged| model.simulated.is_none();
    let mut columns: Vec<Column<'_>> = vec![
        (
            "bits per weight".into(),
            Box::new(move |model| or_none(bits(model).map(|bits| format!("{bits:.2}")))),
        ),
        ("size".into(), Box::new(move |model| or_none(real(model).then(|| format::bytes(model.size.bytes))))),
        ("memory".into(), Box::new(move |model| or_none(model.memory.map(format::bytes)))),
    ];
    let mut notes = vec![
        "Bits per weight of the blocks' linear layers; size of all tensors; memory: what the loaded weights take.".to_owned(),
    ];
    if outcome.models.iter().any(|model| model.speed.is_some()) {
        let rate = |rate: Rate| format!("{:.0}", rate.median);
        columns.push((
            "prefill".into(),
            Box::new(move |model| {
                or_none(model.speed.as_ref().map(|speed| rate(speed.prefill_tokens_per_second)))
            }),
        ));
        columns.push((
            "decode".into(),
            Box::new(move |model| {
                or_none(model.speed.as_ref().map(|speed| rate(speed.decode_tokens_per_second)))
            }),
        ));
        if let Some(speed) = outcome.models.iter().find_map(|model| model.speed.as_ref()) {
            notes.push(format!(
                "Prefill and decode: tokens a second of one sequence, {} tokens in, {} out, median of {} runs; {}, {}.",
                speed.prompt_tokens,
                speed.new_tokens,
                speed.repeat,
                outcome.device,
                format::threads(speed.threads)
            ));
        }
    }
    if outcome.models.iter().any(|model| !real(model)) {
        notes.push("Of simulated methods: the bits that they would store.".into());
    }
    made(outcome, "Size and speed".into(), columns, notes)
}

/// Those that a method stores for a weight.
fn bits(model: &Judged) -> Option<f64> {
    match &model.simulated {
        Some(simulated) => simulated.bits_per_weight,
        None => Some(model.size.bits_per_weight),
    }
}

/// Whether a difference is marked.
fn is_marked(difference: Option<Difference>) -> bool {
    difference.is_some_and(|difference| difference.is_significant())
}

/// A figure with its mark.
fn cell<T>(compared: Option<&Compared<Found<T>>>, text: impl Fn(&T) -> String) -> Cell {
    let Some(Compared { found, difference }) = compared else { return Cell::new(NONE) };
    match found {
        Found::NotFinite { .. } => Cell::new("not finite"),
        Found::Measured(found) => Cell { text: text(found), marked: is_marked(*difference) },
    }
}

/// A figure that is not tested.
fn unmarked<T>(compared: Option<&Compared<Found<T>>>, text: impl Fn(&T) -> Option<String>) -> Cell {
    let found = compared.and_then(|compared| compared.found.measured()).and_then(text);
    Cell::new(found.unwrap_or_else(|| NONE.into()))
}

/// `value ± error`, both down to the error's second significant digit, and at least to so many places.
fn short(value: f64, error: Option<f64>, places: usize) -> String {
    match error {
        Some(error) if error > 0.0 && error.is_finite() => {
            let digits = (1 - error.log10().floor() as i32).clamp(0, 12) as usize;
            let places = places.max(digits);
            format!("{value:.places$} ± {error:.places$}")
        }
        _ => format!("{value:.places$}"),
    }
}

/// All tables for a terminal: one that is too wide goes on below itself, with the names again.
pub fn text(outcome: &Outcome<'_>, tables: &[Table], console: &Console) -> String {
    let width = if console.fancy_out() {
        terminal::size().map_or(usize::MAX, |(columns, _)| columns.into())
    } else {
        usize::MAX
    };
    let mut text = String::new();
    if let Some(partial) = partial(outcome) {
        text += &format!("PARTIAL, interrupted: {partial}\n\n");
    }
    for one in tables {
        text += &format!("{}\n", one.title);
        for columns in pieces(one, width) {
            let header: Vec<&str> = columns.iter().map(|i| one.header[*i].as_str()).collect();
            let rows = one.rows.iter().map(|row| columns.iter().map(|i| row[*i].plain()).collect::<Vec<_>>());
            text += &format!("{}\n", table(console, &header, one.names.min(header.len()), rows));
        }
        text += &format!("{}\n\n", one.notes.join("\n"));
    }
    text
}

/// Columns of the parts of a table that are not wider than a terminal, each with the first one.
fn pieces(table: &Table, width: usize) -> Vec<Vec<usize>> {
    let column_width = |i: usize| {
        let cells = table.rows.iter().map(|row| row[i].plain().chars().count());
        // A blank on each side.
        cells.chain([table.header[i].chars().count()]).max().unwrap_or(0) + 2
    };
    let mut pieces = vec![vec![0]];
    let mut taken = column_width(0);
    for i in 1..table.header.len() {
        let last = pieces.len() - 1;
        if taken + column_width(i) > width && pieces[last].len() > 1 {
            pieces.push(vec![0]);
            taken = column_width(0);
        }
        taken += column_width(i);
        let last = pieces.len() - 1;
        pieces[last].push(i);
    }
    pieces
}

/// What there is of one that was stopped.
pub fn partial(outcome: &Outcome<'_>) -> Option<String> {
    outcome.partial.then(|| {
        format!(
            "the first {} of {} models, the last of them in part",
            outcome.models.len(),
            outcome.planned_models
        )
    })
}

/// The page.
pub fn page(outcome: &Outcome<'_>, tables: &[Table]) -> Comparison {
    let mut scatters = Vec::new();
    let mut qualities: Vec<Axis<'_>> = Vec::new();
    for (i, text) in outcome.texts.iter().enumerate() {
        let loss = move |model: &Judged| {
            Some(model.on_texts.get(i)?.found.measured()?.kl_divergence.map_or(0.0, |kl| kl.mean))
        };
        qualities.push((format!("text{i}"), format!("KL divergence, {}", text.name()), Box::new(loss)));
    }
    if !outcome.tasks.is_empty() {
        let average = |model: &Judged| Some(100.0 * model.average.as_ref()?.found.mean);
        qualities.push(("tasks".into(), "average accuracy, %".into(), Box::new(average)));
    }
    let speed = |model: &Judged| Some(model.speed.as_ref()?.decode_tokens_per_second.median);
    for (id, y_name, quality) in &qualities {
        for (kind, x_name, x) in [
            ("size", "bits per weight", &bits as &dyn Fn(&Judged) -> Option<f64>),
            ("speed", "decode, tokens/s", &speed),
        ] {
            let point = |model: &Judged| Some((model.name.clone(), x(model)?, quality(model)?));
            let points: Vec<_> = outcome.models.iter().filter_map(point).collect();
            if points.len() > 1 {
                let name = format!("{id}-{kind}");
                scatters.push(Scatter { name, x_name: x_name.into(), y_name: y_name.clone(), points });
            }
        }
    }
    Comparison {
        baseline: outcome.baseline.clone(),
        version: outcome.version.into(),
        partial: partial(outcome),
        tables: tables.to_vec(),
        scatters,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_end_with_their_errors() {
        assert_eq!(short(21.653_42, Some(0.481_23), 2), "21.65 ± 0.48");
        assert_eq!(short(0.012_345_6, Some(0.000_123_4), 4), "0.01235 ± 0.00012");
        assert_eq!(short(1234.567, Some(12.3), 2), "1234.57 ± 12.30");
        assert_eq!(short(39.256, None, 2), "39.26");
        assert_eq!(short(0.0, Some(0.0), 2), "0.00");
    }

    #[test]
    fn wide_tables_go_on_below() {
        let cells = |texts: [&str; 4]| texts.map(Cell::new).to_vec();
        let table = Table {
            header: ["model", "a", "b", "c"].map(String::from).to_vec(),
            names: 1,
            rows: vec![cells(["12345678", "12345678", "12345678", "12345678"])],
            ..Table::default()
        };
        assert_eq!(pieces(&table, 40), [vec![0, 1, 2, 3]]);
        assert_eq!(pieces(&table, 39), [vec![0, 1, 2], vec![0, 3]]);
        assert_eq!(pieces(&table, 5), [vec![0, 1], vec![0, 2], vec![0, 3]]);
    }
}
