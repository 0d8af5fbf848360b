//! Checkpoints of random weights, for measurements at sizes of which no trained model is at hand.
//!
//! Weights of linear layers, embedding and head are normal with the deviation `1 / sqrt(inputs)`, biases with 0.1;
//! norms change nothing. Then every layer of a block gives outputs of about the size of its inputs, the residual stream
//! of `L` blocks grows to about `sqrt(2 L)`, and logits are about 1: far from overflow at any depth. What the model
//! says is noise; speed and memory are those of a trained one.

mod random;
mod shapes;
mod tokenizer;

use std::{path::Path, sync::Mutex, time::Instant};

use half::{bf16, f16};
use qqq_backend::pool::{num_threads, parallel_for};
use qqq_formats::{
    CheckpointFormat, CodeBits, DType, ModelConfig, QuantizationConfig,
    compressed_tensors::row_words,
    writer::{CheckpointWriter, PieceError, Reservation, TensorPieces},
};
use qqq_model::{BlockNorms, Site, TensorBytes, names};
use serde::Serialize;

use self::random::{CODE_STEP, Normal, Stream, Table};
pub use self::shapes::{SHAPES, Shape, shortened};
use crate::{
    OutputFormat, Progress, QuantError, Result,
    half_type::HalfType,
    output::{config_json, write_json},
    preflight,
};

/// Bytes that a thread makes and writes at a time.
const PIECE: usize = 1 << 20;
/// Deviation of biases.
const BIAS: f64 = 0.1;
/// Group scale of float16, so that the int8 weight of the largest code is 112.
const GROUP_SCALE: f64 = 16.0;
/// Beside the tensors: tokenizer, configuration, headers.
const FILES: u64 = 16 << 20;

/// What to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synth {
    /// The same seed gives the same checkpoint; a tensor's weights depend on it and the tensor's name alone.
    pub seed: u64,
    /// W4A8 layers in the blocks, or `None`: all is bfloat16.
    pub quantized: Option<Quantized>,
}

/// How the layers of the blocks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantized {
    /// Form on disk.
    pub format: OutputFormat,
    /// Input channels that share a scale; `None`: all of an output channel.
    pub group_size: Option<usize>,
}

/// What was made.
#[derive(Clone, Debug, Serialize)]
pub struct Synthesized {
    /// Form of the blocks' linear layers: `bfloat16`, `qqq` or `compressed-tensors`.
    pub format: String,
    /// Weights of the model, however they are stored.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Those of the blocks' linear layers.
    pub linear_bytes: u64,
    /// From the first tensor to the complete directory.
    pub seconds: f64,
}

/// A tensor to be made.
struct Tensor {
    name: String,
    dtype: DType,
    shape: Vec<usize>,
    content: Content,
}

/// What a tensor holds.
enum Content {
    /// Normal values of this deviation.
    Normal(f64),
    /// Codes, two a byte. In a layout of whatever order: all codes are drawn alike.
    Codes,
    /// These bytes, over and over.
    Constant(Vec<u8>),
}

/// Writes a checkpoint of random weights for a configuration. Memory does not depend on the model's size.
///
/// # Errors
/// A configuration that is quantized already; shapes that the kernels or the format do not take; a disk that is too
/// small (before work) or full; [`QuantError::Interrupted`].
pub fn synthesize(
    config: &ModelConfig,
    synth: &Synth,
    reservation: &Reservation,
    progress: &mut dyn Progress,
) -> Result<Synthesized> {
    if config.quantization.is_some() {
        return Err(QuantError::Recipe(
            "the configuration is that of a quantized model; name a float one, and ask for quantized layers"
                .into(),
        ));
    }
    let started = Instant::now();
    let scheme = match synth.quantized {
        None => None,
        Some(Quantized { format, group_size }) => {
            preflight::check_shapes(config, group_size)?;
            Some((preflight::choose_format(config, group_size, format)?, group_size))
        }
    };
    let tensors = tensors(config, scheme);
    let total: u64 = tensors.iter().map(Tensor::bytes).sum();
    let tokenizer = tokenizer::files(config)?;
    let mut writer = CheckpointWriter::reserved(reservation)?;
    preflight::check_room(writer.staging(), total + FILES)?;
    for (name, value) in &tokenizer {
        // In one line: most of it is a long list.
        write(&writer.staging().join(name), &value.to_string())?;
    }

    let maker = Maker::new(synth.seed, scheme);
    let mut told = Told { progress, started, total, done: 0 };
    for tensor in &tensors {
        maker.add(&mut writer, tensor, &mut told)?;
    }
    let quantization = scheme.map(|(format, group_size)| QuantizationConfig::uniform(format, group_size));
    let value = config_json(config, HalfType::BF16, quantization.as_ref(), config.tie_word_embeddings);
    write_json(&writer.staging().join("config.json"), &value)?;
    let mut bytes = TensorBytes::default();
    writer.tensors().for_each(|(name, size)| bytes.add(name, size));
    writer.finish()?;
    Ok(Synthesized {
        format: scheme.map_or(HalfType::BF16.config_name(), |(format, _)| format.name()).into(),
        parameters: parameters(config),
        tensor_bytes: bytes.total,
        linear_bytes: bytes.linear,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Weights of a model, however they are stored.
fn parameters(config: &ModelConfig) -> u64 {
    tensors(config, None).iter().map(|t| t.shape.iter().map(|n| *n as u64).product::<u64>()).sum()
}

/// All tensors of a model, those of a block together.
fn tensors(config: &ModelConfig, scheme: Option<(CheckpointFormat, Option<usize>)>) -> Vec<Tensor> {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let table = |name: &str| Tensor::normal(name.into(), &[vocab, hidden], inverse_root(hidden));
    // Of a norm that changes nothing.
    let one = bf16::from_f32(1.0 - config.graph.norm_offset).to_le_bytes().to_vec();
    let norm = |name: String, len: usize| Tensor {
        name,
        dtype: DType::BF16,
        shape: vec![len],
        content: Content::Constant(one.clone()),
    };
    let mut tensors = vec![table(names::EMBEDDING)];
    for index in 0..config.num_layers {
        for (module, len) in BlockNorms::modules(config) {
            tensors.push(norm(format!("{}.weight", names::linear(index, module)), len));
        }
        for site in Site::ALL {
            let k = site.in_features(config);
            let has_bias = match site {
                Site::Qkv => config.graph.qkv_bias,
                Site::O => config.graph.o_bias,
                Site::GateUp | Site::Down => config.graph.mlp_bias,
            };
            for (module, n) in site.modules(config) {
                let prefix = names::linear(index, module);
                match scheme {
                    None => {
                        tensors.push(Tensor::normal(format!("{prefix}.weight"), &[n, k], inverse_root(k)));
                    }
                    Some((format, group_size)) => {
                        tensors.extend(quantized(&prefix, n, k, format, group_size))
                    }
                }
                if has_bias {
                    tensors.push(Tensor::normal(format!("{prefix}.bias"), &[n], BIAS));
                }
            }
        }
    }
    tensors.push(norm(names::FINAL_NORM.into(), hidden));
    if !config.tie_word_embeddings {
        tensors.push(table(names::LM_HEAD));
    }
    tensors
}

fn inverse_root(inputs: usize) -> f64 {
    1.0 / (inputs as f64).sqrt()
}

/// The tensors of a W4A8 layer. All channels and groups have the scale that suits normal weights.
fn quantized(
    prefix: &str,
    n: usize,
    k: usize,
    format: CheckpointFormat,
    group_size: Option<usize>,
) -> Vec<Tensor> {
    let scale = CODE_STEP * inverse_root(k);
    let tensor = |name: &str, dtype, shape: &[usize], content| Tensor {
        name: format!("{prefix}.{name}"),
        dtype,
        shape: shape.to_vec(),
        content,
    };
    let f32s = |x: f64| Content::Constant((x as f32).to_le_bytes().to_vec());
    match (format, group_size) {
        (CheckpointFormat::Qqq, None) => vec![
            tensor("B", DType::I32, &[k / 16, 2 * n], Content::Codes),
            // The kernel sees 16 times the code.
            tensor("s_channel", DType::F32, &[1, n], f32s(scale / 16.0)),
        ],
        (CheckpointFormat::Qqq, Some(g)) => vec![
            tensor("B", DType::I32, &[k / 16, 2 * n], Content::Codes),
            tensor("s_channel", DType::F32, &[1, n], f32s(scale / GROUP_SCALE)),
            tensor(
                "s_group",
                DType::F16,
                &[k / g, n],
                Content::Constant(f16::from_f64(GROUP_SCALE).to_le_bytes().to_vec()),
            ),
        ],
        // No shapes are given a simulated form.
        (CheckpointFormat::CompressedTensors | CheckpointFormat::Simulated, group_size) => vec![
            tensor("weight_packed", DType::I32, &[n, row_words(CodeBits::Four, k)], Content::Codes),
            tensor(
                "weight_scale",
                DType::BF16,
                &[n, group_size.map_or(1, |g| k / g)],
                Content::Constant(bf16::from_f64(scale).to_le_bytes().to_vec()),
            ),
            tensor(
                "weight_shape",
                DType::I64,
                &[2],
                Content::Constant([n as i64, k as i64].into_iter().flat_map(i64::to_le_bytes).collect()),
            ),
        ],
    }
}

impl Tensor {
    fn normal(name: String, shape: &[usize], deviation: f64) -> Self {
        Self { name, dtype: DType::BF16, shape: shape.to_vec(), content: Content::Normal(deviation) }
    }

    fn bytes(&self) -> u64 {
        self.shape.iter().map(|n| *n as u64).product::<u64>() * self.dtype.size().unwrap_or(0) as u64
    }
}

/// Makes the bytes of tensors.
struct Maker {
    seed: u64,
    normal: Normal,
    codes: Table<u8>,
}

impl Maker {
    fn new(seed: u64, scheme: Option<(CheckpointFormat, Option<usize>)>) -> Self {
        let normal = Normal::new();
        let codes = normal.codes(match scheme {
            Some((CheckpointFormat::Qqq, None)) => |code| code as u8,
            _ => |code| (code + 8) as u8,
        });
        Self { seed, normal, codes }
    }

    fn add(&self, writer: &mut CheckpointWriter, tensor: &Tensor, told: &mut Told<'_>) -> Result<()> {
        let Tensor { name, dtype, shape, content } = tensor;
        let stream = Stream::new(self.seed, name);
        let weights = match content {
            Content::Normal(deviation) => Some(self.normal.weights(*deviation)),
            _ => None,
        };
        let make = |first: usize, out: &mut [u8]| match (content, &weights) {
            (Content::Constant(value), _) => out.chunks_mut(value.len()).for_each(|bytes| {
                bytes.copy_from_slice(&value[..bytes.len()]);
            }),
            (_, Some(weights)) => weights.fill(stream, first / 2, bytemuck::cast_slice_mut(out)),
            (_, None) => self.codes.fill(stream, first, out),
        };
        writer.add_pieces(name, *dtype, shape, |pieces| fill(pieces, name, make, told))
    }
}

/// Fills a tensor on all threads; `make` gives the bytes from some place on.
fn fill(
    pieces: &TensorPieces<'_>,
    name: &str,
    make: impl Fn(usize, &mut [u8]) + Sync,
    told: &mut Told<'_>,
) -> Result<(), PieceError<QuantError>> {
    let bytes = pieces.bytes() as usize;
    // Some for each thread, between two looks at who waits.
    let batch = PIECE * 8 * num_threads();
    for start in (0..bytes).step_by(batch) {
        told.at(start as u64, name)?;
        let end = bytes.min(start + batch);
        let failed = Mutex::new(None);
        parallel_for((end - start).div_ceil(PIECE), |i| {
            let first = start + i * PIECE;
            // In elements of two bytes, so that it can be filled with either.
            let mut buffer = vec![0u16; PIECE.min(end - first).div_ceil(2)];
            let out = &mut bytemuck::cast_slice_mut(&mut buffer)[..PIECE.min(end - first)];
            make(first, out);
            if let Err(e) = pieces.write_at(first as u64, out)
                && let Ok(mut failed) = failed.lock()
            {
                *failed = Some(e);
            }
        });
        if let Ok(Some(e)) = failed.into_inner() {
            return Err(e.into());
        }
    }
    told.done += pieces.bytes();
    Ok(())
}

/// What was told of the progress.
struct Told<'a> {
    progress: &'a mut dyn Progress,
    started: Instant,
    total: u64,
    /// Bytes of the tensors that are complete.
    done: u64,
}

impl Told<'_> {
    /// So many bytes of a tensor are written.
    fn at(&mut self, bytes: u64, name: &str) -> Result<(), PieceError<QuantError>> {
        let seconds = self.started.elapsed().as_secs_f64();
        let share = (self.done + bytes) as f64 / self.total.max(1) as f64;
        // The first moments say little.
        let all = if share > 0.0 { seconds / share } else { self.total as f64 / 500e6 };
        match self.progress.step(seconds, all.max(seconds), name) {
            true => Ok(()),
            false => Err(PieceError::Other(QuantError::Interrupted)),
        }
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| crate::output::io(path, e))
}

#[cfg(test)]
mod tests;
