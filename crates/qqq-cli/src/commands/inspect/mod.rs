//! `qqq inspect`.

mod layers;
mod size;

use qqq_formats::{Checkpoint, QuantizationConfig, SimulatedMethod, config::RopeScaling};
use qqq_model::names;
use qqq_quant::REPORT_FILE;
use serde::Serialize;

use crate::{
    console::Console,
    format,
    model::{self, HubArgs},
    progress::Progress,
    table::{pairs, table},
};
pub use layers::{Module, modules};
pub use size::Size;

const AFTER_HELP: &str = "\
Examples:
  qqq inspect qwen-w4a8
  qqq inspect model.gguf --summary
  qqq inspect Qwen/Qwen2.5-0.5B-Instruct --json

Only headers are read, and the scales of quantized layers. \"scales\" are the smallest and largest scale of the \
weight codes; for the qqq format with groups, of the int8 weights that the kernel multiplies.";

/// What a checkpoint holds, layer by layer
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct InspectArgs {
    /// Directory, .gguf file, or owner/name on the hub
    #[arg(value_name = "PATH")]
    model: String,
    /// Leave out the table of layers
    #[arg(long)]
    summary: bool,
    #[command(flatten)]
    hub: HubArgs,
}

#[derive(Serialize)]
struct Inspection {
    model: String,
    container: &'static str,
    architecture: &'static str,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    context: usize,
    rope_theta: f64,
    rope_scaling: String,
    sliding_window: Option<usize>,
    tied_embeddings: bool,
    /// How a quantized output head is multiplied, as `W8A8`; it is none of the layers that `quantization` is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    output_head: Option<String>,
    quantization: Option<Quantization>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipe: Option<String>,
    totals: Totals,
    #[serde(skip_serializing_if = "Option::is_none")]
    modules: Option<Vec<Module>>,
}

#[derive(Serialize)]
struct Quantization {
    format: &'static str,
    /// Each kind of layers of the blocks, as `W4A8 g64`.
    schemes: Vec<String>,
    /// That of all layers, or of the first kind of them.
    group_size: Option<usize>,
    /// Of every kind of layers, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    group_sizes: Vec<Option<usize>>,
    /// Of a simulated checkpoint: what it stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    simulated: Option<SimulatedMethod>,
    /// Bits that the method would store for a weight of the blocks' linear layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    simulated_bits_per_weight: Option<f64>,
}

impl Quantization {
    fn of(config: &QuantizationConfig) -> Self {
        let mut group_sizes: Vec<Option<usize>> =
            config.block_schemes().iter().map(|s| s.group_size).collect();
        group_sizes.dedup();
        let group_size = group_sizes.first().copied().flatten();
        if group_sizes.len() < 2 {
            group_sizes.clear();
        }
        let mut schemes: Vec<String> = config.block_schemes().iter().map(ToString::to_string).collect();
        schemes.dedup();
        let simulated = config.simulated();
        Self {
            format: config.format.name(),
            schemes,
            group_size,
            group_sizes,
            simulated: simulated.map(|s| s.method),
            simulated_bits_per_weight: simulated.and_then(|s| s.bits_per_weight),
        }
    }

    fn text(&self) -> String {
        if let Some(method) = &self.simulated {
            let bits = match self.simulated_bits_per_weight {
                Some(bits) => format!("it would store {bits:.2} bits per weight"),
                None => "the bits that it would store are not known".into(),
            };
            return format!("simulated: {method}; {bits}; here are 16-bit weights");
        }
        let one = |group_size: Option<usize>| match group_size {
            None => "one scale per output channel".into(),
            Some(g) => format!("groups of {g}"),
        };
        let one_kind = |scheme: &String| scheme.split(' ').next() == self.arithmetic();
        if !self.schemes.iter().all(one_kind) {
            return format!("mixed, {}: {}", self.format, self.schemes.join(", "));
        }
        let kinds: Vec<String> = match &self.group_sizes[..] {
            [] => vec![one(self.group_size)],
            sizes => sizes.iter().map(|size| one(*size)).collect(),
        };
        format!("{}, {}, {}", self.arithmetic().unwrap_or("none"), self.format, kinds.join(" or "))
    }

    /// `W4A8`, of the first kind of layers.
    fn arithmetic(&self) -> Option<&str> {
        self.schemes.first().and_then(|scheme| scheme.split(' ').next())
    }
}

/// Of all modules, and of the linear layers of the blocks.
#[derive(Serialize)]
struct Totals {
    parameters: u64,
    /// Of all modules.
    bytes: u64,
    bits_per_weight: f64,
    block_linear_parameters: u64,
    block_linear_bytes: u64,
    /// Of the linear layers of the blocks.
    block_linear_bits_per_weight: f64,
}

/// Runs the command.
pub fn run(args: &InspectArgs, console: &Console) -> anyhow::Result<()> {
    let checkpoint = model::open(&args.model, &args.hub)?;
    // Of a large model the scales are gigabytes.
    let mut progress = Progress::new(console, "reading");
    let modules = layers::modules_told(&checkpoint, &mut |done, total| {
        progress.update(done as f64, total as f64, &format!("scales of module {done}/{total}"));
    })?;
    drop(progress);
    let inspection = inspect(args, &checkpoint, modules);
    console.result(&inspection, |i| text(i, console))
}

fn inspect(args: &InspectArgs, checkpoint: &Checkpoint, modules: Vec<Module>) -> Inspection {
    let c = &checkpoint.config;
    Inspection {
        model: args.model.clone(),
        container: if checkpoint.gguf.is_some() { "GGUF" } else { "safetensors" },
        architecture: c.architecture.class_name(),
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        layers: c.num_layers,
        heads: c.num_heads,
        kv_heads: c.num_kv_heads,
        head_dim: c.head_dim,
        vocabulary: c.vocab_size,
        context: c.max_position_embeddings,
        rope_theta: c.rope_theta,
        rope_scaling: match &c.rope_scaling {
            RopeScaling::None => "none".into(),
            RopeScaling::Linear { factor } => format!("linear, factor {factor}"),
            RopeScaling::Llama3 { factor, .. } => format!("llama3, factor {factor}"),
            RopeScaling::Yarn { factor, .. } => format!("yarn, factor {factor}"),
            RopeScaling::Factors(_) => "a factor for each frequency".into(),
            RopeScaling::LongRope { original, .. } => {
                format!("longrope, the long list beyond {original} tokens")
            }
            RopeScaling::Dynamic { factor, original } => {
                format!("dynamic, factor {factor} beyond {original} tokens")
            }
        },
        sliding_window: c.graph.window_of_all(),
        tied_embeddings: c.tie_word_embeddings,
        output_head: modules.iter().find(|m| m.name == names::LM_HEAD_MODULE).and_then(|m| m.scheme.clone()),
        quantization: c.quantization.as_ref().map(Quantization::of),
        recipe: recipe(checkpoint),
        totals: totals(&modules),
        modules: (!args.summary).then_some(modules),
    }
}

/// The published recipe that made it, by its report.
fn recipe(checkpoint: &Checkpoint) -> Option<String> {
    let report = std::fs::read(checkpoint.path.join(REPORT_FILE)).ok()?;
    let report: serde_json::Value = serde_json::from_slice(&report).ok()?;
    Some(report["recipe"]["name"].as_str()?.to_owned())
}

/// Sums over the modules of a checkpoint.
fn totals(modules: &[Module]) -> Totals {
    let sum = |linear_only: bool| {
        let of = modules.iter().filter(|m| !linear_only || m.block_linear);
        of.fold((0, 0), |(p, b), m| (p + m.parameters, b + m.bytes))
    };
    let bits = |(parameters, bytes): (u64, u64)| bytes as f64 * 8.0 / parameters.max(1) as f64;
    let (all, linear) = (sum(false), sum(true));
    Totals {
        parameters: all.0,
        bytes: all.1,
        bits_per_weight: bits(all),
        block_linear_parameters: linear.0,
        block_linear_bytes: linear.1,
        block_linear_bits_per_weight: bits(linear),
    }
}

fn text(i: &Inspection, console: &Console) -> String {
    let mut rows = vec![
        ("container", i.container.to_owned()),
        ("architecture", i.architecture.into()),
        (
            "size",
            format!(
                "{} layers, hidden {}, MLP {}, {} heads of {} ({} for keys and values), vocabulary {}, context {}",
                i.layers,
                i.hidden_size,
                i.intermediate_size,
                i.heads,
                i.head_dim,
                i.kv_heads,
                i.vocabulary,
                i.context
            ),
        ),
        ("rotary embedding", format!("base {}, scaling: {}", i.rope_theta, i.rope_scaling)),
        (
            "output head",
            match &i.output_head {
                _ if i.tied_embeddings => "tied to the embedding".into(),
                None => "its own".into(),
                Some(scheme) => format!("its own, {scheme}"),
            },
        ),
        ("quantization", i.quantization.as_ref().map_or("none".into(), Quantization::text)),
    ];
    if let Some(recipe) = &i.recipe {
        rows.push(("recipe", recipe.clone()));
    }
    if let Some(window) = i.sliding_window {
        rows.push(("attention", format!("sliding window of {window}")));
    }
    let t = &i.totals;
    let total = |p: u64, b: u64, bits: f64| {
        format!("{} parameters, {}, {bits:.2} bits per weight", format::count(p), format::bytes(b))
    };
    rows.push((
        "linear layers",
        total(t.block_linear_parameters, t.block_linear_bytes, t.block_linear_bits_per_weight),
    ));
    rows.push(("all tensors", total(t.parameters, t.bytes, t.bits_per_weight)));
    let mut text = pairs(rows);
    if let Some(modules) = &i.modules {
        let row = |m: &Module| {
            vec![
                m.name.clone(),
                m.storage.clone(),
                m.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x "),
                format::bytes(m.bytes),
                m.scale_range.map_or(String::new(), |(low, high)| {
                    format!(
                        "{} .. {}",
                        format::significant(low.into(), 3),
                        format::significant(high.into(), 3)
                    )
                }),
            ]
        };
        text += "\n";
        text += &table(console, &["layer", "type", "shape", "bytes", "scales"], 2, modules.iter().map(row));
    }
    text
}
