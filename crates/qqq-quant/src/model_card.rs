//! The model card (README.md) of a quantized checkpoint.

use std::{fmt::Write as _, path::Path};

use qqq_formats::{Activations, CodeBits, SimulatedMethod};
use qqq_model::names;

use crate::{
    Clip, GroupScales, Head, Propagation, Report, Result, RotationKind, Transform, ValueHessian, output,
    report::modules, rotation::Family,
};

/// The card's file.
const FILE: &str = "README.md";
/// What a card's metadata say of the terms of use.
const LICENSE_KEYS: [&str; 3] = ["license:", "license_name:", "license_link:"];

/// The lines of metadata about the license in the card of the model in `dir`; none if there is no card, or nothing of
/// that in it. What is made of a model is under the same terms, and for most models the card is all that states them.
pub fn license(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
    let mut lines = text.trim_start_matches('\u{feff}').lines().map(str::trim_end);
    if lines.next() != Some("---") {
        return Vec::new();
    }
    let mut belongs = false;
    let mut kept = Vec::new();
    for line in lines {
        if line == "---" {
            return kept;
        }
        // Others continue the key before them: a list, a block of text.
        if line.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            belongs = LICENSE_KEYS.iter().any(|key| line.starts_with(key));
        }
        if belongs && !line.starts_with('#') {
            kept.push(line.to_owned());
        }
    }
    // Metadata without an end are none.
    Vec::new()
}

/// Writes `README.md` into `dir`. `license` are lines of metadata (see [`license`]); `measured` are results to show, as
/// name and value (perplexities, agreement); a card can be written again when they are known.
///
/// # Errors
/// The file cannot be written.
pub fn write(dir: &Path, report: &Report, license: &[String], measured: &[(String, String)]) -> Result<()> {
    let path = dir.join(FILE);
    std::fs::write(&path, render(report, license, measured)).map_err(|e| output::io(&path, e))
}

/// The card's text.
pub fn render(report: &Report, license: &[String], measured: &[(String, String)]) -> String {
    let mut card = String::new();
    // Writing to a string cannot fail.
    let _ = render_into(&mut card, report, license, measured);
    card
}

fn render_into(
    card: &mut String,
    report: &Report,
    license: &[String],
    measured: &[(String, String)],
) -> std::fmt::Result {
    let recipe = &report.recipe;
    let kinds = report.kinds();
    let half = recipe.activations == Activations::Half;
    let is_float = report.layers.is_empty();
    let simulated = recipe.simulated.as_ref();
    let weights = match (recipe.bits, recipe.group_size) {
        _ if simulated.is_some() => "16 bits, those that the method multiplies by".into(),
        _ if is_float => "16 bits".into(),
        _ if kinds.len() > 1 => kinds.join("; "),
        (CodeBits::Eight, _) => "8-bit, one scale per output channel".into(),
        (CodeBits::Four, Some(g)) => {
            let integer = recipe.group_scales == GroupScales::Integer && !half;
            let scales = if integer { ", whose scales are integer multiples of the channel's" } else { "" };
            format!("4-bit, groups of {g} input channels{scales}")
        }
        (CodeBits::Four, None) => "4-bit, one scale per output channel".into(),
    };
    let bits = if kinds.len() > 1 { "mixed".into() } else { recipe.bits.get().to_string() };
    let name = match kinds.len() {
        _ if is_float => report.format.clone(),
        _ if simulated.is_some() => "simulated".into(),
        0 | 1 => format!("W{bits}A{}", recipe.activations.bits()),
        _ => format!("mixed precision, A{}", recipe.activations.bits()),
    };
    let tag = if kinds.len() > 1 { "mixed-precision".into() } else { name.to_lowercase() };
    writeln!(card, "---\ntags:\n- qqq\n- {tag}")?;
    for line in license {
        writeln!(card, "{line}")?;
    }
    writeln!(card, "---\n")?;
    let quantized = |card: &mut String| {
        writeln!(
            card,
            "{} with {} and {}-bit activations in {} linear layers of its blocks, made by `qqq` {}. {}\n",
            report.model,
            if kinds.len() > 1 { "weights of mixed precision".into() } else { format!("{bits}-bit weights") },
            recipe.activations.bits(),
            if report.float_layers.is_empty() { "all" } else { "the quantized" },
            report.version,
            match recipe.head {
                Head::Float => "Embedding, output head and norms are kept in 16 bits.",
                Head::Int8 =>
                    "The output head is int8 too, with int8 inputs; embedding and norms are kept in 16 bits.",
            }
        )
    };
    match simulated {
        Some(method) => simulated_head(card, report, method)?,
        None => writeln!(card, "# {} in {name}\n", report.model)?,
    }
    match is_float {
        true => writeln!(card, "{} in 16 bits, written by `qqq` {}.\n", report.model, report.version)?,
        false if simulated.is_none() => quantized(card)?,
        false => {}
    }
    if let Some(whole) = &report.text_part_of {
        writeln!(
            card,
            "This is a text model: the text part of a {whole}, without the parts that see or hear.\n"
        )?;
    }
    writeln!(card, "| | |\n|---|---|")?;
    writeln!(card, "| Weights | {weights} |")?;
    let activations = if half { "16 bits" } else { "int8, one scale per token, found at run time" };
    if simulated.is_none() {
        writeln!(card, "| Activations | {activations} |")?;
    }
    if recipe.head == Head::Int8 {
        writeln!(card, "| Output head | int8, one scale per token of the vocabulary; int8 activations |")?;
    }
    writeln!(card, "| Format | {} |", report.format)?;
    if let Some(transform) = &report.transform {
        writeln!(card, "| Transform chosen | {} |", transform.describe())?;
    }
    if let Some(budget) = &report.budget {
        writeln!(card, "| Budget | {} |", budget.describe())?;
    }
    for (name, value) in recipe_rows(report) {
        writeln!(card, "| {name} | {value} |")?;
    }
    let calibration = &recipe.calibration;
    match calibration.windows {
        0 => writeln!(card, "| Calibration data | none |")?,
        n => {
            let (data, tokens) = (&report.calibration_data, calibration.window);
            let s = if n == 1 { "" } else { "s" };
            let purpose = if recipe.needs_text().is_empty() { "none; loss measured on " } else { "" };
            writeln!(
                card,
                "| Calibration data | {purpose}{data}: {n} window{s} of {tokens} tokens, seed {} |",
                recipe.seed
            )?;
        }
    }
    for (name, value) in report.size_rows() {
        let (first, rest) = name.split_at(1);
        writeln!(card, "| {}{rest} | {value} |", first.to_uppercase())?;
    }
    writeln!(card, "| Time to quantize | {:.0} s |", report.timings.total)?;

    writeln!(
        card,
        "\n## Run it\n\n```sh\nqqq chat PATH\nqqq generate PATH --prompt \"...\"\nqqq eval perplexity PATH --text FILE\n```"
    )?;

    if let Some(quality) = &report.quality {
        let text = "Against the float model, on text that calibration has not seen:";
        writeln!(card, "\n## Quality\n\n{text}\n\n| | |\n|---|---|")?;
        for (name, value) in quality.rows() {
            let (first, rest) = name.split_at(1);
            writeln!(card, "| {}{rest} | {value} |", first.to_uppercase())?;
        }
        if quality.is_beyond {
            let limit = quality.max_kld.unwrap_or_default();
            writeln!(
                card,
                "\n**This checkpoint is further from the float model than its maker's limit of {limit} nats per token.**"
            )?;
        }
    }

    if !measured.is_empty() {
        writeln!(card, "\n## Measured\n\n| | |\n|---|---|")?;
        for (name, value) in measured {
            writeln!(card, "| {name} | {value} |")?;
        }
    }

    if is_float {
        return warnings_into(card, report);
    }
    let what = match (calibration.windows, recipe.needs_text().as_slice()) {
        (0, _) => "weights (no calibration), relative to the weights themselves",
        (_, []) => "output on the text above, relative to the output itself",
        _ if recipe.corrects() => {
            "output on the calibration data against the float model's, inputs included, relative to that"
        }
        _ => "output on the calibration data, relative to the output itself",
    };
    writeln!(
        card,
        "\n## Loss by layer\n\nSquared error of a layer's {what}, mean and worst over the blocks. \
         `quantization_report.json` has every layer.\n"
    )?;
    writeln!(card, "| Layer | rounding to nearest | this checkpoint | worst |\n|---|---|---|---|")?;
    let of_modules = report.layers.iter().filter_map(|l| {
        let (_, module) = l.name.strip_prefix("model.layers.")?.split_once('.')?;
        (!modules::ALL.contains(&module)).then_some(module)
    });
    let mut rows = modules::ALL.to_vec();
    for module in of_modules.chain([names::LM_HEAD_MODULE]) {
        if !rows.contains(&module) {
            rows.push(module);
        }
    }
    for module in rows {
        let layers: Vec<_> = report.layers.iter().filter(|l| l.name.ends_with(module)).collect();
        if layers.is_empty() {
            continue;
        }
        let mean = |f: &dyn Fn(&crate::report::LayerReport) -> f64| {
            layers.iter().map(|l| f(l)).sum::<f64>() / layers.len() as f64
        };
        let worst = layers.iter().map(|l| l.loss).fold(0.0, f64::max);
        writeln!(
            card,
            "| {module} | {:.3e} | {:.3e} | {worst:.3e} |",
            mean(&|l| l.loss_nearest),
            mean(&|l| l.loss)
        )?;
    }
    warnings_into(card, report)
}

fn warnings_into(card: &mut String, report: &Report) -> std::fmt::Result {
    if !report.warnings.is_empty() {
        writeln!(card, "\n## Warnings\n")?;
        for warning in &report.warnings {
            writeln!(card, "- {warning}")?;
        }
    }
    Ok(())
}

fn simulated_head(card: &mut String, report: &Report, method: &SimulatedMethod) -> std::fmt::Result {
    let (name, model) = (method.name(), &report.model);
    writeln!(card, "# {model}, {name} simulated\n")?;
    writeln!(
        card,
        "The arithmetic of {name} in all linear layers of the blocks of {model}, simulated by `qqq` {}: the weights are those \
         that the method would multiply by, in 16 bits. It is for measuring; other tools refuse it.\n",
        report.version
    )
}

fn recipe_rows(report: &Report) -> Vec<(&'static str, String)> {
    let recipe = &report.recipe;
    let transform = match (recipe.transform, recipe.rotation) {
        (Transform::Rotate, _) if report.rotation.is_some_and(|r| r.stream == Family::Hartley) => {
            "rotation by a randomised Hartley matrix".into()
        }
        // A report of a run never has it.
        (Transform::Usual | Transform::Auto, _) => "chosen for the model".into(),
        (Transform::None, _) => "none".into(),
        (Transform::Smooth, _) => {
            format!("adaptive smoothing on {} tokens", recipe.calibration.smooth_tokens)
        }
        (Transform::Rotate, RotationKind::Hadamard) => "rotation by a randomised Hadamard matrix".into(),
        (Transform::Rotate, RotationKind::Orthogonal) => "rotation by a random orthogonal matrix".into(),
        (Transform::Migrate, _) => match recipe.migration_strength {
            Some(strength) => format!("outliers of activations migrated into weights, strength {strength}"),
            None => "outliers of activations migrated into weights, strength searched for each site".into(),
        },
        (Transform::Suppress, _) => {
            "channels shifted before o, and those beyond a searched threshold shrunk".into()
        }
        (Transform::Protect, _) => "channels scaled by their mean activation to a searched power".into(),
        (Transform::Learn, _) => match recipe.activations {
            Activations::Int8 => format!("learned scales of channels, {} epochs", recipe.epochs.unwrap_or(0)),
            Activations::Half => "none".into(),
        },
    };
    let rounding = match (recipe.compensate, recipe.act_order) {
        (false, _) => "to nearest".into(),
        (true, order) => format!(
            "Hessian-based compensation (GPTQ), damping {}{}{}{}",
            recipe.damping,
            if order { ", act-order with static groups" } else { "" },
            match recipe.value_hessian {
                ValueHessian::Input => "",
                ValueHessian::Attention => ", v_proj for its inputs as attention averages them",
            },
            match recipe.propagation {
                Propagation::Float => ", calibrated on float layers",
                Propagation::Quantized => ", calibrated on the quantized layers before",
            }
        ),
    };
    let clip = match recipe.clip {
        Clip::None => "from the largest weight",
        Clip::Weight => "least weight error",
        Clip::Output => "least output error",
        Clip::GroupOutput => "least output error of each group alone, but for q and k",
        Clip::Learned => "learned by the error of the block's output",
    };
    let mut rows = Vec::new();
    if let Some(entry) = recipe.name.entry() {
        rows.push(("Recipe", format!("{} ({}): {}", entry.word, entry.source, entry.what)));
    }
    if let Some(method) = &recipe.simulated {
        rows.push(("Simulated", method.to_string()));
    }
    if report.layers.is_empty() || recipe.simulated.is_some() {
        return rows;
    }
    rows.extend([("Transformation", transform), ("Rounding", rounding), ("Scales", clip.into())]);
    if recipe.corrects() {
        let strength = recipe.error_correction;
        let correction = format!(
            "strength {strength}: weights moved towards the float model's output before rounding (QEP, Qronos)"
        );
        rows.push(("Error correction", correction));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_license_of_a_card() {
        let dir = tempfile::tempdir().unwrap();
        let of = |card: &str| {
            std::fs::write(dir.path().join(FILE), card).unwrap();
            license(dir.path())
        };
        let llama = "---\r\nlanguage:\r\n- en\r\nlicense: llama3\r\nlicense_name: llama3 # theirs\r\n\
                     license_link: LICENSE\r\nextra_gated_prompt: >-\r\n  license: no\r\n---\r\nlicense: no\r\n";
        assert_eq!(of(llama), ["license: llama3", "license_name: llama3 # theirs", "license_link: LICENSE"]);
        assert_eq!(
            of("---\nlicense:\n- mit\n- apache-2.0\ntags: [x]\n---\n"),
            ["license:", "- mit", "- apache-2.0"]
        );
        assert_eq!(of("\u{feff}---\nlicense: mit\n---\n"), ["license: mit"]);
        let none: [&str; 0] = [];
        for card in ["", "license: mit\n", "---\nlicense: mit\n", "---\ntags: [license]\n---\nlicense: mit"] {
            assert_eq!(of(card), none, "{card:?}");
        }
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        assert_eq!(license(dir.path()), none);
    }
}
