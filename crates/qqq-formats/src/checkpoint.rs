//! A model on disk.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};

use crate::{
    FormatError, Inputs, LayerReader, LinearWeight, ModelConfig, Result, TensorSource,
    config::{parse_json, wrapped},
    gguf::GgufFile,
    renamed::Renamed,
    safetensors::{self, Safetensors},
};

/// Embedding table.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// Output head.
const LM_HEAD: &str = "lm_head.weight";

/// A model as it lies on disk: configuration and tensors.
pub struct Checkpoint {
    /// Directory or GGUF file.
    pub path: PathBuf,
    /// What config.json (or a GGUF file's metadata) says of shapes and graph.
    pub config: ModelConfig,
    /// Tensors under their Hugging Face names; of a model that also sees or hears, those of its text part.
    pub tensors: Box<dyn TensorSource>,
    /// Metadata of the GGUF file, if it is one: tokenizer and chat template come from there.
    pub gguf: Option<Arc<GgufFile>>,
    /// The files that were read so far; what else belongs to the model is read by way of it.
    pub inputs: Arc<Inputs>,
}

impl Checkpoint {
    /// Opens a Hugging Face directory or a `.gguf` file.
    ///
    /// # Errors
    /// A path that does not exist or is neither of the two; whatever [`ModelConfig::from_json`],
    /// [`Safetensors::open`] and [`GgufFile::open`] refuse.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, |_| Ok(()))
    }

    /// As [`Checkpoint::open`], where `prepare` changes what config.json says before it is looked at.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; those of `prepare`.
    pub(crate) fn open_as(
        path: &Path,
        prepare: impl FnOnce(&mut Map<String, Value>) -> Result<()>,
    ) -> Result<Self> {
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
        let inputs = Arc::new(Inputs::default());
        let mut value = parse_json(&config_path, &inputs.read(&config_path)?)?;
        if let Value::Object(map) = &mut value {
            prepare(map)?;
        }
        let mut config = ModelConfig::from_value(&config_path, value)?;
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
        let stored: Box<dyn TensorSource> = Box::new(Safetensors::open_with(path, &inputs)?);
        let text = text_part(&mut config, stored)?;
        let tensors = tied(&config, text);
        Ok(Self { path: path.into(), config, tensors, gguf: None, inputs })
    }

    fn open_file(path: &Path) -> Result<Self> {
        if path.extension().is_some_and(|e| e == "safetensors") {
            return Err(FormatError::Unsupported(format!(
                "{}: a safetensors file alone does not say what model it is; name its directory, with config.json",
                path.display()
            )));
        }
        let inputs = Arc::new(Inputs::default());
        let file = Arc::new(GgufFile::open_with(path, &inputs)?);
        Ok(Self {
            path: path.into(),
            config: file.config()?,
            tensors: Box::new(Arc::clone(&file)),
            gguf: Some(file),
            inputs,
        })
    }

    /// Reads the linear layer `prefix` (`model.layers.0.mlp.down_proj`) of shape
    /// `out_features x in_features`, float or quantized as the configuration says.
    ///
    /// # Errors
    /// Missing tensors, other shapes or types, values that are not finite, scales that take weights beyond
    /// int8.
    pub fn linear(&self, prefix: &str, out_features: usize, in_features: usize) -> Result<LinearWeight> {
        self.layer(prefix, out_features, in_features)?.rows(0..out_features)
    }

    /// The linear layer `prefix`, to be read by rows, by several threads at a time.
    ///
    /// # Errors
    /// Missing tensors, other shapes or types.
    pub fn layer(&self, prefix: &str, out_features: usize, in_features: usize) -> Result<LayerReader<'_>> {
        LayerReader::new(self, prefix, out_features, in_features)
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
}

/// The tensors of a model's text part, where it has others; whether embedding and head are one is what these show, if the
/// configuration leaves it open.
fn text_part(config: &mut ModelConfig, source: Box<dyn TensorSource>) -> Result<Box<dyn TensorSource>> {
    if config.text_part_of.is_none() {
        return Ok(source);
    }
    let stored = wrapped::text_tensors(&source.location(), source.names())?;
    let key = "tie_word_embeddings";
    if !config.raw.contains_key(key) {
        config.tie_word_embeddings = !stored.contains_key(LM_HEAD);
        config.raw.insert(key.into(), config.tie_word_embeddings.into());
    }
    Ok(Box::new(Renamed { source, stored }))
}

/// A tied model may be saved with either of the two tensors that have the same values: one with its head alone goes by the
/// embedding's name.
fn tied(config: &ModelConfig, source: Box<dyn TensorSource>) -> Box<dyn TensorSource> {
    let head_alone = source.info(EMBEDDING).is_none() && source.info(LM_HEAD).is_some();
    if config.tie_word_embeddings && head_alone {
        let shown = |name: String| if name == LM_HEAD { EMBEDDING.into() } else { name };
        let stored = source.names().into_iter().map(|name| (shown(name.clone()), name)).collect();
        return Box::new(Renamed { source, stored });
    }
    source
}
