//! A model on disk.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use half::f16;

use crate::{
    CodeLayout, DType, FormatError, LayerScheme, LinearWeight, ModelConfig, QuantizedWeight, Result,
    TensorSource, WeightData, compressed_tensors,
    gguf::GgufFile,
    qqq,
    renamed::Renamed,
    safetensors::{self, Safetensors},
};

/// Embedding table.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// Output head.
const LM_HEAD: &str = "lm_head.weight";

/// A model as it lies on disk: configuration and tensors.
pub struct Checkpoint {
    /// Directory or GGUF file.
    pub path: PathBuf,
    /// Configuration.
    pub config: ModelConfig,
    /// Tensors under their Hugging Face names.
    pub tensors: Box<dyn TensorSource>,
    /// Metadata of the GGUF file, if it is one: tokenizer and chat template come from there.
    pub gguf: Option<Arc<GgufFile>>,
}

impl Checkpoint {
    /// Opens a Hugging Face directory or a `.gguf` file.
    ///
    /// # Errors
    /// A path that does not exist or is neither of the two; whatever [`ModelConfig::from_json`],
    /// [`Safetensors::open`] and [`GgufFile::open`] refuse.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |source| FormatError::Io { path: path.into(), source };
        let kind = std::fs::metadata(path).map_err(io)?;
        if !kind.is_dir() {
            return Self::open_file(path);
        }
        let config_path = path.join("config.json");
        if !config_path.exists() {
            let ggufs = safetensors::files_with_extension(path, "gguf")?;
            return Err(FormatError::Malformed {
                path: path.into(),
                reason: match ggufs.first() {
                    Some(file) => format!(
                        "the directory has no config.json; name the GGUF file itself: {}",
                        file.display()
                    ),
                    None => "the directory has no config.json, so it is not a Hugging Face model".into(),
                },
            });
        }
        let config = ModelConfig::from_json(&config_path)?;
        if safetensors::files_with_extension(path, "safetensors")?.is_empty()
            && !path.join(safetensors::INDEX_FILE).exists()
        {
            let pickled = !safetensors::files_with_extension(path, "bin")?.is_empty()
                || !safetensors::files_with_extension(path, "pth")?.is_empty();
            if pickled {
                return Err(FormatError::Unsupported(format!(
                    "{}: the weights are PyTorch pickle files (.bin or .pth), which can run code when they are read; \
                     convert them to safetensors, for instance by loading the model with transformers and calling \
                     save_pretrained(..., safe_serialization=True)",
                    path.display()
                )));
            }
        }
        let tensors = tied(&config, Box::new(Safetensors::open(path)?));
        Ok(Self { path: path.into(), config, tensors, gguf: None })
    }

    fn open_file(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "safetensors") {
            return Err(FormatError::Unsupported(format!(
                "{}: a safetensors file alone does not say what model it is; name its directory, with config.json",
                path.display()
            )));
        }
        let file = Arc::new(GgufFile::open(path)?);
        Ok(Self {
            path: path.into(),
            config: file.config()?,
            tensors: Box::new(Arc::clone(&file)),
            gguf: Some(file),
        })
    }

    /// Reads the linear layer `prefix` (`model.layers.0.mlp.down_proj`) of shape
    /// `out_features x in_features`, float or quantized as the configuration says.
    ///
    /// # Errors
    /// Missing tensors, other shapes or types, values that are not finite, scales that take weights beyond
    /// int8.
    pub fn linear(&self, prefix: &str, out_features: usize, in_features: usize) -> Result<LinearWeight> {
        let (n, k) = (out_features, in_features);
        let config = self.config.quantization.as_ref();
        let Some(scheme) = config.map(|q| q.scheme(prefix)).transpose()?.flatten() else {
            let data = self.tensors.float(&format!("{prefix}.weight"), &[n, k])?;
            return Ok(LinearWeight::Float { out_features, in_features, data });
        };
        let weight = match scheme.layout {
            CodeLayout::Tiles => self.qqq_linear(prefix, n, k, scheme.group_size)?,
            CodeLayout::Packed | CodeLayout::Bytes => self.compressed_linear(prefix, n, k, scheme)?,
        };
        Ok(LinearWeight::Quantized(weight))
    }

    /// The bias of linear layer `prefix`, if there is one, widened to f32.
    ///
    /// # Errors
    /// Another shape than `[out_features]`, an integer type, values that are not finite.
    pub fn bias(&self, prefix: &str, out_features: usize) -> Result<Option<Vec<f32>>> {
        let name = format!("{prefix}.bias");
        if self.tensors.info(&name).is_none() {
            return Ok(None);
        }
        self.tensors.f32(&name, &[out_features]).map(Some)
    }

    fn qqq_linear(
        &self,
        prefix: &str,
        n: usize,
        k: usize,
        group_size: Option<usize>,
    ) -> Result<QuantizedWeight> {
        let at =
            |reason: String| FormatError::Layout(format!("{}: {prefix}: {reason}", self.tensors.location()));
        qqq::fits(n, k, group_size).map_err(at)?;
        let s_group = format!("{prefix}.s_group");
        let s_group = match group_size {
            Some(g) => self.f16s(&s_group, &[k / g, n])?,
            None => match self.tensors.info(&s_group) {
                Some(info) if info.bytes > 0 => {
                    return Err(at("it has group scales, but config.json says group_size -1".into()));
                }
                _ => Vec::new(),
            },
        };
        let packed = qqq::Packed {
            b: self.i32s(&format!("{prefix}.B"), &[k / 16, 2 * n])?,
            s_channel: self.tensors.f32(&format!("{prefix}.s_channel"), &[1, n])?,
            s_group,
        };
        qqq::unpack(&packed, n, k, group_size).map_err(|e| at(e.to_string()))
    }

    fn compressed_linear(
        &self,
        prefix: &str,
        n: usize,
        k: usize,
        LayerScheme { group_size, layout }: LayerScheme,
    ) -> Result<QuantizedWeight> {
        let location = self.tensors.location();
        let at = |reason: &str| FormatError::Layout(format!("{location}: {prefix}: {reason}"));
        if self.tensors.info(&format!("{prefix}.weight_g_idx")).is_some() {
            return Err(at(
                "its groups follow the order of activations (weight_g_idx), which is not supported",
            ));
        }
        let zero_point = format!("{prefix}.weight_zero_point");
        if self.tensors.info(&zero_point).is_some()
            && self.tensors.bytes(&zero_point)?.iter().any(|b| *b != 0)
        {
            return Err(at(
                "it has zero points (weight_zero_point), but config.json says that it is symmetric",
            ));
        }
        let shape_name = format!("{prefix}.weight_shape");
        if self.tensors.info(&shape_name).is_some() {
            let stored = self.stored(&shape_name, DType::I64, &[2])?;
            let stored: Vec<i64> = stored.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
            if stored.iter().map(|d| usize::try_from(*d).ok()).ne([Some(n), Some(k)]) {
                return Err(at(&format!(
                    "weight_shape says {stored:?}, the model's configuration [{n}, {k}]"
                )));
            }
        }
        if let Some(g) = group_size.filter(|g| !k.is_multiple_of(*g)) {
            return Err(at(&format!("{k} input channels are not a multiple of the group size {g}")));
        }
        let groups = group_size.map_or(1, |g| k / g);
        let name = format!("{location}: {prefix}");
        if layout == CodeLayout::Bytes {
            let bytes = self.stored(&format!("{prefix}.weight"), DType::I8, &[n, k])?;
            let codes = bytes.iter().map(|b| b.cast_signed()).collect();
            let scales = self.tensors.f32(&format!("{prefix}.weight_scale"), &[n, groups])?;
            return compressed_tensors::from_codes(&name, codes, scales, n, k, group_size);
        }
        let words = self.i32s(&format!("{prefix}.weight_packed"), &[n, compressed_tensors::row_words(k)])?;
        let scales = self.tensors.f32(&format!("{prefix}.weight_scale"), &[n, groups])?;
        compressed_tensors::unpack(&name, &words, scales, n, k, group_size)
    }

    /// The bytes of a tensor that must have this type and shape.
    fn stored(&self, name: &str, dtype: DType, shape: &[usize]) -> Result<std::borrow::Cow<'_, [u8]>> {
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
        self.tensors.bytes(name)
    }

    fn i32s(&self, name: &str, shape: &[usize]) -> Result<Vec<i32>> {
        let bytes = self.stored(name, DType::I32, shape)?;
        Ok(bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
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

/// A tied model may be saved with either of the two tensors that have the same values: one with its head alone goes by the
/// embedding's name.
fn tied(config: &ModelConfig, source: Box<dyn TensorSource>) -> Box<dyn TensorSource> {
    let head_alone = source.info(EMBEDDING).is_none() && source.info(LM_HEAD).is_some();
    if config.tie_word_embeddings && head_alone {
        return Box::new(Renamed { source, stored: LM_HEAD, name: EMBEDDING });
    }
    source
}
