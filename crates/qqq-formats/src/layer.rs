//! A linear layer of a checkpoint, read by rows: what lies on disk becomes the neutral form in pieces that do not depend on
//! each other, so that a loader can put all threads to work, and holds no more than the pieces in hand.

use std::{borrow::Cow, fmt, ops::Range};

use half::f16;

use crate::{
    Activations, Checkpoint, CodeBits, CodeLayout, DType, FormatError, LayerScheme, LinearWeight, Result,
    SimulatedWeight, TensorSource, WeightData,
    checkpoint::EMBEDDING,
    compressed_tensors, qqq,
    simulated::{self, Arithmetic},
};

/// What the rows of a [`LayerReader`] are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// Floats, of the [`WeightData`] that this type is read as: F32, F16 or BF16.
    Float(DType),
    /// Codes for int8 activations.
    Quantized {
        /// Bits of a code.
        bits: CodeBits,
        /// Input channels that share a scale; `None`: all of an output channel.
        group_size: Option<usize>,
    },
    /// Codes for 16-bit activations.
    WeightOnly {
        /// Bits of a code.
        bits: CodeBits,
        /// Input channels that share a scale; `None`: all of an output channel.
        group_size: Option<usize>,
        /// Type of the weights that they stand for.
        dtype: DType,
    },
    /// Floats of this type, for arithmetic that is simulated.
    Simulated(DType),
}

/// `W4A8 g64`, `W8A8`, `W4A16`; `float` without regard to its type, and `simulated`.
impl fmt::Display for WeightKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bits, activations, group_size) = match *self {
            Self::Float(_) => return f.write_str("float"),
            Self::Simulated(_) => return f.write_str("simulated"),
            Self::Quantized { bits, group_size } => (bits, Activations::Int8, group_size),
            Self::WeightOnly { bits, group_size, .. } => (bits, Activations::Half, group_size),
        };
        write!(f, "{}", LayerScheme { bits, activations, group_size, layout: CodeLayout::Packed })
    }
}

/// A linear layer whose tensors are known to be there, of the right types and shapes.
pub struct LayerReader<'a> {
    tensors: &'a dyn TensorSource,
    prefix: String,
    out_features: usize,
    in_features: usize,
    stored: Stored,
}

/// What is in memory already, besides what is read with the rows.
enum Stored {
    Float,
    Simulated(Arithmetic),
    /// All of it: rows lie scattered through the tiles.
    Tiles {
        packed: qqq::Packed,
        group_size: Option<usize>,
    },
    Codes {
        scheme: LayerScheme,
        scales: Vec<f32>,
        /// Type of what the codes stand for.
        dtype: DType,
    },
}

impl<'a> LayerReader<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, prefix: &str, n: usize, k: usize) -> Result<Self> {
        let tensors = checkpoint.tensors.as_ref();
        let config = checkpoint.config.quantization.as_ref();
        let scheme = config.map(|q| q.scheme(prefix)).transpose()?.flatten();
        let source = Source { tensors, prefix };
        let stored = match scheme {
            None => {
                // No rows, but the checks of type and shape.
                tensors.float_rows(&source.name("weight"), &[n, k], 0..0)?;
                // The output head and what else is no block's layer is what it is.
                let record = config.and_then(|q| q.simulated()).filter(|_| prefix.contains(".layers."));
                let arithmetic = record.map(|record| simulated::arithmetic(record, &source, n, k));
                arithmetic.transpose()?.flatten().map_or(Stored::Float, Stored::Simulated)
            }
            Some(LayerScheme { group_size, layout: CodeLayout::Tiles, .. }) => {
                Stored::Tiles { packed: source.tiles(n, k, group_size)?, group_size }
            }
            Some(scheme) => {
                scheme.check().map_err(|e| source.at(&e.to_string()))?;
                let scales = source.codes(n, k, scheme)?;
                // That of the model's other weights, or else of what is stored of this one.
                let types = [tensors.info(EMBEDDING).map(|info| info.dtype), source.dtype("weight_scale")];
                let half = types.into_iter().flatten().find(|t| [DType::F16, DType::BF16].contains(t));
                Stored::Codes { scheme, scales, dtype: half.unwrap_or(DType::F32) }
            }
        };
        Ok(Self { tensors, prefix: prefix.into(), out_features: n, in_features: k, stored })
    }

    /// `N`, the output channels.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// `K`, the input channels.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// What its rows are.
    pub fn kind(&self) -> WeightKind {
        match &self.stored {
            Stored::Float => WeightKind::Float(self.float_type()),
            Stored::Simulated(_) => WeightKind::Simulated(self.float_type()),
            Stored::Tiles { group_size, .. } => {
                WeightKind::Quantized { bits: CodeBits::Four, group_size: *group_size }
            }
            Stored::Codes { scheme: LayerScheme { bits, activations, group_size, .. }, dtype, .. } => {
                let (bits, group_size) = (*bits, *group_size);
                match activations {
                    Activations::Int8 => WeightKind::Quantized { bits, group_size },
                    Activations::Half => WeightKind::WeightOnly { bits, group_size, dtype: *dtype },
                }
            }
        }
    }

    fn float_type(&self) -> DType {
        let stored = self.tensors.info(&format!("{}.weight", self.prefix)).map(|info| info.dtype);
        // Blocks of GGUF are read as f32.
        stored.filter(|dtype| [DType::F16, DType::BF16].contains(dtype)).unwrap_or(DType::F32)
    }

    /// Ranges of rows must begin at multiples of this, and end there or at the last row.
    pub fn row_step(&self) -> usize {
        match self.stored {
            Stored::Tiles { .. } => qqq::CHUNK,
            Stored::Float | Stored::Simulated(_) | Stored::Codes { .. } => 1,
        }
    }

    /// Reads output channels `rows`. Several threads may read at a time.
    ///
    /// # Errors
    /// Values that are not finite, scales that take weights beyond int8 (their places are counted from the first of these
    /// rows), rows that do not fit, a file that cannot be read or was changed.
    pub fn rows(&self, rows: Range<usize>) -> Result<LinearWeight> {
        let (n, k) = (rows.len(), self.in_features);
        let location = format!("{}: {}", self.tensors.location(), self.prefix);
        if rows.start > rows.end || rows.end > self.out_features {
            return Err(FormatError::Layout(format!("{location}: there are no rows {rows:?}")));
        }
        let source = Source { tensors: self.tensors, prefix: &self.prefix };
        let weight = match &self.stored {
            Stored::Float | Stored::Simulated(_) => {
                let shape = [self.out_features, k];
                let data = self.tensors.float_rows(&source.name("weight"), &shape, rows.clone())?;
                let Stored::Simulated(arithmetic) = &self.stored else {
                    return Ok(LinearWeight::Float { out_features: n, in_features: k, data });
                };
                let arithmetic = arithmetic.of_rows(rows);
                let weight = SimulatedWeight { out_features: n, in_features: k, data, arithmetic };
                return Ok(LinearWeight::Simulated(weight));
            }
            Stored::Tiles { packed, group_size } => {
                let part = if n == self.out_features {
                    Cow::Borrowed(packed)
                } else {
                    let qqq::Packed { b, s_channel, s_group } = packed;
                    let part = qqq::Packed::of_rows(b, s_channel, s_group, self.out_features, rows.clone());
                    Cow::Owned(part.ok_or_else(|| {
                        FormatError::Layout(format!("{location}: rows {rows:?} are no whole tiles"))
                    })?)
                };
                qqq::unpack(&part, n, k, *group_size)
                    .map_err(|e| FormatError::Layout(format!("{location}: {e}")))?
            }
            Stored::Codes { scheme, scales, dtype } => {
                let LayerScheme { bits, activations, group_size, layout } = *scheme;
                let per_row = group_size.map_or(1, |g| k / g);
                let scales = scales[rows.start * per_row..rows.end * per_row].to_vec();
                let kind = (bits, activations, group_size);
                let weight = if layout == CodeLayout::Bytes {
                    let mut codes = vec![0; n * k];
                    let bytes = bytemuck::cast_slice_mut(&mut codes);
                    self.tensors.read_into(&source.name("weight"), rows.start * k, bytes)?;
                    compressed_tensors::from_codes(&location, codes, scales, (n, k), kind)?
                } else {
                    let width = compressed_tensors::row_words(bits, k);
                    let words = source.i32s(&source.name("weight_packed"), rows.start * width, n * width)?;
                    compressed_tensors::unpack(&location, &words, scales, (n, k), kind)?
                };
                if activations == Activations::Half {
                    return Ok(LinearWeight::WeightOnly { weight, dtype: *dtype });
                }
                weight
            }
        };
        Ok(LinearWeight::Quantized(weight))
    }
}

/// The tensors of one layer.
pub(crate) struct Source<'a> {
    pub tensors: &'a dyn TensorSource,
    /// The layer, as the checkpoint names it.
    pub prefix: &'a str,
}

impl Source<'_> {
    /// The whole name of one of them.
    pub fn name(&self, tensor: &str) -> String {
        format!("{}.{tensor}", self.prefix)
    }

    /// An error of this layer.
    pub fn at(&self, reason: &str) -> FormatError {
        FormatError::Layout(format!("{}: {}: {reason}", self.tensors.location(), self.prefix))
    }

    /// All of a layer in QQQ's layout.
    fn tiles(&self, n: usize, k: usize, group_size: Option<usize>) -> Result<qqq::Packed> {
        qqq::fits(n, k, group_size).map_err(|reason| self.at(&reason))?;
        let s_group = self.name("s_group");
        let s_group = match group_size {
            Some(g) => self.f16s(&s_group, &[k / g, n])?,
            None => match self.tensors.info(&s_group) {
                Some(info) if info.bytes > 0 => {
                    return Err(self.at("it has group scales, but config.json says group_size -1"));
                }
                _ => Vec::new(),
            },
        };
        let b = self.name("B");
        self.check(&b, DType::I32, &[k / 16, 2 * n])?;
        Ok(qqq::Packed {
            b: self.i32s(&b, 0, k / 16 * 2 * n)?,
            s_channel: self.tensors.f32(&self.name("s_channel"), &[1, n])?,
            s_group,
        })
    }

    /// Checks a layer in one of compressed-tensors' layouts, and reads its scales.
    fn codes(&self, n: usize, k: usize, scheme: LayerScheme) -> Result<Vec<f32>> {
        let LayerScheme { bits, group_size, layout, .. } = scheme;
        if self.tensors.info(&self.name("weight_g_idx")).is_some() {
            return Err(self.at(
                "its groups follow the order of activations (weight_g_idx), which is not supported; of 4-bit weights alone \
                 (W4A16), qqq convert puts them in order where the model allows it",
            ));
        }
        let zero_point = self.name("weight_zero_point");
        if self.tensors.info(&zero_point).is_some()
            && self.tensors.bytes(&zero_point)?.iter().any(|b| *b != 0)
        {
            return Err(
                self.at("it has zero points (weight_zero_point), but config.json says that it is symmetric")
            );
        }
        self.check_shape(n, k)?;
        if let Some(g) = group_size.filter(|g| *g == 0 || !k.is_multiple_of(*g)) {
            return Err(self.at(&format!("{k} input channels are not a multiple of the group size {g}")));
        }
        let groups = group_size.map_or(1, |g| k / g);
        match layout {
            CodeLayout::Bytes => self.check(&self.name("weight"), DType::I8, &[n, k])?,
            _ => {
                let words = compressed_tensors::row_words(bits, k);
                self.check(&self.name("weight_packed"), DType::I32, &[n, words])?;
            }
        }
        self.tensors.f32(&self.name("weight_scale"), &[n, groups])
    }

    /// Checks what compressed-tensors stores as the shape of a packed weight, if that is there.
    pub fn check_shape(&self, n: usize, k: usize) -> Result<()> {
        let name = self.name("weight_shape");
        if self.tensors.info(&name).is_none() {
            return Ok(());
        }
        let stored = self.stored_integers(&name, 2)?;
        if stored.iter().map(|d| usize::try_from(*d).ok()).ne([Some(n), Some(k)]) {
            return Err(
                self.at(&format!("weight_shape says {stored:?}, the model's configuration [{n}, {k}]"))
            );
        }
        Ok(())
    }

    /// The type of a tensor, if it is there.
    pub fn dtype(&self, tensor: &str) -> Option<DType> {
        self.tensors.info(&self.name(tensor)).map(|info| info.dtype)
    }

    /// The error of a tensor that is not there.
    pub fn missing(&self, tensor: &str) -> FormatError {
        FormatError::MissingTensor { location: self.tensors.location(), name: self.name(tensor) }
    }

    /// All words of an I32 tensor of this shape.
    pub fn words(&self, tensor: &str, shape: &[usize]) -> Result<Vec<i32>> {
        let name = self.name(tensor);
        self.check(&name, DType::I32, shape)?;
        self.i32s(&name, 0, shape.iter().product())
    }

    /// A float tensor of this shape, in its type.
    pub fn floats(&self, tensor: &str, shape: &[usize]) -> Result<WeightData> {
        self.tensors.float(&self.name(tensor), shape)
    }

    /// `count` integers of 32 or 64 bits, if they are there.
    pub fn integers(&self, tensor: &str, count: usize) -> Result<Option<Vec<i64>>> {
        let name = self.name(tensor);
        self.tensors.info(&name).map(|_| self.stored_integers(&name, count)).transpose()
    }

    fn stored_integers(&self, name: &str, count: usize) -> Result<Vec<i64>> {
        if self.tensors.info(name).is_some_and(|info| info.dtype == DType::I32) {
            self.check(name, DType::I32, &[count])?;
            return Ok(self.i32s(name, 0, count)?.into_iter().map(i64::from).collect());
        }
        self.check(name, DType::I64, &[count])?;
        let stored = self.tensors.bytes(name)?;
        Ok(stored.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect())
    }

    /// Checks the type and shape of a tensor.
    pub fn check(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<()> {
        let location = self.tensors.location();
        let Some(info) = self.tensors.info(name) else {
            return Err(FormatError::MissingTensor { location, name: name.into() });
        };
        if info.dtype != dtype {
            return Err(FormatError::Type {
                location,
                name: name.into(),
                found: info.dtype.name().into(),
                expected: dtype.name().into(),
            });
        }
        if info.shape != shape {
            return Err(FormatError::Shape {
                location,
                name: name.into(),
                found: info.shape,
                expected: shape.into(),
            });
        }
        Ok(())
    }

    /// `count` words of an I32 tensor.
    fn i32s(&self, name: &str, first: usize, count: usize) -> Result<Vec<i32>> {
        let mut words = vec![0; count];
        self.tensors.read_into(name, 4 * first, bytemuck::cast_slice_mut(&mut words))?;
        if cfg!(target_endian = "big") {
            words.iter_mut().for_each(|word: &mut i32| *word = i32::from_le(*word));
        }
        Ok(words)
    }

    fn f16s(&self, name: &str, shape: &[usize]) -> Result<Vec<f16>> {
        match self.tensors.float(name, shape)? {
            WeightData::F16(values) => Ok(values),
            WeightData::F32(_) | WeightData::BF16(_) => Err(FormatError::Type {
                location: self.tensors.location(),
                name: name.into(),
                found: self.tensors.info(name).map_or("another type", |i| i.dtype.name()).into(),
                expected: "F16".into(),
            }),
        }
    }
}
