//! The figure of `qqq bench model`: tokens a second against the number of sequences, as SVG.

use std::{io::Write, path::Path};

use plotters::prelude::*;

use qqq_report::figure::{colour, distinct, marker};

use crate::files;

/// A measured speed.
#[derive(Clone, Debug)]
pub struct Point {
    /// What the line is called.
    pub series: String,
    /// Sequences at once, the horizontal axis.
    pub batch: usize,
    /// Output tokens a second.
    pub tokens_per_second: f64,
}

/// Size in pixels.
const SIZE: (u32, u32) = (640, 420);
/// Room for the numbers of the axes.
const LABELS: u32 = 56;

/// Writes the figure.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, device: &str, points: &[Point]) -> anyhow::Result<()> {
    let text = figure(device, points)?;
    files::write(path, |file| file.write_all(text.as_bytes()))
}

/// The figure's text. There is at least one point.
fn figure(device: &str, points: &[Point]) -> anyhow::Result<String> {
    let series = distinct(points.iter().map(|p| p.series.as_str()));
    let mut batches = distinct(points.iter().map(|p| p.batch as f64));
    batches.sort_by(f64::total_cmp);
    let (first, last) = (batches[0], batches[batches.len() - 1]);
    let (left, right) = if first == last { (first / 2.0, last * 2.0) } else { (first, last) };
    let top = points.iter().map(|p| p.tokens_per_second).fold(1.0, f64::max) * 1.05;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let device = device.replace(char::is_control, " ");
        let mut chart = ChartBuilder::on(&root)
            .caption(format!("Output tokens a second on {device}"), ("sans-serif", 20))
            .margin(10)
            .margin_right(24)
            .set_left_and_bottom_label_area_size(LABELS)
            .build_cartesian_2d((left..right).log_scale().base(2.0).with_key_points(batches), 0.0..top)?;
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT).y_labels(7).label_style(("sans-serif", 15));
        mesh.y_label_formatter(&|rate| format!("{rate:.0}"));
        mesh.x_desc("sequences at once")
            .y_desc("tokens/s")
            .x_label_formatter(&|batch| batch.to_string())
            .draw()?;
        for (index, name) in series.iter().enumerate() {
            let of_line = points.iter().filter(|p| p.series == *name);
            let mut line: Vec<_> = of_line.map(|p| (p.batch as f64, p.tokens_per_second)).collect();
            line.sort_by(|a, b| a.0.total_cmp(&b.0));
            chart
                .draw_series(LineSeries::new(line.iter().copied(), colour(index).stroke_width(2)))?
                .label(name.replace(char::is_control, " "))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour(index).stroke_width(2)));
            chart.draw_series(line.into_iter().map(|at| marker(at, index)))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .label_font(("sans-serif", 16))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(series: &str, batch: usize, tokens_per_second: f64) -> Point {
        Point { series: series.to_owned(), batch, tokens_per_second }
    }

    #[test]
    fn every_line_and_point_is_drawn() {
        let mut points = Vec::new();
        for (series, rate) in [("w4a8", 400.0), ("fp16", 160.0)] {
            points.extend([1, 4, 16].map(|batch| point(series, batch, rate * (batch as f64).sqrt())));
        }
        let svg = figure("NVIDIA <H100>", &points).unwrap();
        assert_eq!(svg.matches("<circle").count(), points.len());
        for text in ["\nw4a8\n", "\nfp16\n", "on NVIDIA &lt;H100&gt;", "sequences at once", "\n16\n"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
    }

    #[test]
    fn one_point_has_an_axis() {
        assert_eq!(figure("cpu", &[point("float", 1, 12.5)]).unwrap().matches("<circle").count(), 1);
    }
}
