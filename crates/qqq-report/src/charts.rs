//! The figures of a quantization.

use plotters::{
    coord::{
        Shift,
        combinators::{BindKeyPoints, LogCoord, WithKeyPoints},
        ranged1d::{AsRangedCoord, ValueFormatter},
    },
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use qqq_quant::{
    ActivationReport, Magnitudes, Report,
    report::{LayerReport, SmoothReport},
};

use crate::{
    DrawError, block_of,
    figure::{colour, distinct, marker},
    module_of,
};

/// A figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Such as `outliers-mlp.down_proj`: name of its file, without the ending.
    pub name: String,
    /// What it shows, in words.
    pub title: String,
    /// What is drawn: SVG.
    pub svg: String,
}

/// Width and height.
pub(crate) const SIZE: (u32, u32) = (440, 280);
/// Sites whose channels are drawn: those whose outliers stand out most.
const PICTURES: usize = 4;

/// Bars of a picture of channels at most: each has to be a pixel wide, or it would not be seen.
const BARS: usize = 128;

/// All figures that a report has numbers for, in the order of the page.
///
/// # Errors
/// Those of plotters, which are bugs.
pub fn figures(report: &Report) -> Result<Vec<Figure>, DrawError> {
    let mut figures = Vec::new();
    for (site, activations) in worst_sites(&report.activations) {
        let name = format!("channels-{site}");
        figures.push(channels(&name, activations)?);
    }
    figures.extend(outliers(&report.activations)?);
    figures.extend(losses(report)?);
    figures.extend(searches(&report.smoothing)?);
    Ok(figures)
}

/// For each module the layer whose float inputs have the channel that stands out most, the worst module first.
pub(crate) fn worst_sites(all: &[ActivationReport]) -> Vec<(&str, &ActivationReport)> {
    let modules = distinct(all.iter().map(|a| module_of(&a.name)));
    let ratio = |a: &ActivationReport| a.float.outlier_ratio().unwrap_or(0.0);
    let of_module = |module: &str| {
        let own = all.iter().filter(|a| module_of(&a.name) == module);
        own.max_by(|a, b| ratio(a).total_cmp(&ratio(b)))
    };
    let mut worst: Vec<_> = modules.into_iter().filter_map(|m| Some((m, of_module(m)?))).collect();
    worst.sort_by(|a, b| ratio(b.1).total_cmp(&ratio(a.1)));
    worst.truncate(PICTURES);
    worst
}

/// Draws into a string.
pub(crate) fn draw(
    name: &str,
    title: String,
    what: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<Figure, DrawError> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let drawn = what(&root).and_then(|()| Ok(root.present()?));
        drawn.map_err(|e| DrawError { figure: name.to_owned(), reason: e.to_string() })?;
    }
    Ok(Figure { name: name.to_owned(), title, svg })
}

/// Two series on the same axes, with their names.
type Named<'a> = (&'a str, Vec<(f64, f64)>);

/// Lines over linear or logarithmic axes.
struct Axes<X, Y> {
    x: X,
    y: Y,
    x_name: &'static str,
    y_name: &'static str,
    markers: bool,
}

impl<X, Y> Axes<X, Y>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    fn lines(
        self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        series: &[Named<'_>],
    ) -> Result<(), Box<dyn std::error::Error>> {
        let area = if series.len() > 1 { legend(area, series)? } else { area.clone() };
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(44)
            .y_label_area_size(62)
            .build_cartesian_2d(self.x, self.y)?;
        let mut mesh = chart.configure_mesh();
        mesh.light_line_style(TRANSPARENT).x_labels(8).y_labels(6).label_style(("sans-serif", 14));
        mesh.x_label_formatter(&|x| number(*x)).y_label_formatter(&|y| number(*y));
        mesh.x_desc(self.x_name).y_desc(self.y_name).draw()?;
        for (index, (_, points)) in series.iter().enumerate() {
            chart.draw_series(LineSeries::new(points.iter().copied(), colour(index).stroke_width(2)))?;
            if self.markers {
                chart.draw_series(points.iter().map(|at| marker(*at, index)))?;
            }
        }
        Ok(())
    }
}

/// Names of the series above what is left of an area, in rows: there they hide nothing.
fn legend<'a>(
    area: &DrawingArea<SVGBackend<'a>, Shift>,
    series: &[Named<'_>],
) -> Result<DrawingArea<SVGBackend<'a>, Shift>, Box<dyn std::error::Error>> {
    const ROW: i32 = 20;
    let (width, (mut x, mut row)) = (area.dim_in_pixel().0 as i32, (12, 0));
    for (index, (name, _)) in series.iter().enumerate() {
        // There is no font to measure: wide for most.
        let needed = 28 + 8 * name.chars().count() as i32 + 16;
        if x + needed > width && x > 12 {
            (x, row) = (12, row + 1);
        }
        let y = row * ROW + ROW / 2 + 2;
        area.draw(&PathElement::new([(x, y), (x + 22, y)], colour(index).stroke_width(2)))?;
        let style = ("sans-serif", 14).into_text_style(area).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new((*name).to_owned(), (x + 28, y), style))?;
        x += needed;
    }
    Ok(area.split_vertically((row + 1) * ROW + 4).1)
}

/// Marks of a logarithmic axis: 1, 2 and 5 of each power of ten, or powers of ten alone where these are many.
fn marks(range: &std::ops::Range<f64>) -> Vec<f64> {
    let powers = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
    let digits: &[f64] = if powers.clone().count() > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = powers.flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
    all.filter(|mark| range.contains(mark)).collect()
}

/// A logarithmic axis.
fn logarithmic(range: std::ops::Range<f64>) -> WithKeyPoints<LogCoord<f64>> {
    let marks = marks(&range);
    range.log_scale().with_key_points(marks)
}

/// As short as it says something.
pub(crate) fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        size if (1e-3..1e5).contains(&size) => {
            let places = (2 - size.log10().floor() as i32).clamp(0, 5) as usize;
            let text = format!("{x:.places$}");
            match text.contains('.') {
                true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => text,
            }
        }
        _ => format!("{x:.0e}"),
    }
}

/// From the least to the largest number above 0, with some room; for a logarithmic axis.
fn log_range(values: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
    let positive = values.filter(|x| *x > 0.0 && x.is_finite());
    let (low, high) = (positive.clone().fold(f64::INFINITY, f64::min), positive.fold(0.0, f64::max));
    if low > high { 0.1..1.0 } else { low / 1.3..high * 1.3 }
}

/// The paper's picture: how far the inputs of a layer reach, channel by channel, before and after.
fn channels(name: &str, of: &ActivationReport) -> Result<Figure, DrawError> {
    let title = format!(
        "{}: largest magnitude of each input channel; of the float model up to {}, in the result up to {}",
        of.name,
        number(f64::from(of.float.peak())),
        number(f64::from(of.quantized.peak()))
    );
    let merged = of.float.largest.len().div_ceil(BARS).max(1);
    let each = merged * of.channels.div_ceil(of.float.largest.len().max(1));
    let largest = |bin: &[f32]| f64::from(bin.iter().copied().fold(0.0, f32::max));
    let bars = |m: &Magnitudes| -> Vec<f64> { m.largest.chunks(merged).map(largest).collect() };
    let sides = [("float model", bars(&of.float)), ("result", bars(&of.quantized))];
    draw(name, title, |root| {
        for (index, (panel, (side, bars))) in root.split_evenly((1, 2)).iter().zip(&sides).enumerate() {
            let top = bars.iter().copied().fold(0.0, f64::max).max(1e-9) * 1.05;
            let mut chart = ChartBuilder::on(panel)
                .caption(side, ("sans-serif", 16))
                .margin(6)
                .margin_right(16)
                .x_label_area_size(44)
                .y_label_area_size(46)
                .build_cartesian_2d(0.0..of.channels as f64, 0.0..top)?;
            let mut mesh = chart.configure_mesh();
            mesh.light_line_style(TRANSPARENT).disable_x_mesh().x_labels(4).y_labels(6);
            mesh.label_style(("sans-serif", 14)).x_label_formatter(&|x| format!("{x:.0}"));
            mesh.y_label_formatter(&|y| number(*y)).x_desc("input channel").draw()?;
            let rectangles = bars.iter().enumerate().map(|(i, y)| {
                let (left, right) = ((i * each) as f64, ((i + 1) * each) as f64);
                Rectangle::new([(left, 0.0), (right, *y)], colour(index).filled())
            });
            chart.draw_series(rectangles)?;
        }
        Ok(())
    })
}

/// How far the largest channel stands out, block by block: a figure for each module.
fn outliers(all: &[ActivationReport]) -> Result<Vec<Figure>, DrawError> {
    let mut figures = Vec::new();
    for module in distinct(all.iter().map(|a| module_of(&a.name))) {
        let own = all.iter().filter(|a| module_of(&a.name) == module);
        let line = |of: fn(&ActivationReport) -> &Magnitudes| -> Vec<(f64, f64)> {
            let point = |a: &ActivationReport| {
                Some((block_of(&a.name)? as f64 + 1.0, f64::from(of(a).outlier_ratio()?)))
            };
            own.clone().filter_map(point).collect()
        };
        let series = [("float model", line(|a| &a.float)), ("result", line(|a| &a.quantized))];
        let blocks = series.iter().flat_map(|(_, points)| points).map(|(x, _)| *x).fold(0.0, f64::max);
        if blocks < 2.0 {
            continue;
        }
        let y = log_range(series.iter().flat_map(|(_, points)| points.iter().map(|(_, y)| *y)));
        let title =
            format!("Input of {module}: the largest channel, as times the median channel, block by block");
        let axes = Axes {
            x: 1.0..blocks,
            y: logarithmic(y),
            x_name: "block",
            y_name: "largest / median",
            markers: false,
        };
        figures.push(draw(&format!("outliers-{module}"), title, |root| axes.lines(root, &series))?);
    }
    Ok(figures)
}

/// What layers lose, block by block: of their outputs and of their weights.
fn losses(report: &Report) -> Result<Vec<Figure>, DrawError> {
    let title = "Error of what each layer gives, as a share of the output's square, block by block";
    let outputs = errors(report, "loss", title, "share of the output's square", |layer| Some(layer.loss))?;
    let title = "Error of each layer's weights, as a share of their norm, block by block";
    let weights = errors(report, "weight-error", title, "share of the weights' norm", |l| l.weight_error)?;
    Ok(outputs.into_iter().chain(weights).collect())
}

/// An error of each layer, block by block.
fn errors(
    report: &Report,
    name: &str,
    title: &str,
    y_name: &'static str,
    of: impl Fn(&LayerReport) -> Option<f64>,
) -> Result<Option<Figure>, DrawError> {
    let error = |layer: &LayerReport| of(layer).filter(|e| *e > 0.0 && e.is_finite());
    let layers =
        report.layers.iter().filter_map(|l| Some((module_of(&l.name), block_of(&l.name)?, error(l)?)));
    let layers: Vec<_> = layers.collect();
    let modules = distinct(layers.iter().map(|(module, ..)| *module));
    let blocks = layers.iter().map(|(_, block, _)| block + 1).max().unwrap_or(0);
    if blocks < 2 {
        return Ok(None);
    }
    let line = |module: &str| -> Vec<(f64, f64)> {
        let own = layers.iter().filter(|(m, ..)| *m == module);
        own.map(|(_, block, error)| (*block as f64 + 1.0, *error)).collect()
    };
    let series: Vec<Named<'_>> = modules.iter().map(|module| (*module, line(module))).collect();
    let y = log_range(layers.iter().map(|(.., error)| *error));
    let axes = Axes { x: 1.0..blocks as f64, y: logarithmic(y), x_name: "block", y_name, markers: false };
    draw(name, title.to_owned(), |root| axes.lines(root, &series)).map(Some)
}

/// For each module the search of a smoothing threshold that gained most, the largest gain first.
pub(crate) fn best_searches(all: &[SmoothReport]) -> Vec<&SmoothReport> {
    let gain = |s: &SmoothReport| s.loss_before - s.loss_after;
    let mut searched: Vec<&SmoothReport> = all.iter().filter(|s| s.curve.len() > 2).collect();
    searched.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
    let modules = distinct(searched.iter().map(|s| module_of(&s.site)));
    modules.iter().filter_map(|m| searched.iter().find(|s| module_of(&s.site) == *m).copied()).collect()
}

/// Loss over the threshold of smoothing.
fn searches(all: &[SmoothReport]) -> Result<Vec<Figure>, DrawError> {
    let figure = |s: &&SmoothReport| {
        let points: Vec<(f64, f64)> =
            s.curve.iter().map(|(sigma, loss)| (f64::from(*sigma), *loss)).collect();
        let axes = Axes {
            x: logarithmic(log_range(points.iter().map(|p| p.0))),
            y: logarithmic(log_range(points.iter().map(|p| p.1))),
            x_name: "threshold",
            y_name: "share of the output's square",
            markers: true,
        };
        let title = format!(
            "{}: what each threshold of smoothing loses; {} was taken",
            s.site,
            number(f64::from(s.sigma))
        );
        draw(&format!("search-{}", s.site), title, |root| axes.lines(root, &[("loss", points.clone())]))
    };
    best_searches(all).iter().map(figure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::report;

    #[test]
    fn every_kind_of_number_has_its_figure() {
        let report = report();
        let found = figures(&report).unwrap();
        let names: Vec<&str> = found.iter().map(|figure| figure.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "channels-mlp.down_proj",
                "channels-self_attn.qkv_proj",
                "outliers-self_attn.qkv_proj",
                "outliers-mlp.down_proj",
                "loss",
                "weight-error",
                "search-model.layers.1.self_attn.qkv_proj"
            ]
        );
        for Figure { name, title, svg } in &found {
            assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{name}: {svg}");
            assert!(title.len() > 20, "{title}");
        }
        // The layer that stands out most, and what is left of it.
        assert!(
            found[0].title.contains("model.layers.1.mlp.down_proj") && found[0].title.contains("up to 400, ")
        );
        // As many bars as channels, on both sides.
        assert_eq!(found[0].svg.matches("<rect").count(), 2 * 4);
        // Lines of both models and their names.
        assert_eq!(
            found[2]
                .svg
                .matches("<polyline fill=\"none\" opacity=\"1\" stroke=\"#0060A8\" stroke-width=\"2\"")
                .count(),
            2
        );
        assert!(found[2].svg.contains("\nfloat model\n") && found[2].svg.contains("\nresult\n"));
        // What was tried, point by point.
        assert_eq!(found[6].svg.matches("<circle").count(), 4);
    }

    #[test]
    fn one_channel_of_thousands_is_seen() {
        let mut report = report();
        let wide = &mut report.activations[3];
        wide.channels = 1536;
        for (side, peak) in [(&mut wide.float, 400.0), (&mut wide.quantized, 20.0)] {
            side.largest = vec![1.0; 256];
            side.largest[248] = peak;
        }
        let svg = figures(&report).unwrap().swap_remove(0).svg;
        let bars: Vec<&str> = svg.split("<rect").skip(1).collect();
        assert_eq!(bars.len(), 2 * 128);
        let size = |bar: &str, name: &str| -> u32 {
            let value = bar.split(&format!(" {name}=\"")).nth(1).unwrap().split('"').next().unwrap();
            value.parse().unwrap()
        };
        assert!(bars.iter().all(|bar| size(bar, "width") > 0), "{svg}");
        // One bar on each side is as high as there is room.
        assert_eq!(bars.iter().filter(|bar| size(bar, "height") > 150).count(), 2, "{svg}");
    }

    #[test]
    fn a_report_without_numbers_has_no_figures() {
        let mut report = report();
        report.layers.clear();
        report.activations.clear();
        report.smoothing.clear();
        assert_eq!(figures(&report).unwrap(), []);
    }

    #[test]
    fn numbers_that_are_all_alike_or_none_have_axes() {
        let mut report = report();
        for layer in &mut report.layers {
            (layer.loss, layer.weight_error) = (0.0, Some(0.0));
        }
        for a in &mut report.activations {
            a.float.largest.fill(0.0);
            a.quantized.largest.fill(0.0);
            (a.float.median, a.quantized.median) = (0.0, 0.0);
        }
        for s in &mut report.smoothing {
            s.curve.iter_mut().for_each(|(_, loss)| *loss = 0.25);
        }
        for Figure { name, svg, .. } in figures(&report).unwrap() {
            assert!(!svg.contains("NaN") && !svg.contains("inf\""), "{name}: {svg}");
        }
    }

    #[test]
    fn marks_of_logarithmic_axes() {
        assert_eq!(marks(&(0.9..25.0)), [1.0, 2.0, 5.0, 10.0, 20.0]);
        assert_eq!(marks(&(2e-4..3.0)), [1e-3, 1e-2, 0.1, 1.0]);
        assert_eq!(log_range([0.0, f64::NAN].into_iter()), 0.1..1.0);
        assert_eq!(log_range([0.0, 1.3, 2.0].into_iter()), 1.0..2.6);
        let numbers = [0.0, 1.0, 20.0, 0.25, 1234.0, 1e-5, 2e6].map(number);
        assert_eq!(numbers, ["0", "1", "20", "0.25", "1234", "1e-5", "2e6"]);
    }
}
