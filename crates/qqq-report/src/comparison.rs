//! The page of a comparison of models: its tables, and figures of quality against size and against speed.

use maud::html;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    Circumstances, DrawError, Figure, Table,
    charts::{SIZE, draw, number},
    figure::{colour, marker},
    page::{all_of, pairs},
    pieces::document,
};

/// What is told of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// The model that the others are compared with.
    pub baseline: String,
    /// Version of qqq that measured.
    pub version: String,
    /// Why it is not all that was asked for, where it is not.
    pub partial: Option<String>,
    /// What was measured.
    pub tables: Vec<Table>,
    /// Quality against size, against speed.
    pub scatters: Vec<Scatter>,
}

/// Models as points of a plane.
#[derive(Clone, Debug, PartialEq)]
pub struct Scatter {
    /// Name of the figure's file, without the ending.
    pub name: String,
    /// What the horizontal axis is.
    pub x_name: String,
    /// What the vertical axis is.
    pub y_name: String,
    /// Models' names and places.
    pub points: Vec<(String, f64, f64)>,
}

/// Pixels of a letter of a name: there is no font to measure, so it is a wide one's.
const LETTER: (i32, i32) = (8, 15);

impl Comparison {
    /// The page, as one file.
    ///
    /// # Errors
    /// A figure that cannot be drawn.
    pub fn page(&self, circumstances: &Circumstances) -> Result<String, DrawError> {
        let title = format!("Models beside {}", self.baseline);
        let figures = self.scatters.iter().map(Scatter::figure).collect::<Result<Vec<_>, _>>()?;
        let mut environment = vec![("qqq".to_owned(), self.version.clone())];
        environment.extend(circumstances.environment.iter().cloned());
        let body = html! {
            h1 { (title) }
            @if let Some(partial) = &self.partial { p.verdict { strong { "PARTIAL" } ": " (partial) } }
            @for table in &self.tables { h2 { (table.title) } (table.html()) }
            @if !figures.is_empty() {
                h2 { "Quality against size and speed" }
                (all_of(figures.iter()))
            }
            h2 { "How to make it again" }
            pre tabindex="0" { code { (circumstances.command) } }
            (pairs(&environment))
        };
        Ok(document(&title, &self.version, &body))
    }
}

impl Scatter {
    /// A figure of it. Its title has the numbers, for readers that do not see it.
    fn figure(&self) -> Result<Figure, DrawError> {
        let points = self.points.iter().map(|(name, x, y)| format!("{name}: {}, {}", number(*x), number(*y)));
        let points = points.collect::<Vec<_>>().join("; ");
        let title = format!("{} against {}. {points}", self.y_name, self.x_name);
        draw(&self.name, title, |root| self.draw(root))
    }

    fn draw(&self, root: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn std::error::Error>> {
        let (x, y) = (range(self.points.iter().map(|p| p.1)), range(self.points.iter().map(|p| p.2)));
        let mut chart = ChartBuilder::on(root)
            .margin(8)
            .x_label_area_size(44)
            .y_label_area_size(62)
            .build_cartesian_2d(x, y)?;
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT).x_labels(7).y_labels(6).label_style(("sans-serif", 14));
        mesh.x_label_formatter(&|x| number(*x)).y_label_formatter(&|y| number(*y));
        mesh.x_desc(&self.x_name).y_desc(&self.y_name).draw()?;
        chart.draw_series(self.points.iter().enumerate().map(|(i, (_, x, y))| marker((*x, *y), i)))?;
        let places: Vec<(i32, i32)> =
            self.points.iter().map(|(_, x, y)| chart.backend_coord(&(*x, *y))).collect();
        let names: Vec<&str> = self.points.iter().map(|(name, ..)| name.as_str()).collect();
        let size = (SIZE.0 as i32, SIZE.1 as i32);
        for (index, corner) in name_corners(&places, &names, size).into_iter().enumerate() {
            let style = ("sans-serif", 13).into_text_style(root).pos(Pos::new(HPos::Left, VPos::Top));
            let text = names[index].replace(char::is_control, " ");
            if let Some(near) = leads_to(places[index], corner, names[index]) {
                let line = colour(index).mix(0.6).stroke_width(1);
                root.draw(&PathElement::new([places[index], near], line))?;
            }
            root.draw(&Text::new(text, corner, style.color(&colour(index))))?;
        }
        Ok(())
    }
}

/// Room around all values.
fn range(values: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
    let (low, high) =
        (values.clone().fold(f64::INFINITY, f64::min), values.fold(f64::NEG_INFINITY, f64::max));
    let room = ((high - low) * 0.12).max(high.abs() * 1e-3).max(1e-9);
    low - room..high + room
}

/// Where names stand beside their points: each where it hides least of what stands already, within the figure, and then as near
/// as possible.
fn name_corners(places: &[(i32, i32)], names: &[&str], (width, height): (i32, i32)) -> Vec<(i32, i32)> {
    let mut taken: Vec<[i32; 4]> = places.iter().map(|(x, y)| [x - 5, y - 5, x + 5, y + 5]).collect();
    let mut corners = Vec::new();
    for ((x, y), name) in places.iter().zip(names) {
        let [_, _, w, h] = name_box((0, 0), name);
        let cost = |&corner: &(i32, i32)| {
            let own = name_box(corner, name);
            let outside =
                if own[0] < 0 || own[1] < 0 || own[2] > width || own[3] > height { 1 << 20 } else { 0 };
            taken.iter().map(|other| overlap(&own, other)).sum::<i32>() + outside
        };
        let beside = [(x + 8, y - h / 2), (x - 8 - w, y - h / 2)];
        let around = [(x - w / 2, y - h - 7), (x - w / 2, y + 7)];
        // Row by row away from the point, where others crowd around it.
        let far = (1..=height / h).flat_map(|row| {
            let (above, below) = (y - h / 2 - row * h, y - h / 2 + row * h);
            [x + 8, x - 8 - w, x - w / 2].into_iter().flat_map(move |left| [(left, above), (left, below)])
        });
        // The first of those that cost the same.
        if let Some(best) = beside.into_iter().chain(around).chain(far).min_by_key(cost) {
            taken.push(name_box(best, name));
            corners.push(best);
        }
    }
    corners
}

/// The room that a name takes; left, top, right, bottom.
fn name_box((left, top): (i32, i32), name: &str) -> [i32; 4] {
    [left, top, left + LETTER.0 * name.chars().count() as i32, top + LETTER.1]
}

/// The nearest place of a name's box to its point, if it is so far that a line should lead there.
fn leads_to((x, y): (i32, i32), corner: (i32, i32), name: &str) -> Option<(i32, i32)> {
    let [left, top, right, bottom] = name_box(corner, name);
    let near = (x.clamp(left, right), y.clamp(top, bottom));
    ((near.0 - x).abs().max((near.1 - y).abs()) > LETTER.1).then_some(near)
}

/// Pixels that two boxes have in common; left, top, right, bottom.
fn overlap(a: &[i32; 4], b: &[i32; 4]) -> i32 {
    let side = |from: usize, to: usize| (a[to].min(b[to]) - a[from].max(b[from])).max(0);
    side(0, 2) * side(1, 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cell;

    fn scatter(points: &[(&str, f64, f64)]) -> Scatter {
        Scatter {
            name: "loss-size".into(),
            x_name: "bits per weight".into(),
            y_name: "nats per token".into(),
            points: points.iter().map(|(name, x, y)| ((*name).to_owned(), *x, *y)).collect(),
        }
    }

    #[test]
    fn the_page_has_tables_figures_and_the_way_back() {
        let table = Table {
            title: "Quality".into(),
            header: vec!["model".into(), "KL".into()],
            names: 1,
            rows: vec![vec![Cell::new("<qqq>"), Cell { text: "0.1".into(), marked: true }]],
            notes: Vec::new(),
        };
        let comparison = Comparison {
            baseline: "a<b".into(),
            version: "0.1.0".into(),
            partial: Some("1 of 2 models".into()),
            tables: vec![table],
            scatters: vec![scatter(&[("fp16", 16.0, 0.0), ("<qqq>", 4.25, 0.1)])],
        };
        let circumstances = Circumstances {
            command: "qqq compare 'a<b'".into(),
            environment: vec![("device".into(), "cpu".into())],
        };
        let page = comparison.page(&circumstances).unwrap();
        for part in [
            "<h1>Models beside a&lt;b</h1>",
            "<strong>PARTIAL</strong>: 1 of 2 models",
            "<th scope=\"row\">&lt;qqq&gt;</th>",
            "qqq compare 'a&lt;b'",
            "role=\"img\"",
            "nats per token against bits per weight. fp16: 16, 0; &lt;qqq&gt;: 4.25, 0.1",
            "prefers-color-scheme:dark",
            "name=\"viewport\"",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        for loads in ["<script", "<link", " src=", "url(", "@import", "<img"] {
            assert!(!page.contains(loads), "{loads}");
        }
        assert_eq!(page.matches("<circle").count(), 2);
    }

    #[test]
    fn names_do_not_hide_each_other() {
        let places = [(100, 100), (104, 103), (110, 98), (100, 120), (500, 100)];
        let names = ["smoothquant", "gptq", "awq", "qqq-g128", "omniquant"];
        let corners = name_corners(&places, &names, (520, 300));
        let boxes: Vec<[i32; 4]> =
            corners.iter().zip(names).map(|(corner, name)| name_box(*corner, name)).collect();
        assert_eq!(leads_to(places[4], corners[4], names[4]), None, "it stands alone: {corners:?}");
        for (i, own) in boxes.iter().enumerate() {
            assert!(own[0] >= 0 && own[2] <= 520, "{own:?}");
            assert!(boxes[..i].iter().all(|other| overlap(own, other) == 0), "{boxes:?}");
        }
    }

    /// Recipes of the same bits and nearly the same loss, as they are in one column of a figure.
    #[test]
    fn a_crowd_of_names_is_readable() {
        let places: Vec<(i32, i32)> = (0..10).map(|i| (90 + i % 3, 100 + 2 * i)).collect();
        let names = ["best:group-size=channel"; 10];
        let corners = name_corners(&places, &names, (640, 360));
        let mut led = 0;
        for (i, corner) in corners.iter().enumerate() {
            let own = name_box(*corner, names[i]);
            assert!(own[0] >= 0 && own[1] >= 0 && own[2] <= 640 && own[3] <= 360, "{own:?}");
            led += usize::from(leads_to(places[i], *corner, names[i]).is_some());
            for other in &corners[..i] {
                assert_eq!(overlap(&own, &name_box(*other, names[i])), 0, "{corners:?}");
            }
        }
        assert!(led > 0, "{corners:?}");
    }

    #[test]
    fn one_point_and_equal_ones_have_axes() {
        for points in [vec![("a", 16.0, 0.0)], vec![("a", 4.0, 1e-7), ("b", 4.0, 1e-7)]] {
            let figure = scatter(&points).figure().unwrap();
            assert_eq!(figure.svg.matches("<circle").count(), points.len());
            assert!(!figure.svg.contains("NaN") && !figure.svg.contains("inf"), "{}", figure.svg);
        }
    }
}
