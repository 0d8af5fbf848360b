//! Checkpoints of 4-bit weights made into others, without calibration: codes and scales stay what they are.
//!
//! A W4A16 checkpoint of GPTQ, AWQ, AutoRound or compressed-tensors becomes a W4A8 one: the same codes and scales, in
//! compressed-tensors' form, which says that activations are to be int8. Per channel the integer kernels then multiply exactly
//! these weights. Per group they multiply `round(code * scale / channel)` in int8 with a scale per output channel
//! ([`Scales::from_effective`](qqq_formats::Scales::from_effective)); [`Rounding`] says how far that is from the float weight.
//! What is on disk has lost nothing, so that every way back gives the same codes and scales.

mod copied;
mod float_form;
mod folded;
mod rounding;
mod source;

use std::{borrow::Cow, collections::BTreeSet, time::Instant};

use qqq_backend::pool::parallel_each_mut;
use qqq_formats::{
    CheckpointFormat, FormatError, Int4Checkpoint, Int4Layer, QuantizationConfig,
    foreign::{Changes, gptq_value, packed_value, write_gptq, write_packed},
    writer::{CheckpointWriter, Reservation},
};
use qqq_model::{Site, TensorBytes, Tokenizer, names};
use serde::Serialize;
use serde_json::{Value, json};

pub use self::{float_form::float_form, rounding::Rounding};
use self::{folded::fold, source::Contents};
use crate::{
    Progress, QuantError, Result, model_card,
    output::{io, write_json},
    preflight,
};

/// The file that says what was done.
const REPORT_FILE: &str = "conversion_report.json";
/// Bytes of a tensor that are copied at a time.
const PIECE: usize = 16 << 20;
/// Beside the tensors: tokenizer, configuration, headers.
const FILES: u64 = 16 << 20;

/// What to make of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Target {
    /// int4 weights and int8 activations, in compressed-tensors' form: what this program runs
    W4a8,
    /// 4-bit weights alone, as GPTQ's readers take them
    Gptq,
    /// 4-bit weights alone (W4A16), as compressed-tensors' readers take them
    CompressedTensors,
}

impl Target {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Target::W4a8 => "W4A8 (compressed-tensors)",
            Target::Gptq => "GPTQ",
            Target::CompressedTensors => "compressed-tensors W4A16",
        }
    }
}

/// What was converted.
#[derive(Clone, Debug, Serialize)]
pub struct Converted {
    /// The model's name, as the user gave it.
    pub model: String,
    /// What had made the source.
    pub from: &'static str,
    /// What was made of it.
    pub to: &'static str,
    /// Version of this program.
    pub version: &'static str,
    /// Input channels that share a scale; none: whole output channels.
    pub group_size: Option<usize>,
    /// Type of the scales.
    pub scales: String,
    /// Quantized linear layers.
    pub layers: usize,
    /// Linear layers of the blocks that stay float.
    pub float_layers: Vec<String>,
    /// Groups of all layers (output channels, per channel).
    pub groups: u64,
    /// Groups whose zero point was not 8.
    pub recentred: u64,
    /// Groups whose codes and scale have changed their signs.
    pub flipped: u64,
    /// Groups that have a negative scale: they use the code -8.
    pub negative: u64,
    /// Layers whose inputs come in another order now, which the layers before them make.
    pub reordered: Vec<String>,
    /// By how much of itself a scale has moved at most: 0 where 16 bits hold them.
    pub scale_rounding: f64,
    /// How far the weights that the integer kernels multiply are from the stored ones.
    pub int8_rounding: Rounding,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Those of the blocks' linear layers.
    pub linear_bytes: u64,
    /// From the first tensor to the complete directory.
    pub seconds: f64,
}

/// Converts `source` and writes the result, a block at a time. Nothing appears under the output's name unless all is well.
///
/// # Errors
/// What cannot be converted without a change to its weights, with the layer; tensors that a model could not be run with; shapes
/// that the target does not take; a disk that is too small or full; files that were changed meanwhile; [`QuantError::Interrupted`].
pub fn convert(
    source: &Int4Checkpoint,
    target: Target,
    model: &str,
    reservation: &Reservation,
    progress: &mut dyn Progress,
) -> Result<Converted> {
    let started = Instant::now();
    let tokenizer = Tokenizer::load(&source.checkpoint)?;
    let contents = Contents::of(source)?;
    copied::check(source, &contents)?;
    let mut writer = CheckpointWriter::reserved(reservation)?;
    let bytes: u64 = source.tensors().names().iter().map(|name| bytes_of(source, name)).sum();
    preflight::check_room(writer.staging(), bytes + FILES)?;
    tokenizer.save(writer.staging())?;

    let mut work = Work { source, target, contents, done: Done::default() };
    let blocks = source.checkpoint.config.num_layers;
    let mut told = |i: usize, what: &str| {
        let seconds = started.elapsed().as_secs_f64();
        // The first block has no one before it; a gigabyte takes some seconds.
        let all = if i == 0 { bytes as f64 / 2e8 } else { seconds * (blocks + 1) as f64 / i as f64 };
        if progress.step(seconds, all.max(seconds), what) { Ok(()) } else { Err(QuantError::Interrupted) }
    };
    for name in [names::EMBEDDING, names::FINAL_NORM, names::LM_HEAD] {
        work.copy(&mut writer, name)?;
    }
    for block in 0..blocks {
        told(block, &format!("block {}/{blocks}", block + 1))?;
        work.block(&mut writer, block)?;
    }
    told(blocks, "the last files")?;

    let mut sizes = TensorBytes::default();
    writer.tensors().for_each(|(name, size)| sizes.add(name, size));
    let report = work.report(model, &sizes, started.elapsed().as_secs_f64())?;
    let staging = writer.staging();
    write_json(&staging.join("config.json"), &work.config()?)?;
    let value = serde_json::to_value(&report).map_err(|e| io(&staging.join(REPORT_FILE), e.into()))?;
    write_json(&staging.join(REPORT_FILE), &value)?;
    let card = staging.join("README.md");
    let text = card_text(&report, &model_card::license(&source.checkpoint.path));
    std::fs::write(&card, text).map_err(|e| io(&card, e))?;
    source.checkpoint.inputs.check()?;
    writer.finish()?;
    Ok(report)
}

fn bytes_of(source: &Int4Checkpoint, name: &str) -> u64 {
    source.tensors().info(name).map_or(0, |info| info.bytes)
}

/// What was found on the way.
#[derive(Default)]
struct Done {
    layers: usize,
    /// Of the first layer; all have the same.
    group_size: Option<Option<usize>>,
    scale_types: BTreeSet<&'static str>,
    changes: Changes,
    reordered: Vec<String>,
    scale_rounding: f64,
    rounding: Rounding,
}

/// A conversion on its way.
struct Work<'a> {
    source: &'a Int4Checkpoint,
    target: Target,
    contents: Contents,
    done: Done,
}

/// A linear layer of a block, on its way.
struct Part {
    site: Site,
    prefix: String,
    n: usize,
    k: usize,
    layer: Result<Int4Layer>,
    rounding: Result<Rounding>,
}

impl Work<'_> {
    /// Copies a tensor as it is, if it is there.
    fn copy(&self, writer: &mut CheckpointWriter, name: &str) -> Result<()> {
        let tensors = self.source.tensors();
        let Some(info) = tensors.info(name) else { return Ok(()) };
        let bytes = info.bytes as usize;
        writer.add_pieces(name, info.dtype, &info.shape, |pieces| {
            for start in (0..bytes).step_by(PIECE) {
                let piece = tensors.bytes_at(name, start..bytes.min(start + PIECE));
                let piece = piece.map_err(|e| qqq_formats::writer::PieceError::Other(e.into()))?;
                pieces.write_at(start as u64, &piece)?;
            }
            Ok::<(), qqq_formats::writer::PieceError<QuantError>>(())
        })
    }

    /// Converts a block.
    fn block(&mut self, writer: &mut CheckpointWriter, block: usize) -> Result<()> {
        for name in self.contents.norms(block) {
            self.copy(writer, name)?;
        }
        let mut parts = Vec::new();
        for site in Site::ALL {
            let k = site.in_features(&self.source.checkpoint.config);
            for (module, n) in site.modules(&self.source.checkpoint.config) {
                let prefix = names::linear(block, module);
                if self.contents.is_float(&prefix) {
                    self.copy(writer, &format!("{prefix}.weight"))?;
                    self.copy(writer, &format!("{prefix}.bias"))?;
                    continue;
                }
                let not_yet = || QuantError::Recipe(format!("{prefix} was not read"));
                parts.push(Part { site, n, k, layer: Err(not_yet()), rounding: Err(not_yet()), prefix });
            }
        }
        parallel_each_mut(&mut parts, |_, part| {
            part.layer = self.source.layer(&part.prefix, part.n, part.k).map_err(QuantError::from);
            part.rounding = match &part.layer {
                Ok(layer) => Rounding::of(&layer.weight, &part.prefix),
                Err(_) => Ok(Rounding::default()),
            };
        });
        let mut layers = Vec::with_capacity(parts.len());
        for part in parts {
            let layer = part.layer?;
            self.note(&part.prefix, &layer, part.rounding?)?;
            layers.push((part.site, part.prefix, layer));
        }
        let rows = fold(&mut layers, &self.source.checkpoint.config)?;
        for (site, prefix, layer) in &layers {
            match self.target {
                Target::W4a8 | Target::CompressedTensors => write_packed(writer, prefix, &layer.weight)?,
                Target::Gptq => {
                    let moved = write_gptq(writer, prefix, &layer.weight)?.moved;
                    self.done.scale_rounding = self.done.scale_rounding.max(moved);
                }
            }
            match &rows {
                Some(rows) if *site == Site::GateUp => self.add_bias(writer, prefix, &rows.of(prefix))?,
                _ => self.copy(writer, &format!("{prefix}.bias"))?,
            }
        }
        Ok(())
    }

    /// Adds a bias whose channels come in another order now, if there is one.
    fn add_bias(&self, writer: &mut CheckpointWriter, prefix: &str, order: &[usize]) -> Result<()> {
        let name = format!("{prefix}.bias");
        let tensors = self.source.tensors();
        let Some(info) = tensors.info(&name) else { return Ok(()) };
        if info.shape != [order.len()] {
            let (location, found) = (tensors.location(), info.shape);
            return Err(FormatError::Shape { location, name, found, expected: vec![order.len()] }.into());
        }
        let (bytes, size) = (tensors.bytes(&name)?, info.dtype.size().unwrap_or(1));
        let moved: Vec<u8> = order.iter().flat_map(|i| bytes[i * size..][..size].to_vec()).collect();
        Ok(writer.add(&name, info.dtype, &info.shape, &moved)?)
    }

    /// Keeps what is to be told of a layer.
    fn note(&mut self, prefix: &str, layer: &Int4Layer, rounding: Rounding) -> Result<()> {
        let group_size = layer.weight.group_size;
        if *self.done.group_size.get_or_insert(group_size) != group_size {
            return Err(QuantError::Recipe(format!(
                "{prefix}: its groups are of another size than those of the layers before it, which is not converted"
            )));
        }
        self.done.layers += 1;
        self.done.scale_types.insert(layer.weight.scale_type().name());
        self.done.changes = self.done.changes.and(layer.changes);
        self.done.rounding = self.done.rounding.and(rounding);
        if layer.order.is_some() {
            self.done.reordered.push(prefix.to_owned());
        }
        Ok(())
    }

    fn group_size(&self) -> Result<Option<usize>> {
        self.done.group_size.ok_or_else(|| {
            QuantError::Recipe(format!(
                "{}: no linear layer of its blocks is quantized",
                self.source.checkpoint.path.display()
            ))
        })
    }

    /// The new config.json.
    fn config(&self) -> Result<Value> {
        let (float, group_size) = (&self.contents.float, self.group_size()?);
        let config = &self.source.checkpoint.config;
        let mut raw = config.raw.clone();
        for key in ["compression_config", "auto_map", "custom_pipelines"] {
            raw.remove(key);
        }
        let quantization = match self.target {
            Target::W4a8 => {
                let format = CheckpointFormat::CompressedTensors;
                QuantizationConfig::uniform_but(format, group_size, float).to_value()
            }
            Target::Gptq => gptq_value(group_size, float),
            Target::CompressedTensors => packed_value(group_size, float),
        };
        raw.insert("quantization_config".into(), quantization);
        raw.insert("tie_word_embeddings".into(), json!(config.tie_word_embeddings));
        Ok(Value::Object(raw))
    }

    fn report(&self, model: &str, sizes: &TensorBytes, seconds: f64) -> Result<Converted> {
        let Done { layers, changes, reordered, scale_rounding, rounding, .. } = &self.done;
        let types: Vec<&str> = self.done.scale_types.iter().copied().collect();
        Ok(Converted {
            model: model.into(),
            from: self.source.method.name(),
            to: self.target.name(),
            version: env!("CARGO_PKG_VERSION"),
            group_size: self.group_size()?,
            scales: types.join(", "),
            layers: *layers,
            float_layers: self.contents.float.clone(),
            groups: changes.groups,
            recentred: changes.recentred,
            flipped: changes.flipped,
            negative: changes.negative,
            reordered: reordered.clone(),
            scale_rounding: *scale_rounding,
            int8_rounding: *rounding,
            tensor_bytes: sizes.total,
            linear_bytes: sizes.linear,
            seconds,
        })
    }
}

/// The model card.
fn card_text(report: &Converted, license: &[String]) -> String {
    let tags: Cow<'_, str> =
        if report.to == Target::W4a8.name() { "- qqq\n- w4a8".into() } else { "- qqq".into() };
    let groups =
        report.group_size.map_or("one scale per output channel".into(), |g| format!("groups of {g}"));
    let license: String = license.iter().map(|line| format!("{line}\n")).collect();
    let Converted { model, from, to, version, scales, .. } = report;
    format!(
        "---\ntags:\n{tags}\n{license}---\n\n# {model} as {to}\n\nConverted by `qqq convert` {version} from a checkpoint of \
         {from}, without calibration: the 4-bit codes and their scales are the same.\n\n| | |\n|---|---|\n| Weights | 4-bit, \
         {groups} |\n| Scales | {scales} |\n| Form | {to} |\n\n`{REPORT_FILE}` has the figures of the conversion.\n"
    )
}

/// The error of a layer that is not what its checkpoint says.
fn wrong(prefix: &str, what: &str) -> QuantError {
    FormatError::Layout(format!("{prefix}: {what}")).into()
}
