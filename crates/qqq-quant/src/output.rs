//! The checkpoint directory that a quantization writes.

use std::path::Path;

use qqq_formats::{
    Checkpoint, CheckpointFormat, FormatError, QuantizationConfig, QuantizedWeight, Scales,
    writer::{CheckpointWriter, Reservation},
};
use qqq_model::{Tokenizer, names};
use serde_json::{Value, json};

use crate::{
    Report, Result,
    float_block::{FloatBlock, head_layout},
    half_type::{HalfType, widen_rows},
    model_card,
    rotation::Rotation,
};

/// Rows of the embedding that are converted at a time.
const ROWS: usize = 1024;

/// Writes tensors as they are made.
pub(crate) struct OutputCheckpoint<'a> {
    checkpoint: &'a Checkpoint,
    writer: CheckpointWriter,
    format: CheckpointFormat,
    half: HalfType,
}

/// The quantized linear layers of a block.
pub(crate) struct QuantizedBlock {
    /// q, k, v stacked.
    pub qkv: QuantizedWeight,
    /// Output projection of attention.
    pub o: QuantizedWeight,
    /// gate, up stacked.
    pub gate_up: QuantizedWeight,
    /// Down projection.
    pub down: QuantizedWeight,
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

    /// Where the files lie until all is done.
    pub(crate) fn staging(&self) -> &Path {
        self.writer.staging()
    }

    fn add_half(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
        let mut bytes = Vec::new();
        self.half.append(name, values, &mut bytes)?;
        Ok(self.writer.add(name, self.half.dtype(), shape, &bytes)?)
    }

    /// Writes embedding, last norm and output head, rotated if there is a rotation (a tied head then gets its own
    /// tensor, because the last norm is folded into it). Returns the stored embedding's bytes.
    pub(crate) fn add_ends(&mut self, rotation: Option<&Rotation>) -> Result<Vec<u8>> {
        let config = &self.checkpoint.config;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let tensors = &self.checkpoint.tensors;
        let mut norm = tensors.f32(names::FINAL_NORM, &[hidden])?;

        let source = tensors.float(names::EMBEDDING, &[vocab, hidden])?;
        let convert = |data: &_, name: &str, half: HalfType, scale: Option<&[f32]>| -> Result<Vec<u8>> {
            let mut bytes = Vec::with_capacity(vocab * hidden * 2);
            for first in (0..vocab).step_by(ROWS) {
                let mut rows = widen_rows(data, hidden, first, ROWS.min(vocab - first));
                if let Some(scale) = scale {
                    for row in rows.chunks_exact_mut(hidden) {
                        row.iter_mut().zip(scale).for_each(|(x, s)| *x *= s);
                    }
                }
                if let Some(rotation) = rotation {
                    rotation.apply_rows(&mut rows);
                }
                half.append(name, &rows, &mut bytes)?;
            }
            Ok(bytes)
        };
        let half = self.half;
        let embedding = convert(&source, names::EMBEDDING, half, None)?;
        self.writer.add(names::EMBEDDING, half.dtype(), &[vocab, hidden], &embedding)?;

        let tied = config.tie_word_embeddings;
        if !tied || rotation.is_some() {
            let own = (!tied).then(|| tensors.float(names::LM_HEAD, &[vocab, hidden])).transpose()?;
            let scale = rotation.map(|_| norm.as_slice());
            let head = convert(own.as_ref().unwrap_or(&source), names::LM_HEAD, half, scale)?;
            self.writer.add(names::LM_HEAD, half.dtype(), &[vocab, hidden], &head)?;
        }
        if rotation.is_some() {
            norm.fill(1.0);
        }
        self.add_half(names::FINAL_NORM, &[hidden], &norm)?;
        Ok(embedding)
    }

    /// Writes a block: norms and biases of `float`, weights of `quantized`.
    pub(crate) fn add_block(
        &mut self,
        index: usize,
        float: &FloatBlock,
        quantized: &QuantizedBlock,
    ) -> Result<()> {
        let name = |module: &str| format!("model.layers.{index}.{module}.weight");
        let hidden = float.input_norm.len();
        self.add_half(&name("input_layernorm"), &[hidden], &float.input_norm)?;
        self.add_half(&name("post_attention_layernorm"), &[hidden], &float.post_norm)?;
        if let Some((q, k)) = &float.qk_norm {
            self.add_half(&name("self_attn.q_norm"), &[q.len()], q)?;
            self.add_half(&name("self_attn.k_norm"), &[k.len()], k)?;
        }
        let heads = head_layout(&self.checkpoint.config);
        let (q, kv, inner) = (heads.q_width(), heads.kv_width(), float.down.k);
        // A joined weight, its bias, and the rows of each layer in it.
        let parts = [
            (&quantized.qkv, &float.qkv.bias, vec![q, kv, kv]),
            (&quantized.o, &float.o.bias, vec![hidden]),
            (&quantized.gate_up, &float.gate_up.bias, vec![inner, inner]),
            (&quantized.down, &float.down.bias, vec![hidden]),
        ];
        let mut modules = names::LINEARS.iter();
        for (weight, bias, rows) in parts {
            let mut first = 0;
            for (&count, module) in rows.iter().zip(&mut modules) {
                let prefix = names::linear(index, module);
                self.writer.add_linear(&prefix, &take_rows(weight, first, count), self.format)?;
                if let Some(bias) = bias {
                    self.add_half(&format!("{prefix}.bias"), &[count], &bias[first..first + count])?;
                }
                first += count;
            }
        }
        Ok(())
    }

    /// Writes everything else and gives the directory its name.
    pub(crate) fn finish(self, report: &Report) -> Result<()> {
        let staging = self.writer.staging();
        write_json(&staging.join("config.json"), &self.config_json(report))?;
        let value = serde_json::to_value(report).map_err(|e| io(&staging.join(REPORT_FILE), e.into()))?;
        write_json(&staging.join(REPORT_FILE), &value)?;
        // A GGUF file's folder may hold anything.
        let is_directory = self.checkpoint.gguf.is_none();
        let license = if is_directory { model_card::license(&self.checkpoint.path) } else { Vec::new() };
        model_card::write(staging, report, &license, &[])?;
        Ok(self.writer.finish()?)
    }

    fn config_json(&self, report: &Report) -> Value {
        let config = &self.checkpoint.config;
        let mut raw = config.raw.clone();
        let quantization = QuantizationConfig::uniform(self.format, report.recipe.group_size);
        raw.insert("quantization_config".into(), quantization.to_value());
        // The code that it names does not come along, and nothing here needs it.
        for code in ["auto_map", "custom_pipelines"] {
            raw.remove(code);
        }
        let rotated = report.recipe.transform == crate::Transform::Rotate;
        raw.insert("tie_word_embeddings".into(), json!(config.tie_word_embeddings && !rotated));
        // Newer configurations say "dtype" where older ones say "torch_dtype".
        let key = if raw.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        raw.insert(key.into(), json!(self.half.config_name()));
        Value::Object(raw)
    }
}

/// The report's file.
pub const REPORT_FILE: &str = "quantization_report.json";

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| io(path, e.into()))?;
    std::fs::write(path, text + "\n").map_err(|e| io(path, e))
}

pub(crate) fn io(path: &Path, source: std::io::Error) -> crate::QuantError {
    FormatError::Io { path: path.to_owned(), source }.into()
}

/// Rows `first..first + count` of a weight: q, k or v of the stacked layer.
pub(crate) fn take_rows(weight: &QuantizedWeight, first: usize, count: usize) -> QuantizedWeight {
    let k = weight.in_features;
    let rows = first..first + count;
    let scales = match &weight.scales {
        Scales::PerChannel(s) => Scales::PerChannel(s[rows.clone()].to_vec()),
        Scales::PerGroup { group_size, channel, group } => {
            let groups = k / group_size;
            Scales::PerGroup {
                group_size: *group_size,
                channel: channel[rows.clone()].to_vec(),
                group: group[first * groups..(first + count) * groups].to_vec(),
            }
        }
    };
    QuantizedWeight {
        out_features: count,
        in_features: k,
        codes: weight.codes[first * k..(first + count) * k].to_vec(),
        scales,
    }
}

/// Bytes of codes and scales.
pub(crate) fn weight_bytes(weight: &QuantizedWeight) -> u64 {
    let scales = match &weight.scales {
        Scales::PerChannel(s) => 4 * s.len(),
        Scales::PerGroup { channel, group, .. } => 4 * channel.len() + 2 * group.len(),
    };
    (weight.codes.len() / 2 + scales) as u64
}
