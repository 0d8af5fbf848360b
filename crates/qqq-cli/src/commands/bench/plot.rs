//! The figure of `qqq bench gemm`: speed-up over cuBLAS against the number of tokens, as SVG.

use std::{
    fmt::{Display, Write as _},
    io::Write as _,
    path::Path,
};

use crate::{errors::failed_hint, files};

/// A measured product.
#[derive(Clone, Debug)]
pub struct Point {
    /// Output and input channels; a panel each.
    pub shape: (usize, usize),
    /// What the line is called.
    pub series: String,
    /// Tokens.
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
    let text = figure(gpu, points);
    files::write(path, |file| file.write_all(text.as_bytes()))
}

/// No figure without cuBLAS.
pub fn no_cublas() -> anyhow::Error {
    failed_hint(
        "--plot shows the speed-up over cuBLAS, which is not installed (libcublasLt.so cannot be loaded)",
        "install the CUDA toolkit's cuBLAS and put its folder into LD_LIBRARY_PATH, or leave --plot out",
    )
}

// Sizes in pixels.
const PLOT: (f64, f64) = (330.0, 220.0);
const LEFT: f64 = 58.0;
const RIGHT: f64 = 18.0;
/// Above a panel: its shape.
const ABOVE: f64 = 30.0;
/// Below: numbers of tokens, and what they are.
const BELOW: f64 = 48.0;
const TITLE: f64 = 40.0;
const LEGEND_LINE: f64 = 22.0;
/// Width of a letter, about.
const LETTER: f64 = 6.8;
const COLUMNS: usize = 3;

/// Colours of the lines on white and on black, told apart by most colour-blind people too; markers help.
const COLOURS: [(&str, &str); 8] = [
    ("#0060a8", "#62b0ff"),
    ("#c64600", "#ff9a5c"),
    ("#007a58", "#3fd0a4"),
    ("#a0246b", "#f07fc0"),
    ("#7a5c00", "#e5c04a"),
    ("#5b45c9", "#b3a4ff"),
    ("#444444", "#c8c8c8"),
    ("#8a3324", "#e39a8a"),
];

/// The scales that all panels share.
struct Scales {
    /// log2 of the tokens at the left and right edge.
    x: (f64, f64),
    x_ticks: Vec<usize>,
    y_top: f64,
    y_step: f64,
}

impl Scales {
    fn new(points: &[Point]) -> Self {
        let mut tokens: Vec<_> = points.iter().map(|p| p.tokens).collect();
        tokens.sort_unstable();
        tokens.dedup();
        let (first, last) = (tokens[0], tokens[tokens.len() - 1]);
        let mut x = ((first as f64).log2(), (last as f64).log2());
        if first == last {
            x = (x.0 - 0.5, x.1 + 0.5);
        }
        let powers = (0..usize::BITS - 1).map(|i| 1usize << i).filter(|p| (first..=last).contains(p));
        let mut x_ticks: Vec<_> = powers.collect();
        if x_ticks.len() < 2 {
            x_ticks = tokens;
        }
        // As many as there is room for their numbers.
        let every = x_ticks.len().div_ceil(9);
        x_ticks = x_ticks.into_iter().step_by(every).collect();
        // The line of cuBLAS is always there.
        let most = points.iter().map(|p| p.speed_up).fold(1.0, f64::max) * 1.05;
        let mut steps =
            [0.25, 0.5].into_iter().chain((0..9).flat_map(|e| [1.0, 2.0, 5.0].map(|s| s * 10f64.powi(e))));
        let y_step = steps.find(|s| most / s <= 7.0).unwrap_or(most);
        Self { x, x_ticks, y_top: (most / y_step).ceil() * y_step, y_step }
    }

    /// Pixels from the left edge of a panel.
    fn across(&self, tokens: usize) -> f64 {
        ((tokens as f64).log2() - self.x.0) / (self.x.1 - self.x.0) * PLOT.0
    }

    /// Pixels from the upper edge of a panel.
    fn down(&self, speed_up: f64) -> f64 {
        PLOT.1 * (1.0 - speed_up / self.y_top)
    }
}

/// The figure's text. There is at least one point.
fn figure(gpu: &str, points: &[Point]) -> String {
    let shapes = distinct(points.iter().map(|p| p.shape));
    let series = distinct(points.iter().map(|p| p.series.as_str()));
    let scales = Scales::new(points);
    let columns = shapes.len().min(COLUMNS);
    let rows = shapes.len().div_ceil(COLUMNS);
    let panel = (LEFT + PLOT.0 + RIGHT, ABOVE + PLOT.1 + BELOW);
    let title = format!("Matrix products on {gpu}: speed-up over cuBLAS FP16");
    let width = (columns as f64 * panel.0).max(title.chars().count() as f64 * 1.25 * LETTER + 2.0 * RIGHT);
    let (legend, legend_lines) = legend(&series, width);
    let legend_top = TITLE + rows as f64 * panel.1;
    let height = legend_top + legend_lines as f64 * LEGEND_LINE + 12.0;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n<title>{0}</title>\n{1}\
         <rect class=\"paper\" width=\"100%\" height=\"100%\"/>\n\
         <text class=\"title\" x=\"{2:.1}\" y=\"26\">{0}</text>\n",
        escape(&title),
        style(series.len()),
        width / 2.0,
    );
    for (i, shape) in shapes.iter().enumerate() {
        let left = (i % COLUMNS) as f64 * panel.0 + LEFT;
        let top = TITLE + (i / COLUMNS) as f64 * panel.1 + ABOVE;
        write_panel(&mut svg, &scales, *shape, (left, top));
        for (index, name) in series.iter().enumerate() {
            let of_line = points.iter().filter(|p| p.shape == *shape && p.series == *name);
            write_line(&mut svg, &scales, index, of_line);
        }
        svg += "</g>\n";
    }
    line(&mut svg, format_args!("<g transform=\"translate(0 {legend_top:.1})\">"));
    svg += &legend;
    svg += "</g>\n</svg>\n";
    svg
}

/// Colours, in light and in dark surroundings. The figure brings its own background: it is legible whatever is behind it.
fn style(series: usize) -> String {
    let colours = |dark: bool| -> String {
        let colour = |i: usize| {
            let (on_white, on_black) = COLOURS[i % COLOURS.len()];
            if dark { on_black } else { on_white }
        };
        (0..series).map(|i| format!(".s{i}{{stroke:{0};fill:{0}}}", colour(i))).collect()
    };
    format!(
        "<style>\n\
         text{{font:12px system-ui,sans-serif;fill:#222}}.title{{font-size:15px;font-weight:600;text-anchor:middle}}\
         .head{{font-weight:600;text-anchor:middle}}.x{{text-anchor:middle}}.y{{text-anchor:end}}\n\
         .paper{{fill:#fff}}.grid{{stroke:#ddd}}.axis{{stroke:#222;fill:none}}\
         .one{{stroke:#222;stroke-width:1.5;stroke-dasharray:5 4}}.line{{fill:none!important;stroke-width:2}}\n\
         {}\n\
         @media(prefers-color-scheme:dark){{text{{fill:#ddd}}.paper{{fill:#16181d}}.grid{{stroke:#3a3d44}}\
         .axis,.one{{stroke:#ddd}}{}}}\n\
         </style>\n",
        colours(false),
        colours(true)
    )
}

/// Opens a panel's group, with axes and labels.
fn write_panel(svg: &mut String, scales: &Scales, (n, k): (usize, usize), (left, top): (f64, f64)) {
    let (width, height) = PLOT;
    line(svg, format_args!("<g transform=\"translate({left:.1} {top:.1})\">"));
    line(
        svg,
        format_args!("<text class=\"head\" x=\"{:.1}\" y=\"-10\">N = {n}, K = {k}</text>", width / 2.0),
    );
    let digits = if scales.y_step.fract() == 0.0 { 0 } else { 2 };
    for i in 0..=(scales.y_top / scales.y_step).round() as usize {
        let value = i as f64 * scales.y_step;
        let y = scales.down(value);
        line(svg, format_args!("<line class=\"grid\" x2=\"{width}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"));
        line(svg, format_args!("<text class=\"y\" x=\"-8\" y=\"{:.1}\">{value:.digits$}</text>", y + 4.0));
    }
    for tokens in &scales.x_ticks {
        let x = scales.across(*tokens);
        line(svg, format_args!("<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y2=\"{height}\"/>"));
        line(svg, format_args!("<text class=\"x\" x=\"{x:.1}\" y=\"{:.1}\">{tokens}</text>", height + 18.0));
    }
    line(svg, format_args!("<path class=\"axis\" d=\"M0 0V{height}H{width}\"/>"));
    let (middle, below) = (width / 2.0, height + 38.0);
    line(svg, format_args!("<text class=\"x\" x=\"{middle:.1}\" y=\"{below:.1}\">tokens</text>"));
    line(
        svg,
        format_args!(
            "<text class=\"x\" transform=\"translate(-42 {:.1}) rotate(-90)\">speed-up</text>",
            height / 2.0
        ),
    );
    let one = scales.down(1.0);
    line(svg, format_args!("<line class=\"one\" x2=\"{width}\" y1=\"{one:.1}\" y2=\"{one:.1}\"/>"));
}

/// One line with its markers.
fn write_line<'a>(svg: &mut String, scales: &Scales, index: usize, points: impl Iterator<Item = &'a Point>) {
    let mut points: Vec<_> = points.collect();
    points.sort_by_key(|p| p.tokens);
    let places: Vec<_> = points.iter().map(|p| (scales.across(p.tokens), scales.down(p.speed_up))).collect();
    let Some(((x, y), rest)) = places.split_first() else { return };
    let rest: String = rest.iter().map(|(x, y)| format!("L{x:.1} {y:.1}")).collect();
    line(svg, format_args!("<path class=\"s{index} line\" d=\"M{x:.1} {y:.1}{rest}\"/>"));
    for (place, point) in places.iter().zip(points) {
        let what = format!("{}, {} tokens: {:.2}", point.series, point.tokens, point.speed_up);
        marker(svg, index, *place, &what);
    }
}

/// The mark of a line at a place; `what` is shown where the pointer rests.
fn marker(svg: &mut String, index: usize, (x, y): (f64, f64), what: &str) {
    let shape = match index % 4 {
        0 => "M-4 0A4 4 0 1 1 4 0A4 4 0 1 1 -4 0Z",
        1 => "M-3.5 -3.5H3.5V3.5H-3.5Z",
        2 => "M0 -5L5 0L0 5L-5 0Z",
        _ => "M0 -4.5L4.5 3.5H-4.5Z",
    };
    let title = if what.is_empty() { String::new() } else { format!("<title>{}</title>", escape(what)) };
    line(
        svg,
        format_args!(
            "<path class=\"s{index}\" transform=\"translate({x:.1} {y:.1})\" d=\"{shape}\">{title}</path>"
        ),
    );
}

/// The lines' names, and how many rows they take.
fn legend(series: &[&str], width: f64) -> (String, usize) {
    let mut svg = String::new();
    let (mut x, mut row) = (LEFT, 0);
    for (i, name) in series.iter().copied().map(Some).chain([None]).enumerate() {
        let text = name.unwrap_or("cuBLAS FP16");
        let wide = 34.0 + text.chars().count() as f64 * LETTER + 18.0;
        if x + wide > width && x > LEFT {
            (x, row) = (LEFT, row + 1);
        }
        let y = row as f64 * LEGEND_LINE + 10.0;
        let class = name.map_or(String::from("one"), |_| format!("s{i} line"));
        line(&mut svg, format_args!("<path class=\"{class}\" d=\"M{x:.1} {y:.1}h26\"/>"));
        if name.is_some() {
            marker(&mut svg, i, (x + 13.0, y), "");
        }
        line(
            &mut svg,
            format_args!("<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 34.0, y + 4.0, escape(text)),
        );
        x += wide;
    }
    (svg, row + 1)
}

fn line(svg: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(svg, "{text}").expect("a string takes all");
}

/// Text as XML has it; control characters, which it cannot have, become spaces.
fn escape(text: impl Display) -> String {
    let mut out = String::new();
    for c in text.to_string().chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// Without repetition, in order of appearance.
fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in all {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
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
        let svg = figure("NVIDIA H100 80GB HBM3", &points());
        check_nesting(&svg);
        insta::assert_snapshot!(svg);
    }

    #[test]
    fn text_is_escaped() {
        let svg = figure("<GPU> & \"co\"\u{7}", &[point((16, 16), "a<b&c", 8, 2.0)]);
        check_nesting(&svg);
        assert!(svg.contains("on &lt;GPU&gt; &amp; &quot;co&quot; :"), "{svg}");
        assert!(
            svg.contains(">a&lt;b&amp;c<") && svg.contains("<title>a&lt;b&amp;c, 8 tokens: 2.00</title>")
        );
    }

    #[test]
    fn scales_hold_all_points() {
        for points in [
            vec![point((16, 16), "a", 1, 0.02)],
            vec![point((16, 16), "a", 100, 1.0), point((16, 16), "a", 120, 31.7)],
            vec![point((16, 16), "a", 1, 0.5), point((16, 16), "a", 65536, 6.99)],
        ] {
            let scales = Scales::new(&points);
            assert!((1..=9).contains(&scales.x_ticks.len()), "{:?}", scales.x_ticks);
            assert!(scales.y_top / scales.y_step <= 8.0);
            for (x, y) in points.iter().map(|p| (scales.across(p.tokens), scales.down(p.speed_up))) {
                assert!((0.0..=PLOT.0).contains(&x) && (0.0..=PLOT.1).contains(&y), "{points:?}");
            }
            let ticks = scales.x_ticks.iter().map(|t| scales.across(*t));
            assert!(ticks.into_iter().all(|x| (-0.01..=PLOT.0 + 0.01).contains(&x)));
        }
    }

    #[test]
    fn many_shapes_and_lines_stay_inside() {
        let all: Vec<_> = (1..=5)
            .flat_map(|n| (0..9).map(move |s| point((16 * n, 16), &format!("W4A8 of kind {s}"), 8, 2.0)))
            .collect();
        let svg = figure("GPU", &all);
        check_nesting(&svg);
        assert_eq!(svg.matches("<text class=\"head\"").count(), 5);
        let size = |name: &str| -> f64 {
            let rest = &svg[svg.find(&format!("{name}=\"")).unwrap() + name.len() + 2..];
            rest[..rest.find('"').unwrap()].parse().unwrap()
        };
        let legend = &svg[svg.rfind("<g transform=\"translate(0 ").unwrap()..];
        let top: f64 = legend[26..legend.find(")\"").unwrap()].parse().unwrap();
        for at in legend.match_indices("<text x=\"").map(|(i, _)| i + 9) {
            let numbers: Vec<f64> =
                legend[at..].split('"').step_by(2).take(2).map(|n| n.parse().unwrap()).collect();
            assert!(
                numbers[0] + 13.0 * LETTER < size("width") && top + numbers[1] < size("height"),
                "{numbers:?}"
            );
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
