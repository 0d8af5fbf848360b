//! The model card (README.md) of a quantized checkpoint.

use std::{fmt::Write as _, path::Path};

use crate::{
    Clip, GroupScales, Propagation, Report, Result, RotationKind, Transform, ValueHessian, output,
    report::modules, rotation::Family,
};

/// Writes `README.md` into `dir`. `measured` are results to show, as name and value (perplexities, agreement); a card
/// can be written again when they are known.
///
/// # Errors
/// The file cannot be written.
pub fn write(dir: &Path, report: &Report, measured: &[(String, String)]) -> Result<()> {
    let path = dir.join("README.md");
    std::fs::write(&path, render(report, measured)).map_err(|e| output::io(&path, e))
}

/// The card's text.
pub fn render(report: &Report, measured: &[(String, String)]) -> String {
    let mut card = String::new();
    // Writing to a string cannot fail.
    let _ = render_into(&mut card, report, measured);
    card
}

fn render_into(card: &mut String, report: &Report, measured: &[(String, String)]) -> std::fmt::Result {
    let recipe = &report.recipe;
    let weights = match recipe.group_size {
        Some(g) => {
            let integer = recipe.group_scales == GroupScales::Integer;
            let scales = if integer { ", whose scales are integer multiples of the channel's" } else { "" };
            format!("4-bit, groups of {g} input channels{scales}")
        }
        None => "4-bit, one scale per output channel".into(),
    };
    writeln!(card, "---\ntags:\n- qqq\n- w4a8\n---\n")?;
    writeln!(card, "# {} in W4A8\n", report.model)?;
    writeln!(
        card,
        "{} with 4-bit weights and 8-bit activations in all linear layers of its blocks, made by `qqq` {}. Embedding, \
         output head and norms are kept in 16 bits.\n",
        report.model, report.version
    )?;
    writeln!(card, "| | |\n|---|---|")?;
    writeln!(card, "| Weights | {weights} |")?;
    writeln!(card, "| Activations | int8, one scale per token, found at run time |")?;
    writeln!(card, "| Format | {} |", report.format)?;
    for (name, value) in recipe_rows(report) {
        writeln!(card, "| {name} | {value} |")?;
    }
    let calibration = &recipe.calibration;
    match calibration.windows {
        0 => writeln!(card, "| Calibration data | none |")?,
        n => writeln!(
            card,
            "| Calibration data | {}: {n} windows of {} tokens, seed {} |",
            report.calibration_data, calibration.window, recipe.seed
        )?,
    }
    let (before, after) = report.linear_bytes;
    writeln!(card, "| Linear layers | {:.1} MB, before {:.1} MB |", after as f64 / 1e6, before as f64 / 1e6)?;
    writeln!(card, "| Time to quantize | {:.0} s |", report.timings.total)?;

    writeln!(
        card,
        "\n## Run it\n\n```sh\nqqq chat PATH\nqqq generate PATH --prompt \"...\"\nqqq eval perplexity PATH --text FILE\n```"
    )?;

    if !measured.is_empty() {
        writeln!(card, "\n## Measured\n\n| | |\n|---|---|")?;
        for (name, value) in measured {
            writeln!(card, "| {name} | {value} |")?;
        }
    }

    writeln!(
        card,
        "\n## Loss by layer\n\nSquared error of a layer's output on the calibration data, relative to the output itself, mean \
         and worst over the blocks. `quantization_report.json` has every layer.\n"
    )?;
    writeln!(card, "| Layer | rounding to nearest | this checkpoint | worst |\n|---|---|---|---|")?;
    for module in modules::ALL {
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
    if !report.warnings.is_empty() {
        writeln!(card, "\n## Warnings\n")?;
        for warning in &report.warnings {
            writeln!(card, "- {warning}")?;
        }
    }
    Ok(())
}

fn recipe_rows(report: &Report) -> Vec<(&'static str, String)> {
    let recipe = &report.recipe;
    let transform = match (recipe.transform, recipe.rotation) {
        (Transform::Rotate, _) if report.rotation.is_some_and(|r| r.stream == Family::Hartley) => {
            "rotation by a randomised Hartley matrix".into()
        }
        (Transform::None, _) => "none".into(),
        (Transform::Smooth, _) => {
            format!("adaptive smoothing on {} tokens", recipe.calibration.smooth_tokens)
        }
        (Transform::Rotate, RotationKind::Hadamard) => "rotation by a randomised Hadamard matrix".into(),
        (Transform::Rotate, RotationKind::Orthogonal) => "rotation by a random orthogonal matrix".into(),
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
    };
    vec![("Transformation", transform), ("Rounding", rounding), ("Scales", clip.into())]
}
