//! What a quantization did.

use std::collections::BTreeSet;

use qqq_backend::solve::Scheme;
use qqq_formats::size::bytes;
use qqq_model::names;
use serde::{Deserialize, Serialize};

use crate::{
    ActivationReport, BudgetReport, Head, Precision, Recipe, gate::Quality, rotation::Family,
    transform_choice::TransformReport,
};

/// The linear layers of a block as they are solved, in the order of computation: `qkv` is one layer, or `qk` and `v` are
/// two.
pub(crate) mod modules {
    pub const QKV: &str = "self_attn.qkv_proj";
    pub const QK: &str = "self_attn.qk_proj";
    pub const V: &str = "self_attn.v_proj";
    pub const O: &str = "self_attn.o_proj";
    pub const GATE_UP: &str = "mlp.gate_up_proj";
    pub const DOWN: &str = "mlp.down_proj";
    pub const ALL: [&str; 6] = [QKV, QK, V, O, GATE_UP, DOWN];
}

/// One linear layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerReport {
    /// Name as in the model, such as `model.layers.0.self_attn.qk_proj`.
    pub name: String,
    /// What its weights have become; reports of versions that did not say have nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// Output channels: rows of the weight.
    pub out_features: usize,
    /// Input channels: columns of the weight.
    pub in_features: usize,
    /// [`loss`](Self::loss) of rounding to nearest with the same scales (of the corrected weights, where they are).
    pub loss_nearest: f64,
    /// Squared error of the layer's output on the calibration text, as a share of the output's square; where there was no
    /// text (0 windows), squared error of the weights as a share of the weights' square. The output is that of the float layer
    /// for the same inputs; with [`error_correction`](Recipe::error_correction) it is that of the float model, so that what
    /// the layers before have done counts as well.
    pub loss: f64,
    /// `|W-Q| / |W|`, the Frobenius norm of what rounding has changed, as a share of that of the transformed weights; reports of
    /// versions that did not say have nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_error: Option<f64>,
    /// Damping that was needed.
    pub damping: f64,
    /// Input channels that are always zero.
    pub dead_channels: usize,
    /// Smallest and largest channel scale; zeros where there are none.
    pub scale_range: (f32, f32),
    /// Bits that the method would store, where its arithmetic is simulated: scales, outliers and indices included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bits: Option<f64>,
}

/// One smoothing site.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SmoothReport {
    /// `model.layers.0.qkv`, ...
    pub site: String,
    /// Activation beyond which channels are shrunk; the largest one where smoothing does not pay.
    pub sigma: f32,
    /// Migration strength of SmoothQuant, or the exponent of AWQ's scales; `sigma` is then the largest of the magnitudes that
    /// scales were made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
    /// Channels with a scale above 1.
    pub smoothed_channels: usize,
    /// Relative loss without smoothing.
    pub loss_before: f64,
    /// Relative loss with it.
    pub loss_after: f64,
    /// What was tried: thresholds, rising, and the relative loss with each, where that is finite.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<(f32, f64)>,
}

/// A block that was learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearnReport {
    /// `model.layers.0`, ...
    pub block: String,
    /// Squared error of what leaves the block on all calibration windows, as a share of the float model's square, before
    /// anything was learned.
    pub loss_before: f64,
    /// With what was learned.
    pub loss_after: f64,
    /// The epoch that lost least, from 1, whose result it is; 0: it is as it began.
    pub epoch: usize,
}

/// The matrices of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationReport {
    /// Of the residual stream: its rows have random signs.
    pub stream: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Of each head of v and o.
    pub head: Family,
    /// Width of a head.
    pub head_dim: usize,
}

impl std::fmt::Display for RotationReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "residual stream by a {} matrix of width {}, heads by a {} matrix of width {}",
            self.stream, self.hidden_size, self.head, self.head_dim
        )
    }
}

/// Seconds that the parts of a run took.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Timings {
    /// Smoothing search or rotation.
    pub transform: f64,
    /// Calibration forward passes and Hessians.
    pub calibrate: f64,
    /// Choosing scales, rounding and compensation.
    pub solve: f64,
    /// Making solved layers ready to run.
    #[serde(default)]
    pub ready: f64,
    /// Packing and writing; where a device computes, beside it.
    pub write: f64,
    /// Taking held-out text through both models, and comparing what they predict.
    #[serde(default)]
    pub compare: f64,
    /// Measuring what bits cost, where there is a budget: before the rest.
    #[serde(default)]
    pub sensitivities: f64,
    /// Trials of transforms, where these decide on it: before the rest.
    #[serde(default)]
    pub trials: f64,
    /// Keeping finished blocks for a run that goes on; 0 where none were kept.
    #[serde(default)]
    pub keep: f64,
    /// From the start to the report, everything else included.
    pub total: f64,
}

impl Timings {
    /// Adds what the parts took in an earlier run; the total is left as it is.
    pub(crate) fn add(&mut self, earlier: &Self) {
        self.transform += earlier.transform;
        self.calibrate += earlier.calibrate;
        self.solve += earlier.solve;
        self.ready += earlier.ready;
        self.write += earlier.write;
        self.compare += earlier.compare;
        self.sensitivities += earlier.sensitivities;
        self.trials += earlier.trials;
        self.keep += earlier.keep;
    }
}

/// The whole report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of qqq.
    pub version: String,
    /// Model as named by the user.
    pub model: String,
    /// Class of the model whose text part was quantized, if it has others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_part_of: Option<String>,
    /// Form on disk: `qqq` or `compressed-tensors`.
    pub format: String,
    /// What was done; its transform is one that [was decided on](Recipe::resolved).
    pub recipe: Recipe,
    /// Where the calibration text came from, in words; `none` without.
    pub calibration_data: String,
    /// Tokens of calibration.
    pub calibration_tokens: usize,
    /// Every layer that was solved, in the order of computation: those of the blocks, then the output head (`lm_head`), where it
    /// is quantized.
    pub layers: Vec<LayerReport>,
    /// Layers that stay in 16 bits by a rule of the recipe.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub float_layers: Vec<String>,
    /// What decided on the transform, where that was left to trials.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "transform_trials")]
    pub transform: Option<TransformReport>,
    /// What decided on the rules of the recipe, where there was a budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetReport>,
    /// How far the result is from the float model on held-out text; none where nothing was held out, or nothing could be
    /// compared (a note or a warning said why).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
    /// Every site that was smoothed; empty for other transforms.
    pub smoothing: Vec<SmoothReport>,
    /// Every block that was learned; empty for other transforms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub learning: Vec<LearnReport>,
    /// How far the inputs of layers reach, before and after; empty where nothing was held out. In a file of its own
    /// ([`DETAILS_FILE`](crate::DETAILS_FILE)).
    #[serde(skip)]
    pub activations: Vec<ActivationReport>,
    /// Rotation, where there is one (and the report is not of a version that did not say).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationReport>,
    /// Things the user should know (damping raised, ...).
    pub warnings: Vec<String>,
    /// Seconds that each part took.
    pub timings: Timings,
    /// How the program was called that made it, in its own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<serde_json::Value>,
    /// Bytes of the linear layers of the blocks, of the source and of the result: all their tensors, as they are stored
    /// ([`TensorBytes`](qqq_model::TensorBytes)).
    pub linear_bytes: (u64, u64),
    /// The same of embedding and output head. Zeros in reports of versions that did not say.
    #[serde(default)]
    pub end_bytes: (u64, u64),
    /// The same of all tensors.
    #[serde(default)]
    pub tensor_bytes: (u64, u64),
    /// Memory that was expected to be used at most, in bytes.
    #[serde(default)]
    pub memory_estimate: u64,
    /// Most memory that was resident in the process so far, in bytes, where the system says.
    #[serde(default)]
    pub peak_memory: Option<u64>,
}

impl Report {
    /// Bits for a weight of the linear layers that the method would store, where it is simulated.
    pub fn simulated_bits(&self) -> Option<f64> {
        let weights: f64 = self.layers.iter().map(|l| l.out_features as f64 * l.in_features as f64).sum();
        let bits: Option<f64> = self.layers.iter().map(|layer| layer.stored_bits).sum();
        bits.map(|bits| bits / weights).filter(|bits| bits.is_finite())
    }

    /// What the weights of the blocks have become: each kind with its layers, and in how many of the blocks, where not in all.
    pub fn kinds(&self) -> Vec<String> {
        self.kinds_in(&|kind| kind.to_string())
    }

    /// As [`kinds`](Self::kinds), in the field's terms: `W4A8 g64`.
    pub fn arithmetics(&self) -> Vec<String> {
        self.kinds_in(&|kind| kind.arithmetic(&self.recipe))
    }

    /// What the weights of the blocks have become, as a title has it: `W4A8, groups of 64`, `W4A8 and W8A8`, `16 bits`.
    pub fn becomes(&self) -> String {
        if let Some(method) = &self.recipe.simulated {
            return format!("{}, simulated", method.name());
        }
        let mut kinds: Vec<String> = Vec::new();
        let mut groups: Vec<&str> = Vec::new();
        let all: Vec<String> = self.precisions().iter().map(|(_, p)| p.arithmetic(&self.recipe)).collect();
        for arithmetic in &all {
            let (kind, group) = arithmetic.split_once(" g").unwrap_or((arithmetic, ""));
            if !kinds.iter().any(|known| known == kind) {
                kinds.push(kind.into());
            }
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        match (&kinds[..], &groups[..]) {
            ([], _) => "16 bits".into(),
            ([one], [""]) if one.starts_with("W4") => format!("{one}, per channel"),
            ([one], [""]) => one.clone(),
            ([one], groups) => {
                let named = |g: &&str| if g.is_empty() { "all channels".into() } else { (*g).to_owned() };
                format!("{one}, groups of {}", groups.iter().map(named).collect::<Vec<_>>().join(" and "))
            }
            (kinds, _) => kinds.join(" and "),
        }
    }

    /// The linear layers of the blocks and what each has become.
    fn precisions(&self) -> Vec<(&str, Precision)> {
        let recipe = &self.recipe;
        let of_all = Precision::of(Some(Scheme {
            bits: recipe.bits,
            activations: recipe.activations,
            group_size: recipe.group_size,
        }));
        let layers = self.layers.iter().filter(|layer| layer.name != names::LM_HEAD_MODULE);
        let solved = layers.map(|layer| (layer.name.as_str(), layer.precision.unwrap_or(of_all)));
        let float = self.float_layers.iter().map(|name| (name.as_str(), Precision::Float));
        solved.chain(float).collect()
    }

    fn kinds_in(&self, words: &dyn Fn(Precision) -> String) -> Vec<String> {
        if let Some(method) = &self.recipe.simulated {
            return vec![format!("{} simulated", method.name())];
        }
        let all = self.precisions();
        let mut kinds: Vec<Precision> = Vec::new();
        for (_, kind) in &all {
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
        if let [one] = kinds[..] {
            return vec![words(one)];
        }
        let blocks = all.iter().map(|(name, _)| name.split('.').nth(2)).collect::<BTreeSet<_>>().len();
        let named = |kind: &Precision| {
            let modules = modules::ALL.iter().filter_map(|module| {
                let count = all.iter().filter(|(name, of)| of == kind && name.ends_with(module)).count();
                match count {
                    0 => None,
                    count if count == blocks => Some((*module).to_owned()),
                    count => Some(format!("{module} of {count} blocks")),
                }
            });
            format!("{}: {}", words(*kind), modules.collect::<Vec<_>>().join(", "))
        };
        kinds.iter().map(named).collect()
    }

    /// What became smaller and what did not, for people: names and values.
    pub fn size_rows(&self) -> Vec<(&'static str, String)> {
        let against = |(before, after): (u64, u64)| format!("{}, before {}", bytes(after), bytes(before));
        let mut rows = vec![("linear layers", against(self.linear_bytes))];
        if let (Some(method), Some(bits)) = (&self.recipe.simulated, self.simulated_bits()) {
            let name = method.name();
            rows.push((
                "simulated",
                format!("{name} would store {bits:.2} bits per weight of these; here are 16"),
            ));
        }
        // Reports of versions that did not count them have none.
        if self.tensor_bytes.1 > 0 {
            let what = match self.recipe.head {
                Head::Float => "they stay in 16 bits",
                Head::Int8 => "the embedding stays in 16 bits, the head is int8",
            };
            rows.push(("embedding and head", format!("{}; {what}", against(self.end_bytes))));
            rows.push(("all tensors", against(self.tensor_bytes)));
        }
        rows
    }
}
