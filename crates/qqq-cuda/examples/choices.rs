//! What the choice of kernels loses, by measurements: `qqq bench gemm --each --quick --json > each.json`, then
//! `cargo run --example choices -- each.json...`. For each product the choice of [`CostModel`], its time, that of the fastest
//! plan, and what the model makes of both; at the end the worst losses, of the estimate's choices and of the fastest among those
//! that a device [tries](trials). To be run after every change of the model's costs.

use std::collections::BTreeMap;

use qqq_cuda::gemm::{CostModel, GemmSpec, GemmTypes, Plan, SumOrder, WeightKind, candidates, trials};
use qqq_cuda::{Arch, DType, KernelType};
use serde_json::Value;

/// SMs of the GPU that was measured: an H100 or H200.
const SMS: usize = 132;
/// Clock cycles of a microsecond.
const CYCLES: f64 = 1755.0;

/// Plans with their microseconds, by shape, weights, activations and tokens.
type Measured = BTreeMap<(usize, usize, String, String, usize), Vec<(Plan, f64)>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut measured = Measured::new();
    for path in std::env::args().skip(1) {
        let file: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        for line in file["results"].as_array().ok_or("no results")? {
            let number = |key: &str| line[key].as_u64().unwrap_or_default() as usize;
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let (m, weights, activations) = (number("tokens"), text("weights"), text("activations"));
            let types = types(&weights, &activations)?;
            let plan = candidates(types, Arch::Sm90a, m, SumOrder::Free).into_iter().find(|p| {
                p.instance.source().name == text("kernel")
                    && Some(p.stream_k) == line["split"].as_bool()
                    && Some(p.paired) == line["paired"].as_bool()
            });
            let Some(plan) = plan else { continue };
            let key = (number("n"), number("k"), weights, activations, m);
            measured.entry(key).or_default().push((plan, line["microseconds"].as_f64().unwrap_or(f64::NAN)));
        }
    }
    let model = CostModel::new(SMS);
    let (mut losses, mut tried_losses) = (Vec::new(), Vec::new());
    for ((n, k, weights, activations, m), plans) in &measured {
        let spec = GemmSpec::new(types(weights, activations)?, (*n, *k));
        let chosen = model.plan(&spec, Arch::Sm90a, *m);
        let Some((_, time)) = plans.iter().find(|(p, _)| *p == chosen) else { continue };
        let Some((best, least)) = plans.iter().min_by(|a, b| a.1.total_cmp(&b.1)) else { continue };
        let estimate = |p: &Plan| model.cycles(p, (*m, *n, *k)) / CYCLES;
        let name = |p: &Plan| {
            let split = if p.stream_k { " split" } else { "" };
            p.instance.source().name + split + if p.paired { " paired" } else { "" }
        };
        let loss = time / least - 1.0;
        println!(
            "{n}x{k} {weights} {activations} {m}: {:.1}% lost; {} {time:.1} us ({:.1} estimated), fastest {} {least:.1} us ({:.1})",
            100.0 * loss,
            name(&chosen),
            estimate(&chosen),
            name(best),
            estimate(best),
        );
        losses.push(loss);
        let tried = trials::worth_trying(&model, &spec, Arch::Sm90a, *m);
        let times = plans.iter().filter(|(plan, _)| tried.contains(plan)).map(|(_, time)| *time);
        tried_losses.push(times.fold(*time, f64::min) / least - 1.0);
    }
    tell("estimated", losses);
    tell("the fastest of those that are tried", tried_losses);
    Ok(())
}

fn tell(what: &str, mut losses: Vec<f64>) {
    losses.sort_by(|a, b| b.total_cmp(a));
    let beyond = losses.iter().filter(|l| **l > 0.05).count();
    let worst = &losses[..losses.len().min(10)];
    println!("{what}: {} products, {beyond} lose more than 5%, the most: {worst:.3?}", losses.len());
}

fn types(weights: &str, activations: &str) -> Result<GemmTypes, Box<dyn std::error::Error>> {
    let weights: WeightKind = weights.parse()?;
    Ok(match DType::from_kernel_name(activations).ok_or("activations")? {
        DType::I8 => GemmTypes::int8(weights, DType::F16),
        half => GemmTypes::new(weights, half, half)?,
    })
}
