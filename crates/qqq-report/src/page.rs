//! The page of a quantization.

use maud::{Markup, PreEscaped, html};
use qqq_formats::size;
use qqq_quant::Report;

use crate::{
    Circumstances, Figure,
    charts::{best_searches, worst_sites},
    pieces::{document, embedded},
};

/// A row of a table of names and values.
type Pair = (String, String);

/// The page, as one file, with the [figures](crate::figures) of the report.
pub fn page(report: &Report, figures: &[Figure], circumstances: &Circumstances) -> String {
    let title = format!("{} in {}", model_name(&report.model), report.becomes());
    let body = html! {
        h1 { (title) }
        (verdict(report))
        h2 { "What became of it" }
        (pairs(&summary(report)))
        (warnings(report))
        (outliers(report, figures))
        (losses(report, figures))
        (searches(report, figures))
        (budget(report))
        (reproduce(report, circumstances))
    };
    document(&title, &report.version, &body)
}

/// What a model is called: of a path the last part.
fn model_name(model: &str) -> &str {
    let is_path = model.starts_with(['/', '.', '~']);
    let name = if is_path { model.trim_end_matches('/').rsplit('/').next().unwrap_or(model) } else { model };
    name.strip_suffix(".gguf").unwrap_or(name)
}

/// What one wants to know first.
fn verdict(report: &Report) -> Markup {
    let Some(quality) = &report.quality else {
        return html! { p.verdict { "Nothing was held out, so how far the result is from the float model has not been measured." } };
    };
    html! {
        p.verdict {
            @match (&quality.divergence, &quality.not_finite) {
                (Some(d), _) => {
                    "On " (quality.tokens) " held-out tokens the result agrees with the float model on the likeliest next token "
                    strong { (format!("{:.1}%", 100.0 * d.top1_agreement.mean)) }
                    " of the time; its perplexity is " strong { (format!("{:.3}", d.perplexity_ratio.mean)) } " times as high ("
                    (format!("{:.2}", d.perplexity)) " instead of " (format!("{:.2}", d.baseline_perplexity))
                    "), and its KL divergence " (format!("{:.4}", d.kl_divergence.mean)) " nats per token."
                }
                (None, Some(what)) => { "The result's numbers are not finite: " (what) }
                (None, None) => { "The result was not compared." }
            }
            @if quality.is_beyond { " " strong { "This is beyond the limit that was set." } }
        }
    }
}

/// A table of names and values.
pub(crate) fn pairs(rows: &[Pair]) -> Markup {
    html! {
        table.pairs { tbody {
            @for (name, value) in rows { tr { th scope="row" { (name) } td { (value) } } }
        } }
    }
}

fn summary(report: &Report) -> Vec<Pair> {
    let mut rows: Vec<Pair> = vec![
        ("model".into(), report.model.clone()),
        ("recipe".into(), report.recipe.name.word().into()),
        ("layers".into(), report.arithmetics().join("; ")),
        ("form".into(), report.format.clone()),
    ];
    rows.extend(report.size_rows().into_iter().map(|(name, value)| (name.to_owned(), value)));
    if let Some(d) = report.quality.as_ref().and_then(|quality| quality.divergence.as_ref()) {
        let error = |e: Option<f64>| e.map_or_else(String::new, |e| format!(" ± {e:.4}"));
        rows.push((
            "KL divergence".into(),
            format!("{:.4}{} nats per token", d.kl_divergence.mean, error(d.kl_divergence.standard_error)),
        ));
        rows.push((
            "perplexity ratio".into(),
            format!("{:.4}{}", d.perplexity_ratio.mean, error(d.perplexity_ratio.standard_error)),
        ));
    }
    if let Some(rotation) = &report.rotation {
        rows.push(("rotation".into(), rotation.to_string()));
    }
    if let Some(budget) = &report.budget {
        rows.push(("budget".into(), budget.describe()));
    }
    rows.push((
        "calibration".into(),
        format!("{}, {} tokens", report.calibration_data, report.calibration_tokens),
    ));
    rows.push(("time".into(), seconds(report.timings.total)));
    if let Some(peak) = report.peak_memory {
        rows.push(("memory".into(), format!("{} at most", size::bytes(peak))));
    }
    rows
}

fn seconds(s: f64) -> String {
    if s < 120.0 { format!("{s:.1} s") } else { format!("{}:{:02} min", s as u64 / 60, s as u64 % 60) }
}

fn warnings(report: &Report) -> Markup {
    html! {
        @if !report.warnings.is_empty() {
            h3 { "Warnings" }
            ul { @for warning in &report.warnings { li { (warning) } } }
        }
    }
}

/// Figures whose names begin so.
fn of_kind<'f>(figures: &'f [Figure], kind: &'f str) -> impl Iterator<Item = &'f Figure> {
    figures.iter().filter(move |figure| figure.name.starts_with(kind))
}

/// Figures with their titles.
pub(crate) fn all_of<'f>(figures: impl Iterator<Item = &'f Figure>) -> Markup {
    html! {
        div.figures {
            @for figure in figures {
                figure { (PreEscaped(embedded(&figure.svg, &figure.name, &figure.title))) figcaption { (figure.title) "." } }
            }
        }
    }
}

fn outliers(report: &Report, figures: &[Figure]) -> Markup {
    if report.activations.is_empty() {
        return html! {};
    }
    let ratio = |x: Option<f32>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:.1}"));
    html! {
        h2 { "Outliers" }
        p {
            "A few channels of a layer's input are much larger than the others. Of int8 activations, which share a scale for each token, \
             they leave the others few steps. These are the inputs of a held-out window of text: in the float model, and in the result as \
             its layers take them."
        }
        h3 { "The layers whose outliers stand out most" }
        (all_of(of_kind(figures, "channels-")))
        @if of_kind(figures, "outliers-").next().is_some() {
            h3 { "Block by block" }
            (all_of(of_kind(figures, "outliers-")))
        }
        details {
            summary { "The numbers" }
            div.scroll role="region" tabindex="0" aria-label="Outliers, the numbers" { table {
                caption { "Largest magnitude of an input channel, and that as times the median channel" }
                thead { tr {
                    th scope="col" { "layer" } th.n scope="col" { "channels" }
                    th.n scope="col" { "float model" } th.n scope="col" { "/ median" }
                    th.n scope="col" { "result" } th.n scope="col" { "/ median" }
                } }
                tbody {
                    @for a in &report.activations {
                        tr {
                            th scope="row" { (a.name) } td.n { (a.channels) }
                            td.n { (a.float.peak()) } td.n { (ratio(a.float.outlier_ratio())) }
                            td.n { (a.quantized.peak()) } td.n { (ratio(a.quantized.outlier_ratio())) }
                        }
                    }
                }
            } }
        }
        @let worst = worst_sites(&report.activations);
        @if let Some((_, a)) = worst.first() {
            p.soft { "Furthest out: " (a.name) ", " (ratio(a.float.outlier_ratio())) " times its median channel." }
        }
    }
}

fn losses(report: &Report, figures: &[Figure]) -> Markup {
    if report.layers.is_empty() {
        return html! {};
    }
    html! {
        h2 { "What layers lose" }
        p {
            "Calibrated rounding lets weights go further from where they were, where that takes the output less far: the one error is \
             what counts, the other what it cost."
        }
        (all_of(of_kind(figures, "loss").chain(of_kind(figures, "weight-error"))))
        details {
            summary { "The numbers" }
            div.scroll role="region" tabindex="0" aria-label="What layers lose, the numbers" { table {
                caption {
                    "Error of each layer's output as a share of its square, that of rounding to nearest, and the error of its weights as \
                     a share of their norm"
                }
                thead { tr {
                    th scope="col" { "layer" } th scope="col" { "is" } th.n scope="col" { "output" }
                    th.n scope="col" { "rounded to nearest" } th.n scope="col" { "weights" } th.n scope="col" { "scales" }
                } }
                tbody {
                    @for layer in &report.layers {
                        tr {
                            th scope="row" { (layer.name) }
                            td { (layer.precision.map(|p| p.arithmetic(&report.recipe)).unwrap_or_default()) }
                            td.n { (format!("{:.3e}", layer.loss)) } td.n { (format!("{:.3e}", layer.loss_nearest)) }
                            td.n { (layer.weight_error.map(|e| format!("{e:.4}")).unwrap_or_default()) }
                            td.n { (format!("{:.2e} to {:.2e}", layer.scale_range.0, layer.scale_range.1)) }
                        }
                    }
                }
            } }
        }
    }
}

fn searches(report: &Report, figures: &[Figure]) -> Markup {
    if report.smoothing.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Smoothing" }
        p {
            "Channels beyond a threshold are made smaller, and the weights behind them larger. For each layer the threshold that loses \
             least was searched."
        }
        @if !best_searches(&report.smoothing).is_empty() { (all_of(of_kind(figures, "search-"))) }
        details {
            summary { "The numbers" }
            div.scroll role="region" tabindex="0" aria-label="Smoothing, the numbers" { table {
                caption { "Thresholds, and what the quantized layer loses without and with them" }
                thead { tr {
                    th scope="col" { "input of" } th.n scope="col" { "threshold" } th.n scope="col" { "channels" }
                    th.n scope="col" { "without" } th.n scope="col" { "with" }
                } }
                tbody {
                    @for s in &report.smoothing {
                        tr {
                            th scope="row" { (s.site) } td.n { (format!("{:.3}", s.sigma)) } td.n { (s.smoothed_channels) }
                            td.n { (format!("{:.3e}", s.loss_before)) } td.n { (format!("{:.3e}", s.loss_after)) }
                        }
                    }
                }
            } }
        }
    }
}

fn budget(report: &Report) -> Markup {
    let Some(budget) = &report.budget else { return html! {} };
    html! {
        h2 { "Where the bits went" }
        p {
            (budget.describe()) ". Of each layer the KL divergence was measured with it alone quantized, on " (budget.tokens)
            " held-out tokens."
        }
        details {
            summary { "The numbers" }
            div.scroll role="region" tabindex="0" aria-label="Where the bits went, the numbers" { table {
                caption { "KL divergence with one layer quantized, in nats per token" }
                thead { tr { th scope="col" { "layer" } th scope="col" { "became" } th scope="col" { "candidates" } } }
                tbody {
                    @for site in &budget.sites {
                        tr {
                            th scope="row" { (site.name) } td { (site.chosen.arithmetic(&report.recipe)) }
                            td {
                                @for c in &site.candidates {
                                    (c.precision.arithmetic(&report.recipe)) ": "
                                    (c.kl_divergence.map_or_else(|| "no numbers".into(), |kl| format!("{kl:.2e}"))) "; "
                                }
                            }
                        }
                    }
                }
            } }
        }
    }
}

fn reproduce(report: &Report, circumstances: &Circumstances) -> Markup {
    let recipe = serde_json::to_string_pretty(&report.recipe).unwrap_or_default();
    let mut rows = vec![("qqq".to_owned(), report.version.clone())];
    rows.extend(circumstances.environment.iter().cloned());
    html! {
        h2 { "How to make it again" }
        pre { code { (circumstances.command) } }
        (pairs(&rows))
        details { summary { "The recipe, with all that was decided" } pre { code { (recipe) } } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{figures, testing::report};

    fn circumstances() -> Circumstances {
        Circumstances {
            command: "qqq quantize './models/<b>&Co' -o out".into(),
            environment: vec![("device".into(), "cpu".into())],
        }
    }

    #[test]
    fn the_page_is_whole_by_itself_and_says_what_the_report_says() {
        let report = report();
        let page = page(&report, &figures(&report).unwrap(), &circumstances());
        for text in [
            "<h1>&lt;b&gt;&amp;Co in W4A8, groups of 64</h1>",
            "<strong>85.0%</strong>",
            "<strong>1.050</strong>",
            "21.00 instead of 20.00",
            "0.1234 ± 0.0100 nats per token",
            "less than &lt;enough&gt;",
            "400.0 times its median channel",
            "2:10 min",
            "qqq quantize './models/&lt;b&gt;&amp;Co' -o out",
        ] {
            assert!(page.contains(text), "{text}: {page}");
        }
        assert!(!page.contains("<b>"), "not escaped: {page}");
        assert_eq!(page.matches("<svg").count(), 7);
        assert_eq!(page.matches("</svg>").count(), 7);
        // Nothing is fetched and nothing runs.
        for loads in ["<script", "<link", " src=", "url(", "@import", "<img"] {
            assert!(!page.contains(loads), "{loads}");
        }
        let hosts: Vec<&str> = page.split("http").skip(1).collect();
        assert!(hosts.iter().all(|rest| rest.starts_with("://www.w3.org/2000/svg\"")), "{hosts:?}");
        // No colour of a figure is left that does not follow the scheme.
        assert!(!page.contains("stroke=\"#0060A8\"") && !page.contains("fill=\"#000000\""), "{page}");
    }

    #[test]
    fn titles_say_what_became_of_the_weights_in_the_words_of_the_field() {
        let title = |kinds: [&str; 4], float: usize| {
            let mut report = report();
            for (layer, kind) in report.layers.iter_mut().zip(kinds) {
                layer.precision = Some(kind.parse().unwrap());
            }
            let float = report.layers.drain(..float).map(|layer| layer.name).collect();
            report.float_layers = float;
            report.becomes()
        };
        assert_eq!(title(["int4:g64"; 4], 0), "W4A8, groups of 64");
        assert_eq!(title(["int4:channel"; 4], 0), "W4A8, per channel");
        assert_eq!(title(["int4:g64", "int4:g32", "int4:g64", "int4:g32"], 0), "W4A8, groups of 64 and 32");
        assert_eq!(title(["int4:g64", "int8", "int4:g64", "int8"], 0), "W4A8 and W8A8");
        assert_eq!(title(["int8"; 4], 1), "W8A8 and 16 bits");
        assert_eq!(title(["int8"; 4], 4), "16 bits");
        let mut all = report();
        all.layers[0].precision = Some("int8".parse().unwrap());
        let of_one = "W8A8: self_attn.qkv_proj of 1 blocks";
        assert_eq!(all.arithmetics()[0], of_one);
        let page = page(&all, &[], &Circumstances::default());
        assert!(page.contains(of_one) && page.contains("W4A8 g64: ") && !page.contains("int4"), "{page}");
    }

    #[test]
    fn a_run_that_measured_nothing_says_so() {
        let mut report = report();
        report.quality = None;
        report.layers.clear();
        report.activations.clear();
        report.smoothing.clear();
        let page = page(&report, &[], &Circumstances::default());
        assert!(page.contains("has not been measured"), "{page}");
        assert!(page.contains("&lt;b&gt;&amp;Co in 16 bits"), "{page}");
        for heading in ["Outliers", "What layers lose", "Smoothing", "Where the bits went"] {
            assert!(!page.contains(&format!("<h2>{heading}")), "{heading}: {page}");
        }
    }

    #[test]
    fn one_whose_result_is_no_number_names_it() {
        let mut report = report();
        let quality = report.quality.as_mut().unwrap();
        (quality.divergence, quality.not_finite) =
            (None, Some("the logits for token 3 are not finite".into()));
        quality.is_beyond = true;
        let page = page(&report, &[], &Circumstances::default());
        assert!(
            page.contains("not finite: the logits for token 3") && page.contains("beyond the limit"),
            "{page}"
        );
    }
}
