//! The figure of `qqq bench gemm`: speed-up over cuBLAS against the number of tokens, as SVG.

use std::{io::Write, path::Path};

use plotters::{coord::Shift, element::DashedPathElement, prelude::*};

use qqq_report::figure::{colour, distinct, marker};

use crate::{errors::failed_hint, files};

/// A measured product.
#[derive(Clone, Debug)]
pub struct Point {
    /// Output and input channels; a panel each.
    pub shape: (usize, usize),
    /// What the line is called.
    pub series: String,
    /// Tokens of the product, the horizontal axis.
    pub tokens: usize,
    /// Time of cuBLAS in float16 by ours.
    pub speed_up: f64,
}

/// Writes the figure.
///
/// # Errors
/// When there is nothing to compare with, or the file cannot be written.
pub fn write(path: &Path, gpu: &str, points: &[Point]) -> anyhow::Result<()> {
    if points.is_empty() {
        return Err(no_cublas());
    }
    let text = figure(gpu, points)?;
    files::write(path, |file| file.write_all(text.as_bytes()))
}

/// No figure without cuBLAS.
pub fn no_cublas() -> anyhow::Error {
    failed_hint(
        "--plot shows the speed-up over cuBLAS, which is not installed (libcublasLt.so cannot be loaded)",
        "install the CUDA toolkit's cuBLAS and put its folder into LD_LIBRARY_PATH, or leave --plot out",
    )
}

/// Size of a panel, and of its labels, in pixels.
const PANEL: (u32, u32) = (400, 300);
const LABELS: u32 = 44;
const COLUMNS: usize = 3;
/// Height of the title and of a line of the legend.
const TITLE: u32 = 40;
const LEGEND_LINE: u32 = 24;

/// The figure's text. There is at least one point.
fn figure(gpu: &str, points: &[Point]) -> anyhow::Result<String> {
    let shapes = distinct(points.iter().map(|p| p.shape));
    let series = distinct(points.iter().map(|p| p.series.as_str()));
    let (columns, rows) = (shapes.len().min(COLUMNS), shapes.len().div_ceil(COLUMNS));
    let gpu = gpu.replace(char::is_control, " ");
    let title = format!("Matrix products on {gpu}: speed-up over cuBLAS FP16");
    // A narrow figure is as wide as its title.
    let width = (columns as u32 * PANEL.0).max(9 * title.chars().count() as u32);
    let legend_top = TITLE + rows as u32 * PANEL.1;
    let height = legend_top + (series.len() + 1).div_ceil(columns) as u32 * LEGEND_LINE + 8;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let (upper, lower) = root.split_vertically(legend_top);
        let panels = upper.titled(&title, ("sans-serif", 22))?.split_evenly((rows, columns));
        for (panel, shape) in panels.iter().zip(&shapes) {
            draw_panel(panel, *shape, &series, points)?;
        }
        for (i, name) in series.iter().copied().map(Some).chain([None]).enumerate() {
            let x = (i % columns) as i32 * PANEL.0 as i32 + LABELS as i32 + 8;
            let y = (i / columns) as i32 * LEGEND_LINE as i32 + 12;
            let line = [(x, y), (x + 26, y)];
            if name.is_some() {
                lower.draw(&PathElement::new(line, colour(i).stroke_width(2)))?;
                lower.draw(&marker((x + 13, y), i))?;
            } else {
                lower.draw(&DashedPathElement::new(line, 6, 4, BLACK.stroke_width(2)))?;
            }
            lower.draw(&Text::new(name.unwrap_or("cuBLAS FP16"), (x + 34, y - 7), ("sans-serif", 16)))?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// The lines of one shape. All panels have the same scales.
fn draw_panel(
    panel: &DrawingArea<SVGBackend<'_>, Shift>,
    shape: (usize, usize),
    series: &[&str],
    points: &[Point],
) -> anyhow::Result<()> {
    let mut tokens = distinct(points.iter().map(|p| p.tokens as f64));
    tokens.sort_by(f64::total_cmp);
    let (first, last) = (tokens[0], tokens[tokens.len() - 1]);
    let powers = (0..32).map(|i| f64::from(i).exp2()).filter(|p| (first..=last).contains(p));
    let powers: Vec<f64> = powers.collect();
    // As many as there is room for their numbers.
    let every = powers.len().div_ceil(9);
    let ticks = if powers.len() < 2 { tokens } else { powers.into_iter().step_by(every).collect() };
    let (left, right) = if first == last { (first / 2.0, last * 2.0) } else { (first, last) };
    // The line of cuBLAS is always there.
    let top = points.iter().map(|p| p.speed_up).fold(1.0, f64::max) * 1.05;

    let mut chart = ChartBuilder::on(panel)
        .caption(format!("N = {}, K = {}", shape.0, shape.1), ("sans-serif", 18))
        .margin(8)
        .margin_right(20)
        .set_left_and_bottom_label_area_size(LABELS)
        .build_cartesian_2d((left..right).log_scale().base(2.0).with_key_points(ticks), 0.0..top)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).y_labels(7).label_style(("sans-serif", 15));
    mesh.x_desc("tokens").y_desc("speed-up").x_label_formatter(&|tokens| tokens.to_string()).draw()?;
    let cublas = [(left, 1.0), (right, 1.0)];
    chart.draw_series(DashedLineSeries::new(cublas, 6, 4, BLACK.stroke_width(2)))?;
    for (index, name) in series.iter().enumerate() {
        let of_line = points.iter().filter(|p| p.shape == shape && p.series == *name);
        let mut line: Vec<_> = of_line.map(|p| (p.tokens as f64, p.speed_up)).collect();
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        chart.draw_series(LineSeries::new(line.iter().copied(), colour(index).stroke_width(2)))?;
        chart.draw_series(line.into_iter().map(|at| marker(at, index)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(shape: (usize, usize), series: &str, tokens: usize, speed_up: f64) -> Point {
        Point { shape, series: series.to_owned(), tokens, speed_up }
    }

    /// Two shapes, two kinds of weights.
    fn points() -> Vec<Point> {
        let mut points = Vec::new();
        for (shape, gain) in [((8192, 21760), 1.0), ((4096, 11008), 0.9)] {
            for (series, part) in [("W4A8 per channel", 1.0), ("W4A8 in groups of 128", 0.94)] {
                for (tokens, speed_up) in
                    [(1, 3.9), (16, 4.0), (64, 4.1), (256, 3.1), (1024, 2.3), (4096, 2.25)]
                {
                    points.push(point(shape, series, tokens, speed_up * gain * part));
                }
            }
        }
        points
    }

    /// Every tag is closed, in order.
    fn check_nesting(svg: &str) {
        let mut open = Vec::new();
        for tag in svg.split('<').skip(1).map(|t| t.split_once('>').expect("a tag ends").0) {
            match tag.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "{tag}"),
                None if tag.ends_with('/') => {}
                None => open.push(tag.split(' ').next().unwrap()),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn a_figure_of_two_shapes() {
        let svg = figure("NVIDIA H100 80GB HBM3", &points()).unwrap();
        check_nesting(&svg);
        insta::assert_snapshot!(svg);
    }

    #[test]
    fn text_is_escaped() {
        let svg = figure("<GPU> & \"co\"\u{7}", &[point((16, 16), "a<b&c", 8, 2.0)]).unwrap();
        check_nesting(&svg);
        assert!(
            svg.contains("on &lt;GPU&gt; &amp; &quot;co&quot; :") && svg.contains("\na&lt;b&amp;c\n"),
            "{svg}"
        );
    }

    /// Values of an attribute.
    fn numbers<'a>(svg: &'a str, name: &'a str) -> impl Iterator<Item = f64> + 'a {
        svg.split(name).skip(1).map(|rest| rest.split('"').next().unwrap().parse().unwrap())
    }

    #[test]
    fn any_number_of_points_shapes_and_lines_stays_inside() {
        let many = (1..=5)
            .flat_map(|n| (0..9).map(move |s| point((16 * n, 16), &format!("W4A8 of kind {s}"), 8, 2.0)))
            .collect();
        for (points, shapes) in [
            (vec![point((16, 16), "a", 1, 0.02)], 1),
            (vec![point((16, 16), "a", 100, 1.0), point((16, 16), "a", 120, 31.7)], 1),
            (vec![point((16, 16), "a", 1, 0.5), point((16, 16), "a", 65536, 6.99)], 1),
            (many, 5),
        ] {
            let svg = figure("GPU", &points).unwrap();
            check_nesting(&svg);
            assert_eq!(svg.matches("\nN = ").count(), shapes);
            let series = distinct(points.iter().map(|p| &p.series)).len();
            assert_eq!(svg.matches("<circle").count(), points.len() + series);
            for (size, places) in [(" width=\"", [" x=\"", " cx=\""]), (" height=\"", [" y=\"", " cy=\""])] {
                let size = numbers(&svg, size).next().unwrap();
                assert!(
                    places.iter().all(|p| numbers(&svg, p).all(|at| (0.0..=size).contains(&at))),
                    "{svg}"
                );
            }
        }
    }

    #[test]
    fn without_cublas_there_is_no_figure() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.svg");
        let error = write(&path, "GPU", &[]).unwrap_err();
        assert!(error.to_string().contains("cuBLAS"), "{error}");
        assert!(!path.exists());
        write(&path, "GPU", &points()).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("</svg>\n"));
    }
}
