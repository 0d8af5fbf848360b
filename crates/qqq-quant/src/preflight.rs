//! What can be known to fail is refused before any work.

use std::path::Path;

use qqq_backend::{Calibrate, solve::Scheme};
use qqq_formats::{
    Activations, Checkpoint, CheckpointFormat, DType, ModelConfig, SimulatedMethod, disk, qqq, size,
};
use qqq_model::{Site, memory, names};

use crate::{
    Clip, OutputFormat, Propagation, QuantError, Recipe, Result, Schemes, Transform,
    clip::Grid,
    device_need,
    half_type::HalfType,
    held_out::HeldText,
    layer_bytes,
    memory_need::{self, MemoryNeed},
    recipe::MAX_DAMPING,
    recipes::{omniquant, os_plus},
    resolved::no_rotation,
    run,
    source_types::{self, AlreadyQuantized},
};

/// What was found out before the work.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Form to write.
    pub format: CheckpointFormat,
    /// What becomes of each layer.
    pub schemes: Schemes,
    /// Type of what stays 16-bit.
    pub half: HalfType,
    /// Whether q, k, v and o get biases that the model does not have.
    pub adds_bias: bool,
    /// Whether calibration text is needed at all.
    pub calibrates: bool,
    /// Memory that will be used at most.
    pub memory: MemoryNeed,
    /// What to say of a source that is quantized already.
    pub already_quantized: Option<AlreadyQuantized>,
}

/// A part of a recipe that looks at calibration text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeedsText {
    /// The search for smoothing thresholds.
    Smoothing,
    /// What a published recipe makes scales of channels of.
    ChannelScales,
    /// Compensation of what was rounded before.
    Compensation,
    /// The choice of scales by the error of the output.
    Clipping,
    /// Correction of weights for what the layers before have done to their inputs.
    Correction,
    /// The simulated method.
    Simulated,
}

impl std::fmt::Display for NeedsText {
    /// The recipe's field and its value.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Smoothing => "transform: smooth",
            Self::ChannelScales => "transform",
            Self::Compensation => "compensate: true",
            Self::Clipping => "clip: output",
            Self::Correction => "error_correction",
            Self::Simulated => "simulated",
        })
    }
}

impl Plan {
    /// The form's name; of a model that stays float its type's.
    pub fn format_name(&self) -> &'static str {
        match (self.schemes.most(), self.schemes.simulated()) {
            (None, None) => self.half.config_name(),
            _ => self.format.name(),
        }
    }
}

impl Recipe {
    /// What of it looks at calibration text. Where there is nothing, text only measures what was lost.
    pub fn needs_text(&self) -> Vec<NeedsText> {
        let needs = [
            (self.transform == Transform::Smooth, NeedsText::Smoothing),
            (self.transform.reads_windows() || self.learns(), NeedsText::ChannelScales),
            (self.compensate, NeedsText::Compensation),
            (matches!(self.clip, Clip::Output | Clip::GroupOutput), NeedsText::Clipping),
            (self.corrects(), NeedsText::Correction),
            (
                self.simulated.is_some_and(|method| !matches!(method, SimulatedMethod::LlmInt8(_))),
                NeedsText::Simulated,
            ),
        ];
        needs.into_iter().filter(|(is_so, _)| *is_so).map(|(_, need)| need).collect()
    }
}

/// Bytes that the run takes on a device which has so many free.
///
/// # Errors
/// It has not: the message says how many windows fit.
pub(crate) fn check_device(
    config: &ModelConfig,
    recipe: &Recipe,
    schemes: &Schemes,
    held: HeldText,
    free: u64,
) -> Result<u64> {
    let with = |windows: usize| {
        let calibration = crate::Calibration { windows, ..recipe.calibration };
        device_need::bytes(config, &Recipe { calibration, ..recipe.clone() }, schemes, held)
    };
    let need = with(recipe.calibration.windows);
    if need <= free {
        return Ok(need);
    }
    let mut fewer = recipe.calibration.windows;
    while fewer > 0 && with(fewer) > free {
        fewer /= 2;
    }
    let mut ways = Vec::new();
    if fewer > 0 {
        ways.push(format!("ask for fewer calibration windows ({fewer} fit)"));
    }
    let uncorrected = Recipe { error_correction: 0.0, ..recipe.clone() };
    if recipe.corrects() && device_need::bytes(config, &uncorrected, schemes, held) <= free {
        ways.push("leave errors uncorrected (--error-correction 0)".to_owned());
    }
    ways.push("quantize on the CPU (--device cpu)".to_owned());
    let way = ways.join(", or ");
    Err(QuantError::Recipe(format!(
        "this run takes about {} of the GPU's memory, of which {} are free; {way}",
        size::bytes(need),
        size::bytes(free)
    )))
}

/// The linear layers of a block: modules, output and input channels.
fn linear_shapes(config: &ModelConfig) -> Vec<(&'static str, usize, usize)> {
    let of_site = |site: Site| {
        let k = site.in_features(config);
        site.modules(config).into_iter().map(move |(module, n)| (module, n, k))
    };
    Site::ALL.into_iter().flat_map(of_site).collect()
}

/// Checks a resolved recipe and shapes, and decides on the form of the output. `samples`: whether the model writes its
/// calibration text itself.
pub(crate) fn check<B: Calibrate>(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    held: HeldText,
    format: OutputFormat,
    samples: bool,
) -> Result<Plan> {
    let config = &checkpoint.config;
    let refuse = |message: String| Err(QuantError::Recipe(message));
    if config.quantization.is_some() {
        return refuse(format!(
            "{} is quantized already; give the float model that it was made from",
            checkpoint.path.display()
        ));
    }
    if !(0.0..=MAX_DAMPING).contains(&recipe.damping) {
        return refuse(format!("damping must be a number from 0 to {MAX_DAMPING}, not {:?}", recipe.damping));
    }
    let smooth = recipe.transform == Transform::Smooth;
    let calibration = &recipe.calibration;
    let calibrates = recipe.calibrates();
    let needs = recipe.needs_text();
    if !calibrates && !needs.is_empty() {
        return refuse(format!(
            "calibration windows are 0, but this recipe looks at calibration text for {}",
            needs.iter().map(|n| n.to_string()).collect::<Vec<_>>().join(" and ")
        ));
    }
    if calibrates && calibration.window == 0 {
        return refuse("calibration windows must have at least one token".into());
    }
    if calibrates && calibration.window > config.max_position_embeddings {
        return refuse(format!(
            "calibration windows of {} tokens are longer than the model's context of {}; ask for shorter windows",
            calibration.window, config.max_position_embeddings
        ));
    }
    if smooth && !(1..=calibration.window).contains(&calibration.smooth_tokens) {
        return refuse(format!(
            "the tokens of the smoothing search come from the first calibration window: their number must be from 1 to \
             {}, not {}",
            calibration.window, calibration.smooth_tokens
        ));
    }
    check_rotation(config, recipe)?;
    check_correction(recipe)?;
    check_channel_scales(recipe)?;
    if recipe.learns() {
        omniquant::check(recipe)?;
    }
    check_simulated(recipe, format)?;
    let schemes = Schemes::of(config, recipe)?;
    let memory = memory_need::of(checkpoint, recipe, &schemes, held, samples, B::PIECES);
    check_memory(&memory, recipe)?;
    check_schemes(config, &schemes)?;
    qqq_model::check_tensors(checkpoint)?;
    run::check_head(config, &schemes)?;
    let format = format_of(config, &schemes, format)?;
    let half = kept_type(checkpoint)?;
    let already_quantized = source_types::already_quantized(checkpoint);
    let adds_bias = recipe.transform == Transform::Suppress && os_plus::adds_bias(config);
    Ok(Plan { format, schemes, half, adds_bias, calibrates, memory, already_quantized })
}

/// Refuses a recipe that a model's graph or shapes do not allow. A run looks at more: text, memory, weights.
///
/// # Errors
/// [`QuantError::Recipe`], with the reason.
pub fn check_recipe(config: &ModelConfig, recipe: &Recipe) -> Result<()> {
    let recipe = &recipe.resolved(config).recipe;
    check_rotation(config, recipe)?;
    check_schemes(config, &Schemes::of(config, recipe)?)
}

fn check_rotation(config: &ModelConfig, recipe: &Recipe) -> Result<()> {
    match no_rotation(config).filter(|_| recipe.transform == Transform::Rotate) {
        None => Ok(()),
        Some(reason) => Err(QuantError::Recipe(format!(
            "transform rotate: {reason}; choose smooth or none, or auto, which measures which is better"
        ))),
    }
}

/// Refuses parts of published recipes in other company than their papers'.
fn check_channel_scales(recipe: &Recipe) -> Result<()> {
    if recipe.transform.reads_windows() && recipe.propagation != Propagation::Float {
        return Err(QuantError::Recipe(format!(
            "transform {:?} takes its scales from the calibration windows in the float model; choose propagation float",
            recipe.transform
        )));
    }
    if let Some(strength) = recipe.migration_strength
        && !(0.0..=1.0).contains(&strength)
    {
        return Err(QuantError::Recipe(format!(
            "the migration strength must be a number from 0 to 1, not {strength:?}"
        )));
    }
    let weights_alone = recipe.activations == Activations::Half && recipe.group_size.is_some();
    if recipe.clip == Clip::GroupOutput && (recipe.compensate || recipe.corrects() || !weights_alone) {
        return Err(QuantError::Recipe(
            "clip group-output is for weights in groups for 16-bit activations that are rounded to nearest, as AWQ has it".into(),
        ));
    }
    Ok(())
}

/// Refuses a correction of which nothing would come.
fn check_correction(recipe: &Recipe) -> Result<()> {
    if !(0.0..=1.0).contains(&recipe.error_correction) {
        return Err(QuantError::Recipe(format!(
            "the strength of error correction must be a number from 0 to 1, not {:?}",
            recipe.error_correction
        )));
    }
    if recipe.corrects() && recipe.propagation == Propagation::Float {
        return Err(QuantError::Recipe(
            "error correction makes up for what quantized layers have done to the inputs of later ones, and with propagation float \
             later layers are calibrated on inputs to which nothing was done; choose propagation quantized, or an error \
             correction of 0"
                .into(),
        ));
    }
    Ok(())
}

/// Refuses parts of a recipe that a simulated method has no place for.
fn check_simulated(recipe: &Recipe, format: OutputFormat) -> Result<()> {
    let Some(method) = &recipe.simulated else { return Ok(()) };
    let name = method.name();
    method.check().map_err(|reason| QuantError::Recipe(format!("recipe {name}: {reason}")))?;
    if format != OutputFormat::Auto {
        return Err(QuantError::Recipe(format!(
            "recipe {name} is simulated: its checkpoint has a form of its own, and none that can be chosen; leave the format out"
        )));
    }
    let own = Recipe {
        calibration: recipe.calibration,
        propagation: recipe.propagation,
        seed: recipe.seed,
        rotation: recipe.rotation,
        ..Recipe::simulating(*method)
    };
    if *recipe != own {
        return Err(QuantError::Recipe(format!(
            "recipe {name} has parameters of its own, and no transform, groups, rules, clipping or correction besides; leave these out"
        )));
    }
    if recipe.propagation == Propagation::Float && matches!(method, SimulatedMethod::Quik(_)) {
        return Err(QuantError::Recipe(format!(
            "recipe {name} looks at the largest inputs of the layers, which are kept with propagation quantized alone"
        )));
    }
    Ok(())
}

/// Refuses what the memory certainly does not hold.
fn check_memory(need: &MemoryNeed, recipe: &Recipe) -> Result<()> {
    // Where the system does not say how much there is: what no machine has.
    let available = memory::available().unwrap_or(1 << 46);
    if need.least <= available {
        return Ok(());
    }
    let calibration = &recipe.calibration;
    let fewer = match calibration.windows {
        0 => "a machine with more memory is needed".to_owned(),
        windows => {
            format!(
                "ask for fewer or shorter calibration windows than {windows} of {} tokens",
                calibration.window
            )
        }
    };
    Err(QuantError::Recipe(format!(
        "quantizing this model with this recipe takes at least {} of memory (while {}), but only {} are free; {fewer}",
        size::bytes(need.least),
        need.phase,
        size::bytes(available)
    )))
}

/// Checks that the kernels take the layers.
pub(crate) fn check_schemes(config: &ModelConfig, schemes: &Schemes) -> Result<()> {
    if schemes.most().is_none() {
        // Integer kernels have multiples, products of floats have not.
        let integer = schemes.simulated().is_some_and(SimulatedMethod::has_arithmetic);
        return if integer { check_shapes(config, None) } else { Ok(()) };
    }
    if let Some(one) = schemes.one() {
        return check_shapes(config, one.group_size);
    }
    check_shapes(config, None)?;
    for (block, site, scheme) in schemes.all() {
        let k = site.in_features(config);
        let Some(g) = scheme.and_then(|scheme| scheme.group_size) else { continue };
        check_group_size(g)?;
        if !k.is_multiple_of(g) {
            return Err(QuantError::Recipe(format!(
                "groups of {g} do not divide the {k} inputs of {} in block {block}; give it another group size by a rule, or                  int4:channel",
                site.module_names(config).join(", ")
            )));
        }
    }
    Ok(())
}

fn check_group_size(g: usize) -> Result<()> {
    match g {
        32 | 64 | 128 => Ok(()),
        _ => Err(QuantError::Recipe(format!("group size {g} is not supported: 32, 64, 128, or per channel"))),
    }
}

pub(crate) fn check_shapes(config: &ModelConfig, group_size: Option<usize>) -> Result<()> {
    group_size.map_or(Ok(()), check_group_size)?;
    for (module, n, k) in linear_shapes(config) {
        if n % 16 != 0 || k % 16 != 0 {
            return Err(QuantError::Recipe(format!(
                "{module} has {k} inputs and {n} outputs; the kernels take multiples of 16"
            )));
        }
        if let Some(g) = group_size
            && k % g != 0
        {
            let fits: Vec<_> = [128, 64, 32]
                .iter()
                .filter(|g| linear_shapes(config).iter().all(|(_, _, k)| k % *g == 0))
                .map(|g| g.to_string())
                .chain(["per channel".to_owned()])
                .collect();
            return Err(QuantError::Recipe(format!(
                "groups of {g} do not divide the {k} inputs of {module}; this model takes: {}",
                fits.join(", ")
            )));
        }
    }
    Ok(())
}

/// The form of layers that may be of several kinds.
fn format_of(config: &ModelConfig, schemes: &Schemes, format: OutputFormat) -> Result<CheckpointFormat> {
    if schemes.head().is_some() {
        return match format {
            OutputFormat::Auto | OutputFormat::CompressedTensors => Ok(CheckpointFormat::CompressedTensors),
            OutputFormat::Qqq => Err(QuantError::Recipe(
                "the qqq format holds 4-bit layers of the blocks alone, and no int8 output head (its readers refuse lm_head: \
                 true); use the compressed-tensors format, or leave the head in 16 bits (--head float)"
                    .into(),
            )),
        };
    }
    match schemes.one() {
        None if schemes.simulated().is_some() => Ok(CheckpointFormat::Simulated),
        Some(one) if one == Scheme::w4a8(one.group_size) => choose_format(config, one.group_size, format),
        None if schemes.most().is_none() && format != OutputFormat::Auto => Err(QuantError::Recipe(
            "a model in 16 bits has no form of quantized layers: leave the format to auto".into(),
        )),
        one if format == OutputFormat::Qqq => {
            let what = one.map_or("layers of several kinds".into(), |scheme| match scheme.activations {
                Activations::Half => "16-bit activations".to_owned(),
                Activations::Int8 => "8-bit weights".to_owned(),
            });
            Err(QuantError::Recipe(format!(
                "the qqq format holds 4-bit weights of one group size for int8 activations alone, and this recipe makes {what}; \
                 use the compressed-tensors format, which holds these too"
            )))
        }
        _ => Ok(CheckpointFormat::CompressedTensors),
    }
}

pub(crate) fn choose_format(
    config: &ModelConfig,
    group_size: Option<usize>,
    format: OutputFormat,
) -> Result<CheckpointFormat> {
    if format == OutputFormat::CompressedTensors {
        return Ok(CheckpointFormat::CompressedTensors);
    }
    let shapes = linear_shapes(config);
    let misfits: Vec<String> = shapes
        .iter()
        .filter_map(|&(module, n, k)| {
            qqq::fits(n, k, group_size).err().map(|reason| format!("{module}: {reason}"))
        })
        .collect();
    match (format, misfits.first()) {
        (_, None) => Ok(CheckpointFormat::Qqq),
        (OutputFormat::Auto, Some(_)) => Ok(CheckpointFormat::CompressedTensors),
        (_, Some(first)) => Err(QuantError::Recipe(format!(
            "{} of the {} linear layers of a block do not fit the qqq format, the first of them {first}; \
             use the compressed-tensors format, which holds every shape",
            misfits.len(),
            shapes.len()
        ))),
    }
}

/// Bytes that the checkpoint will take, to a few percent.
pub(crate) fn output_bytes(config: &ModelConfig, recipe: &Recipe, schemes: &Schemes) -> u64 {
    let layers: usize = schemes
        .all()
        .map(|(_, site, scheme)| {
            layer_bytes::stored(scheme, site.out_features(config), site.in_features(config))
        })
        .sum();
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let head = match recipe.separates_head(config) {
        true => layer_bytes::stored(schemes.head(), vocab, hidden),
        false => 0,
    };
    let tables = 2 * vocab * hidden + head;
    // Tokenizer, configuration, report.
    let files = 4 << 20;
    (layers + tables + files) as u64
}

/// Refuses a disk that is too small. `directory` lies where the output will be.
pub(crate) fn check_space(
    config: &ModelConfig,
    recipe: &Recipe,
    schemes: &Schemes,
    directory: &Path,
) -> Result<()> {
    check_room(directory, output_bytes(config, recipe, schemes))
}

/// Refuses a disk that has no room for a checkpoint of so many bytes. `directory` lies where it will be.
pub(crate) fn check_room(directory: &Path, needed: u64) -> Result<()> {
    match disk::free(directory) {
        Some(free) if free < needed => Err(QuantError::Recipe(format!(
            "{}: the checkpoint takes about {}, but only {} are free on this disk",
            directory.display(),
            size::bytes(needed),
            size::bytes(free)
        ))),
        _ => Ok(()),
    }
}

/// The source's own 16-bit type; float16 for other sources, unless it cannot stand for some of the values or of the scales
/// that they will take.
fn kept_type(checkpoint: &Checkpoint) -> Result<HalfType> {
    let tensors = &checkpoint.tensors;
    match tensors.info(names::EMBEDDING).map(|t| t.dtype) {
        Some(DType::BF16) => return Ok(HalfType::BF16),
        Some(DType::F16) => return Ok(HalfType::F16),
        _ => {}
    }
    let linear = |name: &String| name.strip_suffix(".weight").is_some_and(names::is_block_linear);
    for name in tensors.names() {
        let Some(info) = tensors.info(&name) else { continue };
        // Scales of 4-bit weights: a seventh of the largest of a channel or group. Sources of narrower types are taken to be in
        // the range of theirs.
        let share = match (linear(&name), info.dtype) {
            (_, DType::I8 | DType::U8 | DType::I32 | DType::I64) => continue,
            (true, DType::F32) => Grid::CHANNEL.reach,
            (true, _) => continue,
            (false, _) => 1.0,
        };
        let values = tensors.f32(&name, &info.shape)?;
        let largest = values.iter().fold(0.0f32, |max, x| max.max(x.abs())) / share;
        // A bias may be nothing but noise around zero; of a weight so small float16 would lose digits.
        let small = largest > 0.0 && largest < half::f16::MIN_POSITIVE.to_f32() && !name.ends_with(".bias");
        if small || !half::f16::from_f32(largest).is_finite() {
            return Ok(HalfType::BF16);
        }
    }
    Ok(HalfType::F16)
}
