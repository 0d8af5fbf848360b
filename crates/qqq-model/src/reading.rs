//! Reading weights on all threads. A matrix is cut into pieces of whole rows, and each piece is read, unpacked, checked and
//! put in its place by one thread, so besides the result only the pieces in hand are in memory.

use std::{
    ops::Range,
    sync::{Mutex, OnceLock, PoisonError},
};

use half::{bf16, f16};
use qqq_backend::pool::parallel_chunks_mut;
use qqq_formats::{
    DType, FormatError, LayerReader, LinearWeight, QuantizedWeight, Scales, SimulatedWeight, TensorSource,
    WeightData, WeightKind,
};

use crate::Result;

/// Elements of a piece, about: large enough for a disk, small enough for the caches and for many threads.
const PIECE: usize = 512 << 10;

/// Rows of a piece of a matrix of `width` columns, a multiple of `step`.
fn piece_rows(width: usize, step: usize) -> usize {
    (PIECE / width.max(1)).max(1).next_multiple_of(step)
}

/// Reads a float matrix of `shape`.
///
/// # Errors
/// As [`TensorSource::float`].
pub(crate) fn matrix(tensors: &dyn TensorSource, name: &str, shape: [usize; 2]) -> Result<WeightData> {
    let read = |rows: Range<usize>| tensors.float_rows(name, &shape, rows);
    // No rows, but the checks of type and shape.
    read(0..0)?;
    let dtype = tensors.info(name).map_or(DType::F32, |info| info.dtype);
    let mut out = WeightData::zeros(dtype, shape[0] * shape[1]);
    let all = shape[0] * shape[1];
    match fill_floats(&mut out, 0..all, shape[1], &read) {
        None => Ok(out),
        // What is wrong with the whole is a better message than what is wrong with a piece.
        Some(error) => {
            tensors.float(name, &shape)?;
            Err(error.into())
        }
    }
}

/// Reads a layer.
///
/// # Errors
/// As [`LayerReader::rows`].
pub(crate) fn whole(layer: LayerReader<'_>) -> Result<LinearWeight> {
    // One layer is like itself.
    Ok(joined(&[layer])?.ok_or_else(other_kind)?)
}

/// Reads layers of the same input, joined along their output channels. `None` where some are quantized and others are not,
/// or in another way.
///
/// Floats of different types are widened to f32 (exact), and so is what codes for 16-bit activations stand for.
///
/// # Errors
/// As [`LayerReader::rows`].
pub(crate) fn joined(layers: &[LayerReader<'_>]) -> Result<Option<LinearWeight>> {
    let Some(first) = layers.first() else { return Ok(None) };
    let (k, mut kind) = (first.in_features(), first.kind());
    for layer in &layers[1..] {
        kind = match (kind, layer.kind()) {
            (a, b) if a == b => a,
            (WeightKind::Float(_), WeightKind::Float(_)) => WeightKind::Float(DType::F32),
            (
                WeightKind::WeightOnly { bits: a, group_size: g, .. },
                WeightKind::WeightOnly { bits: b, group_size: h, .. },
            ) if (a, g) == (b, h) => WeightKind::WeightOnly { bits: a, group_size: g, dtype: DType::F32 },
            _ => return Ok(None),
        };
    }
    let n = layers.iter().map(LayerReader::out_features).sum();
    let read = match kind {
        WeightKind::Float(dtype) => {
            let mut data = WeightData::zeros(dtype, n * k);
            let failed = in_turn(layers, |layer, rows| {
                fill_floats(&mut data, rows.start * k..rows.end * k, k, &|rows| match layer.rows(rows)? {
                    LinearWeight::Float { data, .. } => Ok(data),
                    _ => Err(other_kind()),
                })
            });
            failed.map_or(Ok(LinearWeight::Float { out_features: n, in_features: k, data }), Err)
        }
        // A research tool's: whole layers at a time.
        WeightKind::Simulated(_) => {
            let read = |layer: &LayerReader<'_>| match layer.rows(0..layer.out_features())? {
                LinearWeight::Simulated(weight) => Ok(weight),
                _ => Err(other_kind()),
            };
            let parts = layers.iter().map(read).collect::<Result<Vec<_>, FormatError>>()?;
            return Ok(SimulatedWeight::joined(parts).map(LinearWeight::Simulated));
        }
        WeightKind::Quantized { bits, group_size } | WeightKind::WeightOnly { bits, group_size, .. } => {
            let mut codes = vec![0; n * k];
            let mut scales = Vec::new();
            let failed = in_turn(layers, |layer, rows| {
                fill_codes(&mut codes[rows.start * k..rows.end * k], layer, &mut scales)
            });
            failed.map_or_else(
                || {
                    let scales = concat(group_size, scales)?;
                    let weight = QuantizedWeight { bits, out_features: n, in_features: k, codes, scales };
                    Ok(match kind {
                        WeightKind::WeightOnly { dtype, .. } => LinearWeight::WeightOnly { weight, dtype },
                        _ => LinearWeight::Quantized(weight),
                    })
                },
                Err,
            )
        }
    };
    match read {
        Ok(weight) => Ok(Some(weight)),
        Err(error) => {
            // As above.
            for layer in layers {
                layer.rows(0..layer.out_features())?;
            }
            Err(error.into())
        }
    }
}

/// Calls `read` with every layer and its rows in the joined one, until one fails.
fn in_turn<'a>(
    layers: &[LayerReader<'a>],
    mut read: impl FnMut(&LayerReader<'a>, Range<usize>) -> Option<FormatError>,
) -> Option<FormatError> {
    let mut start = 0;
    layers.iter().find_map(|layer| {
        let rows = start..start + layer.out_features();
        start = rows.end;
        read(layer, rows)
    })
}

/// Reads rows of `width` floats into `range` of `out`; the first of them is row 0 of `read`. Returns what went wrong.
fn fill_floats(
    out: &mut WeightData,
    range: Range<usize>,
    width: usize,
    read: &(dyn Fn(Range<usize>) -> Result<WeightData, FormatError> + Sync),
) -> Option<FormatError> {
    let f16s = |data| match data {
        WeightData::F16(values) => Ok(values),
        WeightData::F32(_) | WeightData::BF16(_) => Err(other_kind()),
    };
    let bf16s = |data| match data {
        WeightData::BF16(values) => Ok(values),
        WeightData::F32(_) | WeightData::F16(_) => Err(other_kind()),
    };
    match out {
        WeightData::F32(out) => fill(&mut out[range], width, &|rows| Ok(read(rows)?.into_f32())),
        WeightData::F16(out) => fill::<f16>(&mut out[range], width, &|rows| f16s(read(rows)?)),
        WeightData::BF16(out) => fill::<bf16>(&mut out[range], width, &|rows| bf16s(read(rows)?)),
    }
}

fn fill<T: Copy + Send>(
    out: &mut [T],
    width: usize,
    read: &(dyn Fn(Range<usize>) -> Result<Vec<T>, FormatError> + Sync),
) -> Option<FormatError> {
    let rows = piece_rows(width, 1);
    let failed = Failed::default();
    parallel_chunks_mut(out, rows * width, |piece, out| {
        let first = piece * rows;
        failed.keep(read(first..first + out.len() / width).map(|values| out.copy_from_slice(&values)));
    });
    failed.first()
}

/// Reads a quantized layer: codes into `out`, and the scales of its pieces, in order, behind `scales`.
fn fill_codes(out: &mut [i8], layer: &LayerReader<'_>, scales: &mut Vec<Scales>) -> Option<FormatError> {
    let width = layer.in_features();
    let rows = piece_rows(width, layer.row_step());
    let pieces: Vec<OnceLock<Scales>> =
        (0..layer.out_features().div_ceil(rows)).map(|_| OnceLock::new()).collect();
    let failed = Failed::default();
    parallel_chunks_mut(out, rows * width, |piece, out| {
        let first = piece * rows;
        failed.keep(layer.rows(first..first + out.len() / width).and_then(|weight| match weight {
            LinearWeight::Quantized(weight) | LinearWeight::WeightOnly { weight, .. } => {
                out.copy_from_slice(&weight.codes);
                // Every piece is read once.
                let _ = pieces[piece].set(weight.scales);
                Ok(())
            }
            LinearWeight::Float { .. } | LinearWeight::Simulated(_) => Err(other_kind()),
        }));
    });
    scales.extend(pieces.into_iter().filter_map(OnceLock::into_inner));
    failed.first()
}

/// The scales of a matrix from those of its pieces.
fn concat(size: Option<usize>, pieces: Vec<Scales>) -> Result<Scales, FormatError> {
    let (mut all, mut groups) = (Vec::new(), Vec::new());
    for piece in pieces {
        match (size, piece) {
            (None, Scales::PerChannel(scales)) => all.extend(scales),
            (Some(size), Scales::PerGroup { group_size, channel, group }) if size == group_size => {
                all.extend(channel);
                groups.extend(group);
            }
            _ => return Err(other_kind()),
        }
    }
    Ok(match size {
        Some(group_size) => Scales::PerGroup { group_size, channel: all, group: groups },
        None => Scales::PerChannel(all),
    })
}

/// What went wrong first in pieces that run together.
#[derive(Default)]
struct Failed(Mutex<Option<FormatError>>);

impl Failed {
    fn keep(&self, outcome: Result<(), FormatError>) {
        if let Err(error) = outcome {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }

    fn first(self) -> Option<FormatError> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer whose rows are not what it says they are; no reader here does that.
fn other_kind() -> FormatError {
    FormatError::Layout("pieces of one layer were read in different ways".into())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, path::PathBuf};

    use qqq_formats::{
        Activations, Checkpoint, CheckpointFormat, CodeBits, CodeLayout, LayerScheme, QuantizationConfig,
        writer::CheckpointWriter,
    };

    use super::*;

    /// Wide enough for several pieces, whose last is shorter.
    const K: usize = 4096;
    const N: [usize; 3] = [448, 192, 64];

    fn name(i: usize) -> String {
        format!("model.layers.0.self_attn.{}_proj", ["q", "k", "v"][i])
    }

    fn written(
        dir: &Path,
        scheme: Option<LayerScheme>,
        mut add: impl FnMut(&mut CheckpointWriter, usize),
    ) -> PathBuf {
        let out = dir.join("model");
        let mut writer = CheckpointWriter::create(&out).unwrap();
        let mut config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": K, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 2,
        });
        config["quantization_config"] = match scheme {
            None => serde_json::Value::Null,
            Some(LayerScheme { layout: CodeLayout::Tiles, group_size, .. }) => {
                QuantizationConfig::uniform(CheckpointFormat::Qqq, group_size).to_value()
            }
            Some(scheme) => QuantizationConfig::by_module(scheme, []).unwrap().to_value(),
        };
        fs::write(writer.staging().join("config.json"), config.to_string()).unwrap();
        (0..3).for_each(|i| add(&mut writer, i));
        writer.finish().unwrap();
        out
    }

    fn layers(checkpoint: &Checkpoint) -> Vec<LayerReader<'_>> {
        (0..3).map(|i| checkpoint.layer(&name(i), N[i], K).unwrap()).collect()
    }

    fn quantized(i: usize, scheme: LayerScheme) -> QuantizedWeight {
        let (n, LayerScheme { bits, activations, group_size, .. }) = (N[i], scheme);
        let largest = bits.largest();
        let codes: Vec<i8> = (0..n * K)
            .map(|j| ((j * 7 + j / 13 + i) % (2 * largest as usize + 1)) as u8 as i8)
            .map(|code| code.wrapping_sub(largest))
            .collect();
        let scale = |j: usize| bf16::from_f32(0.001 * (1 + (j + i) % 17) as f32).to_f32();
        let effective = |g: usize| (0..n * (K / g)).map(scale).collect::<Vec<f32>>();
        let scales = match (group_size, activations) {
            (None, _) => Scales::PerChannel((0..n).map(scale).collect()),
            (Some(g), Activations::Int8) => Scales::from_effective(&codes, n, K, g, &effective(g)),
            (Some(g), Activations::Half) => Scales::weight_only(n, g, &effective(g)),
        };
        QuantizedWeight { bits, out_features: n, in_features: K, codes, scales }
    }

    #[test]
    fn quantized_layers_are_those_read_one_by_one() {
        let (qqq, compressed) = (CheckpointFormat::Qqq, CheckpointFormat::CompressedTensors);
        let new = |bits, activations, size| LayerScheme::new(compressed, bits, activations, size).unwrap();
        for scheme in [
            LayerScheme::w4a8(qqq, None),
            LayerScheme::w4a8(qqq, Some(128)),
            LayerScheme::w4a8(compressed, None),
            LayerScheme::w4a8(compressed, Some(64)),
            new(CodeBits::Eight, Activations::Int8, None),
            new(CodeBits::Four, Activations::Half, Some(64)),
            new(CodeBits::Eight, Activations::Half, None),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = written(dir.path(), Some(scheme), |writer, i| {
                writer.add_linear(&name(i), &quantized(i, scheme), scheme).unwrap();
            });
            let checkpoint = Checkpoint::open(&path).unwrap();
            let one_by_one: Vec<QuantizedWeight> = (0..3)
                .map(|i| match checkpoint.linear(&name(i), N[i], K).unwrap() {
                    LinearWeight::Quantized(weight) | LinearWeight::WeightOnly { weight, .. } => weight,
                    LinearWeight::Float { .. } | LinearWeight::Simulated(_) => panic!("no codes"),
                })
                .collect();
            assert!(one_by_one[1] == quantized(1, scheme), "{scheme}");
            let expected = QuantizedWeight::concat(&one_by_one.iter().collect::<Vec<_>>()).unwrap();
            let expected = match scheme.activations {
                Activations::Int8 => LinearWeight::Quantized(expected),
                Activations::Half => LinearWeight::WeightOnly { weight: expected, dtype: DType::BF16 },
            };
            let read = joined(&layers(&checkpoint)).unwrap().unwrap();
            assert!(read == expected, "{scheme}");
        }
    }

    fn float(i: usize, wide: bool) -> WeightData {
        let values = (0..N[i] * K).map(move |j| (j % 251) as f32 - i as f32);
        if wide {
            WeightData::F32(values.collect())
        } else {
            WeightData::F16(values.map(f16::from_f32).collect())
        }
    }

    #[test]
    fn floats_keep_their_type_if_they_have_one() {
        for wide in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            // The last one is of another type, or of the same.
            let of = |i: usize| float(i, wide && i == 2);
            let path = written(dir.path(), None, |writer, i| {
                writer.add_float(&format!("{}.weight", name(i)), &[N[i], K], &of(i)).unwrap();
            });
            let checkpoint = Checkpoint::open(&path).unwrap();
            let Some(LinearWeight::Float { data, .. }) = joined(&layers(&checkpoint)).unwrap() else {
                panic!()
            };
            assert_eq!(matches!(data, WeightData::F32(_)), wide);
            let expected: Vec<f32> = (0..3).flat_map(|i| of(i).into_f32()).collect();
            assert!(data.into_f32() == expected);
            let one = matrix(checkpoint.tensors.as_ref(), &format!("{}.weight", name(0)), [N[0], K]).unwrap();
            assert!(one == of(0));
        }
    }

    #[test]
    fn layers_of_different_kinds_are_not_joined() {
        let dir = tempfile::tempdir().unwrap();
        let scheme = LayerScheme::w4a8(CheckpointFormat::CompressedTensors, None);
        let path = written(dir.path(), Some(scheme), |writer, i| {
            writer.add_linear(&name(i), &quantized(i, scheme), scheme).unwrap();
        });
        let checkpoint = Checkpoint::open(&path).unwrap();
        let mut layers = layers(&checkpoint);
        assert!(joined(&layers).unwrap().is_some());
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), None, |writer, i| {
            writer.add_float(&format!("{}.weight", name(i)), &[N[i], K], &float(i, false)).unwrap();
        });
        let other = Checkpoint::open(&path).unwrap();
        layers[1] = other.layer(&name(1), N[1], K).unwrap();
        assert!(joined(&layers).unwrap().is_none());

        // 4 bits beside 8.
        let dir = tempfile::tempdir().unwrap();
        let eight = LayerScheme { bits: CodeBits::Eight, ..scheme };
        let path = written(dir.path(), Some(eight), |writer, i| {
            writer.add_linear(&name(i), &quantized(i, eight), eight).unwrap();
        });
        let other = Checkpoint::open(&path).unwrap();
        layers[1] = other.layer(&name(1), N[1], K).unwrap();
        assert!(joined(&layers).unwrap().is_none());
    }

    /// Whatever thread meets it: NaN and a file that ends too early are errors of the whole tensor.
    #[test]
    fn errors_in_pieces_are_those_of_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(dir.path(), None, |writer, i| {
            let mut data = float(i, true);
            if let (2, WeightData::F32(values)) = (i, &mut data) {
                values[1000] = f32::NAN;
                values[50 * K + 7] = f32::INFINITY;
            }
            writer.add_float(&format!("{}.weight", name(i)), &[N[i], K], &data).unwrap();
        });
        let checkpoint = Checkpoint::open(&path).unwrap();
        let layers = layers(&checkpoint);
        let message = || joined(&layers).unwrap_err().to_string();
        let whole = checkpoint.linear(&name(2), N[2], K).unwrap_err().to_string();
        assert!(whole.contains("2 NaN") && whole.contains("index 1000"), "{whole}");
        assert_eq!(message(), whole);

        let weights = path.join("model.safetensors");
        fs::OpenOptions::new().write(true).open(&weights).unwrap().set_len(4096).unwrap();
        let error = message();
        assert!(
            error.contains("model.safetensors was changed") && error.contains("to 4096 bytes"),
            "{error}"
        );
    }
}
