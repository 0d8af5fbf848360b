//! A checkpoint of 4-bit weights as the float model that it stands for: what its W4A8 form is compared with.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use qqq_formats::{
    Checkpoint, DType, FormatError, Int4Checkpoint, ModelConfig, TensorInfo, TensorSource, WeightData,
};
use qqq_model::{Site, names};

use crate::Result;

/// The type of the float weights.
const FLOAT_FORM: DType = DType::F32;

/// The model whose linear layers have the float weights `code * scale`, in float32, as they are asked for. Its layers run with
/// float activations; everything else is as it was.
///
/// # Errors
/// Layers of which the source cannot say whether they are quantized.
pub fn float_form(source: Int4Checkpoint) -> Result<Checkpoint> {
    let config = source.checkpoint.config.clone();
    let mut layers = BTreeMap::new();
    for block in 0..config.num_layers {
        for site in Site::ALL {
            for (module, n) in site.modules(&config) {
                let prefix = names::linear(block, module);
                if source.is_quantized(&prefix)? {
                    let layer = Layer { prefix: prefix.clone(), n, k: site.in_features(&config) };
                    layers.insert(format!("{prefix}.weight"), layer);
                }
            }
        }
    }
    let mut raw = config.raw.clone();
    raw.remove("quantization_config");
    raw.remove("compression_config");
    let path = source.checkpoint.path.clone();
    let inputs = Arc::clone(&source.checkpoint.inputs);
    let float = ModelConfig { quantization: None, raw, ..config };
    let tensors = Box::new(FloatForm { source, layers, last: Mutex::default() });
    Ok(Checkpoint { path, config: float, tensors, gguf: None, inputs })
}

/// A quantized layer of the source.
struct Layer {
    prefix: String,
    n: usize,
    k: usize,
}

/// Its tensors.
struct FloatForm {
    source: Int4Checkpoint,
    /// By the names of their float weights.
    layers: BTreeMap<String, Layer>,
    /// The layer that was asked for last, in pieces by several threads: `N x K` weights by name.
    last: Mutex<Option<(String, Arc<Vec<f32>>)>>,
}

impl FloatForm {
    /// All weights of a layer.
    fn weights(&self, name: &str, layer: &Layer) -> Result<Arc<Vec<f32>>, FormatError> {
        // Whoever comes while it is made waits for it.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, weights)) = last.as_ref()
            && made == name
        {
            return Ok(Arc::clone(weights));
        }
        let read = self.source.layer(&layer.prefix, layer.n, layer.k)?;
        let mut weights = read.weight.dequantize();
        if let Some(order) = read.order {
            // Back to the channels' own order.
            let mut row_before = vec![0.0; layer.k];
            for row in weights.chunks_exact_mut(layer.k) {
                row_before.copy_from_slice(row);
                order.iter().zip(&row_before).for_each(|(channel, weight)| row[*channel] = *weight);
            }
        }
        let weights = Arc::new(weights);
        *last = Some((name.to_owned(), Arc::clone(&weights)));
        Ok(weights)
    }

    /// Whether a tensor is one of a quantized layer, which has none in float.
    fn is_hidden(&self, name: &str) -> bool {
        let Some((prefix, tensor)) = name.rsplit_once('.') else { return false };
        self.source.layer_tensors().contains(&tensor) && self.layers.contains_key(&format!("{prefix}.weight"))
    }
}

impl TensorSource for FloatForm {
    fn names(&self) -> Vec<String> {
        let mut names = self.source.tensors().names();
        names.retain(|name| !self.is_hidden(name) && !self.layers.contains_key(name));
        names.extend(self.layers.keys().cloned());
        names.sort();
        names
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        match self.layers.get(name) {
            Some(Layer { n, k, .. }) => {
                let bytes = (n * k * FLOAT_FORM.size().unwrap_or(0)) as u64;
                Some(TensorInfo { dtype: FLOAT_FORM, shape: vec![*n, *k], bytes })
            }
            None if self.is_hidden(name) => None,
            None => self.source.tensors().info(name),
        }
    }

    fn bytes_at(&self, name: &str, range: Range<usize>) -> Result<Cow<'_, [u8]>, FormatError> {
        let Some(layer) = self.layers.get(name) else { return self.source.tensors().bytes_at(name, range) };
        let weights = self.weights(name, layer)?;
        let bytes: Vec<u8> = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let part = bytes.get(range.clone());
        part.map(|part| Cow::Owned(part.to_vec())).ok_or_else(|| {
            FormatError::Layout(format!("{}: tensor {name:?} has no part {range:?}", self.location()))
        })
    }

    fn float_rows(&self, name: &str, shape: &[usize], rows: Range<usize>) -> Result<WeightData, FormatError> {
        let Some(layer) = self.layers.get(name) else {
            return self.source.tensors().float_rows(name, shape, rows);
        };
        if shape != [layer.n, layer.k] || rows.start > rows.end || rows.end > layer.n {
            return Err(FormatError::Shape {
                location: self.location(),
                name: name.into(),
                found: vec![layer.n, layer.k],
                expected: shape.into(),
            });
        }
        if rows.is_empty() {
            return Ok(WeightData::F32(Vec::new()));
        }
        Ok(WeightData::F32(self.weights(name, layer)?[rows.start * layer.k..rows.end * layer.k].to_vec()))
    }

    fn location(&self) -> String {
        self.source.tensors().location()
    }
}
