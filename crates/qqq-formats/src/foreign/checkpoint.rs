//! A checkpoint of 4-bit weights, of whatever tool.

use std::path::Path;

use serde_json::{Map, Value};

use super::{
    awq, beside,
    config::{self, Layout, Method},
    declared::Declared,
    gptq, packed,
    recentre::{Changes, recentre},
};
use crate::{
    Checkpoint, CheckpointFormat, CodeBits, FormatError, Int4Weight, LinearWeight, Result, TensorSource,
    WeightData, layer::Source, quantization_config::has_int8_activations, simulated,
};

/// A checkpoint whose linear layers are 4-bit integers, W4A8 or W4A16.
pub struct Int4Checkpoint {
    /// As it lies on disk. W4A8 ones have their configuration's quantization; others look like a float model's, of which the
    /// quantized layers' tensors have other names.
    pub checkpoint: Checkpoint,
    /// What has made it.
    pub method: Method,
    /// `None` for W4A8 ones.
    layout: Option<Layout>,
    /// What its layers must bear out.
    declared: Declared,
}

/// A layer, and what was done to it.
#[derive(Clone, Debug)]
pub struct Int4Layer {
    /// Its weight. Where there is an `order`, column `j` is for input channel `order[j]`.
    pub weight: Int4Weight,
    /// The order of the inputs in which each group's are neighbours, unless they are so from the beginning.
    pub order: Option<Vec<usize>>,
    /// What signed codes without zero points took.
    pub changes: Changes,
}

impl Int4Checkpoint {
    /// Opens a directory.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; a model that is not quantized, or in a way that is not converted.
    pub fn open(path: &Path) -> Result<Self> {
        let mut found = None;
        let checkpoint = Checkpoint::open_as(path, |config| {
            let Some(map) = quantization(path, config)? else { return Ok(()) };
            if is_w4a8(&map) {
                return Ok(());
            }
            if map.get("quant_method").and_then(Value::as_str) == Some(simulated::METHOD) {
                return Err(FormatError::Unsupported(format!(
                    "{}: the arithmetic of {} is simulated with 16-bit weights, of which there are no codes to convert; qqq eval \
                     and qqq generate run it as it is",
                    path.display(),
                    map.get("recipe").and_then(Value::as_str).unwrap_or("a method")
                )));
            }
            let at = |e| match e {
                FormatError::Unsupported(text) => {
                    FormatError::Unsupported(format!("{}: {text}", path.display()))
                }
                other => other,
            };
            let (method, layout) = config::read(&map).map_err(at)?;
            found = Some((method, layout, Declared::read(&map).map_err(at)?));
            // What is left is the configuration of a float model.
            if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
                remove(text);
            }
            remove(config);
            Ok(())
        })?;
        let (method, layout, declared) = match found {
            Some((method, layout, declared)) => (method, Some(layout), declared),
            None if checkpoint.config.quantization.is_some() => (Method::W4a8, None, Declared::default()),
            None => {
                return Err(FormatError::Unsupported(format!(
                    "{}: its weights are not quantized, so there is nothing to convert; quantize it (qqq quantize)",
                    path.display()
                )));
            }
        };
        Ok(Self { checkpoint, method, layout, declared })
    }

    /// Names of the tensors, behind the layer's, that a quantized layer may have besides its bias.
    pub fn layer_tensors(&self) -> &'static [&'static str] {
        match (&self.layout, self.format()) {
            (Some(Layout::Gptq { .. } | Layout::Awq { .. }), _) => &gptq::TENSORS,
            (None, Some(CheckpointFormat::Qqq)) => &["B", "s_channel", "s_group"],
            // Of `int-quantized` the codes' name is that of a float weight.
            _ => &packed::TENSORS,
        }
    }

    /// The form of W4A8 ones.
    fn format(&self) -> Option<CheckpointFormat> {
        self.checkpoint.config.quantization.as_ref().map(|q| q.format)
    }

    /// Whether the linear layer `prefix` is quantized.
    ///
    /// # Errors
    /// It is there in float as well, or its configuration and its tensors do not agree.
    pub fn is_quantized(&self, prefix: &str) -> Result<bool> {
        if let Some(quantization) = &self.checkpoint.config.quantization {
            return Ok(quantization.scheme(prefix)?.is_some());
        }
        let codes = match &self.layout {
            Some(Layout::Packed { .. }) => "weight_packed",
            _ => "qweight",
        };
        let tensors = self.checkpoint.tensors.as_ref();
        let has = |tensor: &str| tensors.info(&format!("{prefix}.{tensor}")).is_some();
        if has(codes) && has("weight") {
            let source = Source { tensors, prefix };
            return Err(
                source.at(&format!("it has both {codes} and a float weight; remove what is not meant"))
            );
        }
        if let Some(Layout::Packed { rules, .. }) = &self.layout
            && rules.scheme(prefix)?.is_some() != has(codes)
        {
            let source = Source { tensors, prefix };
            return Err(source.at(&format!(
                "the configuration and the tensors do not agree on whether it is quantized (it has {codes}: {})",
                has(codes)
            )));
        }
        Ok(has(codes))
    }

    /// Reads the quantized layer `prefix` of `n` output and `k` input channels. `(u - z) * scale` of what is stored are exactly
    /// the weights of what is returned.
    ///
    /// # Errors
    /// Tensors that are missing or of other types or shapes, scales that are not finite; codes too far from their zero points
    /// for signed 4-bit codes; groups of different sizes; act-order without a `g_idx`, zero points of symmetric weights that are
    /// not 8.
    pub fn layer(&self, prefix: &str, n: usize, k: usize) -> Result<Int4Layer> {
        let source = Source { tensors: self.checkpoint.tensors.as_ref(), prefix };
        let location = format!("{}: {prefix}", source.tensors.location());
        let (mut raw, g_idx) = match &self.layout {
            None => return self.w4a8_layer(&source, &location, n, k),
            Some(Layout::Gptq { group_size, less_one }) => {
                let (raw, g_idx) = gptq::read(&source, n, k, *group_size, *less_one)?;
                self.declared.check_zeros(&source, &raw, Some(*less_one))?;
                self.declared.check_order(&source, &raw, g_idx.is_some(), "g_idx")?;
                (raw, g_idx)
            }
            Some(Layout::Awq { group_size }) => {
                let raw = awq::read(&source, n, k, *group_size)?;
                self.declared.check_zeros(&source, &raw, None)?;
                (raw, None)
            }
            Some(Layout::Packed { rules, symmetric }) => {
                let Some(scheme) = rules.scheme(prefix)? else {
                    return Err(source.at("it is not quantized"));
                };
                let (raw, g_idx) = packed::read(&source, n, k, scheme.group_size, *symmetric)?;
                self.declared.check_order(&source, &raw, g_idx.is_some(), "weight_g_idx")?;
                (raw, g_idx)
            }
        };
        let order = match g_idx {
            None => None,
            Some(g_idx) => super::act_order::resolve(&mut raw, &g_idx, &location)?,
        };
        let (weight, changes) = recentre(raw, &location)?;
        Ok(Int4Layer { weight, order, changes })
    }

    /// A layer of a W4A8 checkpoint, with its scales as they are stored, if one a group is stored.
    fn w4a8_layer(&self, source: &Source<'_>, location: &str, n: usize, k: usize) -> Result<Int4Layer> {
        let weight = match self.checkpoint.linear(source.prefix, n, k)? {
            LinearWeight::Quantized(weight) if weight.bits == CodeBits::Four => weight,
            LinearWeight::Float { .. } | LinearWeight::Simulated(_) => {
                return Err(source.at("it is not quantized"));
            }
            LinearWeight::Quantized(_) | LinearWeight::WeightOnly { .. } => {
                return Err(source.at(
                    "converted are checkpoints whose quantized layers all have 4 bits and int8 activations, or all have 4 bits \
                     alone; this one runs as it is",
                ));
            }
        };
        let weight = if self.format() == Some(CheckpointFormat::CompressedTensors) {
            let group_size = weight.scales.group_size();
            let groups = crate::int4::groups(k, group_size);
            let scales: WeightData = source.floats("weight_scale", &[n, groups])?;
            Int4Weight { out_features: n, in_features: k, codes: weight.codes, group_size, scales }
        } else {
            Int4Weight::of_quantized(weight, location)?
        };
        let groups = weight.scales.len() as u64;
        Ok(Int4Layer { weight, order: None, changes: Changes { groups, ..Changes::default() } })
    }

    /// The tensors, under the names that they are stored as.
    pub fn tensors(&self) -> &dyn TensorSource {
        self.checkpoint.tensors.as_ref()
    }
}

/// What a configuration says of its quantization, or a file beside it.
fn quantization(path: &Path, config: &Map<String, Value>) -> Result<Option<Map<String, Value>>> {
    let text = config.get("text_config").and_then(Value::as_object);
    for map in [Some(config), text].into_iter().flatten() {
        for key in KEYS {
            match map.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Object(quantization)) => {
                    let mut quantization = quantization.clone();
                    let method = quantization.get("quant_method").and_then(Value::as_str);
                    // The others' files are those of these.
                    if matches!(method, Some("gptq" | "awq" | "auto-round" | "intel/auto-round")) {
                        beside::complete(path, &mut quantization)?;
                    }
                    return Ok(Some(quantization));
                }
                Some(other) => {
                    return Err(FormatError::Malformed {
                        path: path.into(),
                        reason: format!("{key} is no object: {}", crate::keys::shown(other)),
                    });
                }
            }
        }
    }
    beside::alone(path)
}

/// Where a configuration says how its weights are quantized.
const KEYS: [&str; 2] = ["quantization_config", "compression_config"];

fn remove(config: &mut Map<String, Value>) {
    for key in KEYS {
        config.remove(key);
    }
}

/// Whether a checkpoint is one that is run as it is; what it says otherwise is then told by who reads it.
fn is_w4a8(map: &Map<String, Value>) -> bool {
    match map.get("quant_method").and_then(Value::as_str) {
        Some("qqq") => true,
        Some("compressed-tensors") => {
            let groups = map.get("config_groups").and_then(Value::as_object);
            groups.is_some_and(|groups| groups.iter().any(|(name, group)| has_int8_activations(name, group)))
        }
        _ => false,
    }
}
