//! The checkpoint directory that a quantization writes.

use std::{borrow::Cow, io::ErrorKind, path::Path};

use qqq_backend::Calibrate;
use qqq_formats::{
    Checkpoint, CheckpointFormat, DType, FormatError, LayerScheme, ModelConfig, QuantizationConfig,
    QuantizedWeight, Simulated, simulated,
    writer::{CheckpointWriter, Reservation},
};
use qqq_model::{BlockNorms, Site, TensorBytes, Tokenizer, names};
use serde_json::{Value, json};

use crate::{
    Recipe, Report, Result,
    half_type::{HalfType, some_rows},
    model_card,
    resume::{Stopped, damaged},
    run::SimulatedModule,
};

/// Rows of the embedding that are converted at a time on the host, and on a device, which few rows leave idle.
const ROWS: usize = 1024;
const DEVICE_ROWS: usize = 8192;

/// Writes tensors as they are made.
pub(crate) struct OutputCheckpoint<'a> {
    checkpoint: &'a Checkpoint,
    writer: CheckpointWriter,
    format: CheckpointFormat,
    half: HalfType,
}

impl<'a> OutputCheckpoint<'a> {
    /// Starts the directory that was reserved, with what comes along from the source unchanged.
    pub(crate) fn create(
        checkpoint: &'a Checkpoint,
        tokenizer: &Tokenizer,
        reservation: &Reservation,
        format: CheckpointFormat,
        half: HalfType,
    ) -> Result<Self> {
        let writer = CheckpointWriter::reserved(reservation)?;
        // Now rather than at the end, so that a file that cannot be read costs no work.
        tokenizer.save(writer.staging())?;
        Ok(Self { checkpoint, writer, format, half })
    }

    /// Goes on with the directory of a stopped run.
    pub(crate) fn resumed(
        checkpoint: &'a Checkpoint,
        tokenizer: &Tokenizer,
        stopped: &Stopped,
        reservation: &Reservation,
        format: CheckpointFormat,
        half: HalfType,
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
        Ok(Self { checkpoint, writer, format, half })
    }

    /// The tensors' files, for who keeps what is finished.
    pub(crate) fn writer_mut(&mut self) -> &mut CheckpointWriter {
        &mut self.writer
    }

    /// One that is only counted.
    pub(crate) fn counting(checkpoint: &'a Checkpoint, format: CheckpointFormat, half: HalfType) -> Self {
        Self { checkpoint, writer: CheckpointWriter::counting(), format, half }
    }

    /// Where the files lie until all is done.
    pub(crate) fn staging(&self) -> &Path {
        self.writer.staging()
    }

    fn add_half(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
        let mut bytes = Vec::new();
        self.half.append(name, values, &mut bytes)?;
        Ok(self.writer.add(name, self.half.dtype(), shape, &bytes)?)
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
                self.half.append(name, &rows.into_f32(), &mut bytes)?;
                continue;
            }
            let mut rows = b.weights(count, hidden, rows)?;
            if let Some(scale) = scale {
                b.scale_inputs(&mut rows, scale)?;
            }
            if let Some(rotation) = rotation {
                b.rotate_inputs(&mut rows, rotation)?;
            }
            self.half.append(name, &b.read_weights(&rows)?, &mut bytes)?;
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
        self.writer.add(names::EMBEDDING, self.half.dtype(), &[vocab, hidden], &embedding)?;
        Ok(embedding)
    }

    /// Writes output head and last norm, rotated if there is a rotation (a tied head then gets its own tensor, because the
    /// last norm is folded into it).
    pub(crate) fn add_head<B: Calibrate>(&mut self, b: &B, rotation: Option<&B::Rotation>) -> Result<()> {
        let (vocab, hidden) = self.table_shape();
        let tensors = &self.checkpoint.tensors;
        let mut norm = tensors.f32(names::FINAL_NORM, &[hidden])?;
        let offset = self.checkpoint.config.graph.norm_offset;
        let tied = self.checkpoint.config.tie_word_embeddings;
        if rotation.is_some() {
            norm.iter_mut().for_each(|w| *w += offset);
        }
        if !tied || rotation.is_some() {
            let source = if tied { names::EMBEDDING } else { names::LM_HEAD };
            let head = self.table(b, source, rotation.map(|_| norm.as_slice()), rotation)?;
            self.writer.add(names::LM_HEAD, self.half.dtype(), &[vocab, hidden], &head)?;
        }
        if rotation.is_some() {
            norm.fill(1.0 - offset);
        }
        self.add_half(names::FINAL_NORM, &[hidden], &norm)
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
        weight: &QuantizedWeight,
        bias: Option<&[f32]>,
    ) -> Result<()> {
        let mut first = 0;
        for (module, count) in site.modules(&self.checkpoint.config) {
            let prefix = names::linear(index, module);
            let rows = first..first + count;
            let part = if count == weight.out_features {
                Cow::Borrowed(weight)
            } else {
                Cow::Owned(weight.rows(rows.clone()).ok_or_else(|| {
                    FormatError::Layout(format!("{prefix}: channels {rows:?} of {}", weight.out_features))
                })?)
            };
            let scheme = LayerScheme::w4a8(self.format, part.scales.group_size());
            self.writer.add_linear(&prefix, &part, scheme)?;
            if let Some(bias) = bias {
                self.add_half(&format!("{prefix}.bias"), &[count], &bias[rows])?;
            }
            first += count;
        }
        Ok(())
    }

    /// Writes a module of a simulated recipe.
    pub(crate) fn add_simulated(&mut self, module: &SimulatedModule, bias: Option<&[f32]>) -> Result<()> {
        let SimulatedModule { prefix, n, k, made } = module;
        self.add_half(&format!("{prefix}.weight"), &[*n, *k], &made.weights)?;
        if let Some((scales, outliers)) = &made.quik {
            self.add_half(&format!("{prefix}.{}", simulated::SCALE), &[*n], scales)?;
            let columns: Vec<u8> = outliers.iter().flat_map(|j| (*j as i32).to_le_bytes()).collect();
            let name = format!("{prefix}.{}", simulated::OUTLIERS);
            self.writer.add(&name, DType::I32, &[outliers.len()], &columns)?;
        }
        if let Some(bias) = bias {
            self.add_half(&format!("{prefix}.bias"), &[*n], bias)?;
        }
        Ok(())
    }

    /// The record of what the layers are; `bits_per_weight` of a simulated recipe.
    fn quantization(&self, recipe: &Recipe, bits_per_weight: Option<f64>) -> QuantizationConfig {
        match recipe.simulated {
            Some(method) => QuantizationConfig::of_simulated(Simulated { method, bits_per_weight }),
            None => QuantizationConfig::uniform(self.format, recipe.group_size),
        }
    }

    /// A checkpoint of what is written, to be read before more is.
    pub(crate) fn so_far(&mut self, recipe: &Recipe) -> Result<Checkpoint> {
        let path = self.writer.staging().to_owned();
        let quantization = self.quantization(recipe, None);
        let source = &self.checkpoint.config;
        let value = config_json(source, self.half, Some(&quantization), source.tie_word_embeddings);
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

    /// Writes everything else and gives the directory its name.
    pub(crate) fn finish(self, report: &Report) -> Result<()> {
        let staging = self.writer.staging();
        let quantization = self.quantization(&report.recipe, report.simulated_bits());
        let rotated = report.recipe.transform == crate::Transform::Rotate;
        let config = &self.checkpoint.config;
        let tied = config.tie_word_embeddings && !rotated;
        let value = config_json(config, self.half, Some(&quantization), tied);
        write_json(&staging.join("config.json"), &value)?;
        let value = serde_json::to_value(report).map_err(|e| io(&staging.join(REPORT_FILE), e.into()))?;
        write_json(&staging.join(REPORT_FILE), &value)?;
        // A GGUF file's folder may hold anything.
        let is_directory = self.checkpoint.gguf.is_none();
        let license = if is_directory { model_card::license(&self.checkpoint.path) } else { Vec::new() };
        model_card::write(staging, report, &license, &[])?;
        Ok(self.writer.finish()?)
    }
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

/// The report's file.
pub const REPORT_FILE: &str = "quantization_report.json";

pub(crate) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| io(path, e.into()))?;
    std::fs::write(path, text + "\n").map_err(|e| io(path, e))
}

pub(crate) fn io(path: &Path, source: std::io::Error) -> crate::QuantError {
    FormatError::Io { path: path.to_owned(), source }.into()
}
