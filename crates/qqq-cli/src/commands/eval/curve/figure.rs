//! The figure of `qqq eval curve`: KL divergence against bits per weight, a panel for each text, as SVG.

use std::{io::Write, path::Path};

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use qqq_report::figure::{colour, distinct, marker};

use crate::files;

/// A checkpoint on a text.
#[derive(Clone, Debug)]
pub struct Point {
    /// A panel each.
    pub text: String,
    /// The kind of all its layers, where that is one.
    pub uniform: Option<String>,
    /// Bits per weight, the horizontal axis.
    pub bits: f64,
    /// Nats per token.
    pub loss: f64,
}

/// Size of a panel, of its labels, and of the title, in pixels.
const PANEL: (u32, u32) = (520, 380);
const LABELS: u32 = 60;
const TITLE: u32 = 40;
const COLUMNS: usize = 2;

/// Writes the figure.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, baseline: &str, points: &[Point]) -> anyhow::Result<()> {
    let text = figure(baseline, points)?;
    files::write(path, |file| file.write_all(text.as_bytes()))
}

/// The figure's text. There is at least one point.
fn figure(baseline: &str, points: &[Point]) -> anyhow::Result<String> {
    let texts = distinct(points.iter().map(|p| p.text.as_str()));
    let (columns, rows) = (texts.len().min(COLUMNS), texts.len().div_ceil(COLUMNS));
    let title = format!("KL divergence from {}", baseline.replace(char::is_control, " "));
    // A narrow figure is as wide as its title.
    let width = (columns as u32 * PANEL.0).max(11 * title.chars().count() as u32);
    let mut svg = String::new();
    {
        let size = (width, TITLE + rows as u32 * PANEL.1);
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        let panels = root.titled(&title, ("sans-serif", 22))?.split_evenly((rows, columns));
        for (panel, text) in panels.iter().zip(&texts) {
            let of_text: Vec<&Point> = points.iter().filter(|p| p.text == *text).collect();
            draw_panel(panel, text, &of_text)?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// The points of one text. Both axes are linear: a straight line joins what a mixture of two uniform ones would be.
fn draw_panel(
    panel: &DrawingArea<SVGBackend<'_>, Shift>,
    text: &str,
    points: &[&Point],
) -> anyhow::Result<()> {
    let bits = points.iter().map(|p| p.bits);
    let (first, last) = (bits.clone().fold(f64::INFINITY, f64::min), bits.fold(0.0, f64::max));
    let margin = ((last - first) * 0.05).max(0.1);
    let (left, right) = (first - margin, last + margin);
    let top = points.iter().map(|p| p.loss).fold(0.0, f64::max).max(1e-9) * 1.1;
    let bottom = points.iter().map(|p| p.loss).fold(0.0, f64::min) * 1.1;
    let mut chart = ChartBuilder::on(panel)
        .caption(text.replace(char::is_control, " "), ("sans-serif", 18))
        .margin(8)
        .margin_right(20)
        .set_left_and_bottom_label_area_size(LABELS)
        .build_cartesian_2d(left..right, bottom..top)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).x_labels(9).y_labels(7).label_style(("sans-serif", 15));
    let losses = |loss: &f64| number(*loss, top);
    mesh.x_label_formatter(&|bits| format!("{bits:.1}")).y_label_formatter(&losses);
    mesh.x_desc("bits per weight").y_desc("nats per token").draw()?;
    for (index, name) in ["uniform", "mixed"].into_iter().enumerate() {
        let is_uniform = index == 0;
        let mut line: Vec<&Point> =
            points.iter().copied().filter(|p| p.uniform.is_some() == is_uniform).collect();
        if line.is_empty() {
            continue;
        }
        line.sort_by(|a, b| a.bits.total_cmp(&b.bits));
        let places = line.iter().map(|p| (p.bits, p.loss));
        chart
            .draw_series(LineSeries::new(places.clone(), colour(index).stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour(index).stroke_width(2)));
        chart.draw_series(places.map(|at| marker(at, index)))?;
        // Away from the edge that is near.
        let labels = line.iter().filter_map(|p| p.uniform.as_ref().map(|kind| (p, kind)));
        chart.draw_series(labels.map(|(p, kind)| {
            let is_left = p.bits < f64::midpoint(left, right);
            let (side, x) = if is_left { (HPos::Left, 7) } else { (HPos::Right, -7) };
            let style = ("sans-serif", 13).into_text_style(panel).pos(Pos::new(side, VPos::Bottom));
            EmptyElement::at((p.bits, p.loss)) + Text::new(kind.clone(), (x, -4), style)
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 16))
        .draw()?;
    Ok(())
}

/// With as many digits as tell the marks of an axis apart that ends at `top`.
fn number(value: f64, top: f64) -> String {
    let places = (2.0 - top.log10().floor()).clamp(0.0, 12.0) as usize;
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(text: &str, uniform: Option<&str>, bits: f64, loss: f64) -> Point {
        Point { text: text.to_owned(), uniform: uniform.map(Into::into), bits, loss }
    }

    #[test]
    fn every_checkpoint_is_drawn_on_every_text() {
        let mut points = Vec::new();
        for (text, times) in [("wiki.txt", 1.0), ("<code>", 0.7)] {
            points.push(point(text, Some("W4A8 g64"), 4.25, 0.12 * times));
            points.push(point(text, Some("W8A8"), 8.03, 0.01 * times));
            points.push(point(text, None, 5.0, 0.06 * times));
        }
        let svg = figure("SmolLM2 & co", &points).unwrap();
        assert_eq!(svg.matches("<circle").count(), points.len());
        for text in ["from SmolLM2 &amp; co", "\nwiki.txt\n", "\n&lt;code&gt;\n", "\nuniform\n", "\nmixed\n"]
        {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert_eq!(svg.matches("\nW4A8 g64\n").count(), 2);
        // Both panels are inside the figure, the second beside the first.
        let places: Vec<f64> = svg
            .split(" cx=\"")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap().parse().unwrap())
            .collect();
        assert!(places.iter().all(|x| (0.0..f64::from(2 * PANEL.0)).contains(x)), "{places:?}");
        assert_eq!(places.iter().filter(|x| **x > f64::from(PANEL.0)).count(), 3);
    }

    #[test]
    fn one_checkpoint_and_no_loss_have_axes() {
        for points in [
            vec![point("a", Some("float"), 16.0, 0.0)],
            vec![point("a", None, 4.3, 1e-7), point("a", None, 4.3, 1e-7)],
            vec![point("a", None, 4.3, -1e-9), point("a", Some("W8A8"), 8.0, 1e-9)],
        ] {
            let svg = figure("m", &points).unwrap();
            assert_eq!(svg.matches("<circle").count(), points.len());
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
