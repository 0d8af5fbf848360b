//! The checkpoint directory that a quantization writes.

use std::{
    borrow::Cow,
    fs,
    io::ErrorKind,
    ops::Range,
    path::{Path, PathBuf},
};

use qqq_backend::{Calibrate, solve::Scheme};
use qqq_formats::{
    Checkpoint, CheckpointFormat, FormatError, LayerScheme, LinearWeight, ModelConfig, QuantizationConfig,
    QuantizedWeight, Simulated, simulated,
    writer::{CheckpointWriter, Reservation},
};
use qqq_model::{BlockNorms, OutputHead, Site, TensorBytes, Tokenizer, names};
use serde_json::{Value, json};

use crate::{
    QuantError, Report, Result,
    half_type::{HalfType, some_rows},
    model_card,
    preflight::Plan,
    recipes::os_plus::BIAS_KEY,
    report::SmoothReport,
    resume::{Stopped, damaged},
};

/// Rows of the embedding that are converted at a time on the host, and on a device, which few rows leave idle.
const ROWS: usize = 1024;
const DEVICE_ROWS: usize = 8192;

/// Writes tensors as they are made.
pub(crate) struct OutputCheckpoint<'a> {
    checkpoint: &'a Checkpoint,
    writer: CheckpointWriter,
    plan: &'a Plan,
}

impl<'a> OutputCheckpoint<'a> {
    /// Starts the directory that was reserved, with what comes along from the source unchanged.
    pub(crate) fn create(
        checkpoint: &'a Checkpoint,
        tokenizer: &Tokenizer,
        reservation: &Reservation,
        plan: &'a Plan,
    ) -> Result<Self> {
        let writer = CheckpointWriter::reserved(reservation)?;
        // Now rather than at the end, so that a file that cannot be read costs no work.
        tokenizer.save(writer.staging())?;
        Ok(Self { checkpoint, writer, plan })
    }

    /// Goes on with the directory of a stopped run.
    pub(crate) fn resumed(
        checkpoint: &'a Checkpoint,
        tokenizer: &Tokenizer,
        stopped: &Stopped,
        reservation: &Reservation,
        plan: &'a Plan,
    ) -> Result<Self> {
        let directory = stopped.directory();
        let writer =
            CheckpointWriter::resume(reservation, directory, stopped.written()).map_err(|e| match e {
                FormatError::Io { source, .. }
                    if matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof) =>
                {
                    damaged(directory, &source.to_string())
                }
                e => e.into(),
            })?;
        // What lay there may have been changed.
        tokenizer.save(writer.staging())?;
        Ok(Self { checkpoint, writer, plan })
    }

    /// The tensors' files, for who keeps what is finished.
    pub(crate) fn writer_mut(&mut self) -> &mut CheckpointWriter {
        &mut self.writer
    }

    /// One that is only counted.
    pub(crate) fn counting(checkpoint: &'a Checkpoint, plan: &'a Plan) -> Self {
        Self { checkpoint, writer: CheckpointWriter::counting(), plan }
    }

    /// Where the files lie until all is done.
    pub(crate) fn staging(&self) -> &Path {
        self.writer.staging()
    }

    fn add_half(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
        let mut bytes = Vec::new();
        self.plan.half.append(name, values, &mut bytes)?;
        Ok(self.writer.add(name, self.plan.half.dtype(), shape, &bytes)?)
    }

    /// The rows of the table `name` (`vocab x hidden`) as they are stored, scaled by channel and rotated where that is asked.
    fn table<B: Calibrate>(
        &self,
        b: &B,
        name: &str,
        scale: Option<&[f32]>,
        rotation: Option<&B::Rotation>,
    ) -> Result<Vec<u8>> {
        let (vocab, hidden) = self.table_shape();
        let data = self.checkpoint.tensors.float(name, &[vocab, hidden])?;
        let mut bytes = Vec::with_capacity(vocab * hidden * 2);
        let most = if B::PIECES.on_host { ROWS } else { DEVICE_ROWS };
        for first in (0..vocab).step_by(most) {
            let count = most.min(vocab - first);
            let rows = some_rows(&data, hidden, first, count);
            if scale.is_none() && rotation.is_none() {
                self.plan.half.append(name, &rows.into_f32(), &mut bytes)?;
                continue;
            }
            let rows = changed(b, b.weights(count, hidden, rows)?, scale, rotation)?;
            self.plan.half.append(name, &b.read_weights(&rows)?, &mut bytes)?;
        }
        Ok(bytes)
    }

    fn table_shape(&self) -> (usize, usize) {
        (self.checkpoint.config.vocab_size, self.checkpoint.config.hidden_size)
    }

    /// The embedding as it is stored, rotated if there is a rotation.
    pub(crate) fn embedding<B: Calibrate>(&self, b: &B, rotation: Option<&B::Rotation>) -> Result<Vec<u8>> {
        self.table(b, names::EMBEDDING, None, rotation)
    }

    /// Writes the [embedding](Self::embedding), and returns it.
    pub(crate) fn add_embedding<B: Calibrate>(
        &mut self,
        b: &B,
        rotation: Option<&B::Rotation>,
    ) -> Result<Vec<u8>> {
        let embedding = self.embedding(b, rotation)?;
        let (vocab, hidden) = self.table_shape();
        self.writer.add(names::EMBEDDING, self.plan.half.dtype(), &[vocab, hidden], &embedding)?;
        Ok(embedding)
    }

    /// Writes output head and last norm, rotated if there is a rotation (a tied head then gets its own tensor, because the
    /// last norm is folded into it). A head that is to be quantized is looked through, and written when it
    /// [is](Self::add_quantized_head).
    pub(crate) fn add_head<B: Calibrate>(&mut self, b: &B, rotation: Option<&B::Rotation>) -> Result<()> {
        let (vocab, hidden) = self.table_shape();
        if self.plan.schemes.head().is_some() {
            // A value that is not finite is an error now rather than when all else is done.
            for first in (0..vocab).step_by(ROWS) {
                let rows = first..vocab.min(first + ROWS);
                self.checkpoint.tensors.float_rows(self.head_source(), &[vocab, hidden], rows)?;
            }
            let (norm, _) = self.head_norm(rotation.is_some())?;
            return self.add_half(names::FINAL_NORM, &[hidden], &norm);
        }
        let norm = if !self.checkpoint.config.tie_word_embeddings || rotation.is_some() {
            let (norm, head) = self.head_parts(b, rotation)?;
            self.writer.add(names::LM_HEAD, self.plan.half.dtype(), &[vocab, hidden], &head)?;
            norm
        } else {
            self.checkpoint.tensors.f32(names::FINAL_NORM, &[hidden])?
        };
        self.add_half(names::FINAL_NORM, &[hidden], &norm)
    }

    /// Last norm and rows of the output head as they are stored, rotated if there is a rotation.
    fn head_parts<B: Calibrate>(&self, b: &B, rotation: Option<&B::Rotation>) -> Result<(Vec<f32>, Vec<u8>)> {
        let (norm, scale) = self.head_norm(rotation.is_some())?;
        Ok((norm, self.table(b, self.head_source(), scale.as_deref(), rotation)?))
    }

    /// The tensor that holds the head's values.
    fn head_source(&self) -> &'static str {
        if self.checkpoint.config.tie_word_embeddings { names::EMBEDDING } else { names::LM_HEAD }
    }

    /// Last norm as it is stored, of a model that is rotated or not, and what the head's channels are multiplied by for that.
    fn head_norm(&self, rotated: bool) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
        let config = &self.checkpoint.config;
        let (hidden, offset) = (config.hidden_size, config.graph.norm_offset);
        let norm = self.checkpoint.tensors.f32(names::FINAL_NORM, &[hidden])?;
        if !rotated {
            return Ok((norm, None));
        }
        Ok((vec![1.0 - offset; hidden], Some(norm.iter().map(|w| w + offset).collect())))
    }

    /// Some rows of the output head in float, rotated if there is a rotation.
    pub(crate) fn head_rows<B: Calibrate>(
        &self,
        b: &B,
        rotation: Option<&B::Rotation>,
        rows: Range<usize>,
    ) -> Result<B::Weights> {
        let (vocab, hidden) = self.table_shape();
        let (_, scale) = self.head_norm(rotation.is_some())?;
        let data = self.checkpoint.tensors.float_rows(self.head_source(), &[vocab, hidden], rows.clone())?;
        changed(b, b.weights(rows.len(), hidden, data)?, scale.as_deref(), rotation)
    }

    /// The last norm's weight to the bit that is stored.
    pub(crate) fn stored_head_norm(&self, rotated: bool) -> Result<Vec<f32>> {
        let (norm, _) = self.head_norm(rotated)?;
        Ok(norm.into_iter().map(|w| self.plan.half.round(w)).collect())
    }

    /// Writes a quantized output head, `vocab x hidden`.
    pub(crate) fn add_quantized_head(&mut self, weight: &QuantizedWeight, scheme: Scheme) -> Result<()> {
        let stored = stored_as(self.plan.format, scheme)?;
        Ok(self.writer.add_linear(names::LM_HEAD_MODULE, weight, stored)?)
    }

    /// Last norm and output head as they will be, ready to run before anything is written.
    pub(crate) fn head<B: Calibrate>(&self, b: &B, rotation: Option<&B::Rotation>) -> Result<OutputHead<B>> {
        let (norm, head) = self.head_parts(b, rotation)?;
        let (vocab, hidden) = self.table_shape();
        let data = self.plan.half.values(head);
        let weight = LinearWeight::Float { out_features: vocab, in_features: hidden, data };
        Ok(OutputHead::new(b, &self.checkpoint.config, norm, weight)?)
    }

    /// Begins block `index` with its norms.
    pub(crate) fn add_norms(&mut self, index: usize, norms: &BlockNorms) -> Result<()> {
        let name = |module: &str| format!("{}.weight", names::linear(index, module));
        for (module, weight) in norms.named() {
            self.add_half(&name(module), &[weight.len()], weight)?;
        }
        Ok(())
    }

    /// Writes a layer of block `index` under the names of its modules.
    pub(crate) fn add_linear(
        &mut self,
        index: usize,
        site: Site,
        weight: &LinearWeight,
        bias: Option<&[f32]>,
    ) -> Result<()> {
        let mut first = 0;
        for (module, count) in site.modules(&self.checkpoint.config) {
            let prefix = names::linear(index, module);
            let rows = first..first + count;
            match (weight, self.plan.schemes.at(index, site)) {
                (LinearWeight::Quantized(weight) | LinearWeight::WeightOnly { weight, .. }, Some(scheme)) => {
                    let part = if count == weight.out_features {
                        Cow::Borrowed(weight)
                    } else {
                        Cow::Owned(weight.rows(rows.clone()).ok_or_else(|| {
                            let channels = weight.out_features;
                            FormatError::Layout(format!("{prefix}: channels {rows:?} of {channels}"))
                        })?)
                    };
                    self.writer.add_linear(&prefix, &part, stored_as(self.plan.format, scheme)?)?;
                }
                (LinearWeight::Float { in_features, data, .. }, None) => {
                    let part = some_rows(data, *in_features, first, count);
                    self.writer.add_float(&format!("{prefix}.weight"), &[count, *in_features], &part)?;
                }
                (LinearWeight::Simulated(weight), None) => {
                    self.writer.add_simulated(&prefix, &weight.rows(rows.clone()))?;
                }
                _ => {
                    return Err(QuantError::Recipe(format!(
                        "{prefix} has become something else than planned"
                    )));
                }
            }
            if let Some(bias) = bias {
                self.add_half(&format!("{prefix}.bias"), &[count], &bias[rows])?;
            }
            first += count;
        }
        Ok(())
    }

    /// Which layers are stored in which way. `stored_bits`: for a weight of a simulated method, once all is known.
    fn quantization(&self, stored_bits: Option<f64>) -> Result<Option<QuantizationConfig>> {
        let Plan { format, schemes, .. } = self.plan;
        if let Some(&method) = schemes.simulated() {
            let record = Simulated { method, bits_per_weight: stored_bits };
            return Ok(Some(QuantizationConfig::of_simulated(record)));
        }
        let most = schemes.most();
        let Some(others) = most else { return Ok(None) };
        if *format == CheckpointFormat::Qqq {
            return Ok(Some(QuantizationConfig::uniform(*format, others.group_size)));
        }
        let mut rules = Vec::new();
        for (index, site, scheme) in schemes.all().filter(|(.., scheme)| *scheme != most) {
            let stored = scheme.map(|scheme| stored_as(*format, scheme)).transpose()?;
            let modules = site.module_names(&self.checkpoint.config).into_iter();
            rules.extend(modules.map(|module| (names::linear(index, module), stored)));
        }
        if let Some(scheme) = schemes.head() {
            rules.push((names::LM_HEAD_MODULE.into(), Some(stored_as(*format, scheme)?)));
        }
        let rules = rules.iter().map(|(name, scheme)| (name.as_str(), *scheme));
        Ok(Some(QuantizationConfig::by_module(stored_as(*format, others)?, rules)?))
    }

    /// The `config.json` of what is written.
    fn config(&self, tied: bool, stored_bits: Option<f64>) -> Result<Value> {
        let quantization = self.quantization(stored_bits)?;
        let mut value = config_json(&self.checkpoint.config, self.plan.half, quantization.as_ref(), tied);
        if self.plan.adds_bias
            && let Value::Object(map) = &mut value
        {
            map.insert(BIAS_KEY.into(), true.into());
        }
        Ok(value)
    }

    /// A checkpoint of what is written, to be read before more is.
    pub(crate) fn so_far(&mut self) -> Result<Checkpoint> {
        let path = self.writer.staging().to_owned();
        // A rotated head is not tied any more, nor one that is to be quantized.
        let has_head = self.plan.schemes.head().is_some()
            || self.writer.tensors().any(|(name, _)| name == names::LM_HEAD);
        let value = self.config(self.checkpoint.config.tie_word_embeddings && !has_head, None)?;
        Ok(Checkpoint {
            config: ModelConfig::from_value(&path, value)?,
            tensors: Box::new(self.writer.so_far()?),
            gguf: None,
            inputs: Default::default(),
            path,
        })
    }

    /// Bytes of the tensors so far.
    pub(crate) fn tensor_bytes(&self) -> TensorBytes {
        let mut sum = TensorBytes::default();
        self.writer.tensors().for_each(|(name, bytes)| sum.add(name, bytes));
        sum
    }

    /// Bytes of the tensors' files so far.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.writer.file_bytes()
    }

    /// Writes everything else and gives the directory its name; or, where the report says that the result is beyond the gate's
    /// limit and this is not `forced`, another one beside it, which is returned.
    pub(crate) fn finish(
        self,
        report: &Report,
        more: &[(String, String)],
        forced: bool,
    ) -> Result<Option<PathBuf>> {
        let staging = self.writer.staging();
        let tied = !report.recipe.separates_head(&self.checkpoint.config);
        let value = self.config(tied, report.simulated_bits())?;
        write_json(&staging.join("config.json"), &value)?;
        write_report(staging, report)?;
        for (name, text) in more {
            let path = staging.join(name);
            fs::write(&path, text).map_err(|e| io(&path, e))?;
        }
        // A GGUF file's folder may hold anything.
        let is_directory = self.checkpoint.gguf.is_none();
        let license = if is_directory { model_card::license(&self.checkpoint.path) } else { Vec::new() };
        model_card::write(staging, report, &license, &[])?;
        if report.quality.as_ref().is_some_and(|quality| quality.is_beyond) && !forced {
            return Ok(Some(self.writer.finish_beside(BEYOND_SUFFIX)?));
        }
        self.writer.finish()?;
        Ok(None)
    }
}

/// Writes the report, and what of it is long and for programs into a file of its own.
fn write_report(staging: &Path, report: &Report) -> Result<()> {
    let path = staging.join(REPORT_FILE);
    let mut short = report.clone();
    let curves = |s: &mut SmoothReport| {
        let curve = std::mem::take(&mut s.curve);
        (!curve.is_empty()).then(|| json!({ "site": s.site, "curve": curve }))
    };
    let searches: Vec<Value> = short.smoothing.iter_mut().filter_map(curves).collect();
    let value = serde_json::to_value(&short).map_err(|e| io(&path, e.into()))?;
    write_json(&path, &value)?;
    if report.activations.is_empty() && searches.is_empty() {
        return Ok(());
    }
    let path = staging.join(DETAILS_FILE);
    let details = json!({ "activations": report.activations, "searches": searches });
    fs::write(&path, format!("{details}\n")).map_err(|e| io(&path, e))
}

/// Rows of a table, scaled by channel and rotated where that is asked.
fn changed<B: Calibrate>(
    b: &B,
    mut rows: B::Weights,
    scale: Option<&[f32]>,
    rotation: Option<&B::Rotation>,
) -> Result<B::Weights> {
    if let Some(scale) = scale {
        b.scale_inputs(&mut rows, scale)?;
    }
    if let Some(rotation) = rotation {
        b.rotate_inputs(&mut rows, rotation)?;
    }
    Ok(rows)
}

/// How a format stores layers of a scheme.
fn stored_as(format: CheckpointFormat, scheme: Scheme) -> Result<LayerScheme> {
    Ok(LayerScheme::new(format, scheme.bits, scheme.activations, scheme.group_size)?)
}

/// The `config.json` of what is made of a model.
pub(crate) fn config_json(
    config: &ModelConfig,
    half: HalfType,
    quantization: Option<&QuantizationConfig>,
    tied: bool,
) -> Value {
    let mut raw = config.raw.clone();
    if let Some(quantization) = quantization {
        raw.insert("quantization_config".into(), quantization.to_value());
        if quantization.simulated().is_some() {
            // A tool that passes over methods that it does not know must not take it for a float model.
            raw.insert("model_type".into(), json!(simulated::METHOD));
            raw.insert("architectures".into(), json!([config.architecture.class_name()]));
        }
    }
    // The code that it names does not come along, and nothing here needs it.
    for code in ["auto_map", "custom_pipelines"] {
        raw.remove(code);
    }
    raw.insert("tie_word_embeddings".into(), json!(tied));
    // Newer configurations say "dtype" where older ones say "torch_dtype".
    let key = if raw.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    raw.insert(key.into(), json!(half.config_name()));
    Value::Object(raw)
}

/// Behind the name of an output that is not to be taken for one.
const BEYOND_SUFFIX: &str = "failed-gate";

/// The report's file.
pub const REPORT_FILE: &str = "quantization_report.json";
/// File of what is long: how far the inputs of layers reach ([`Report::activations`]), and what searches have tried.
pub const DETAILS_FILE: &str = "quantization_details.json";

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| io(path, e.into()))?;
    std::fs::write(path, text + "\n").map_err(|e| io(path, e))
}

pub(crate) fn io(path: &Path, source: std::io::Error) -> crate::QuantError {
    FormatError::Io { path: path.to_owned(), source }.into()
}
