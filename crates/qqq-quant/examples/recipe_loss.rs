//! Losses of the methods of other papers on the real layers of a model's first block, and these layers as NumPy arrays, for
//! `scripts/make_recipe_vectors.py` to say what Python makes of them.
//!
//! Usage: `cargo run --release -p qqq-quant --example recipe_loss MODEL TEXT OUT [WINDOWS [TOKENS]]`

use std::{fs, path::Path};

use qqq_backend::{Calibrate, CpuBackend, InputKind};
use qqq_formats::{
    Checkpoint, SimulatedMethod,
    simulated::{LlmInt8, Quik, Quip, SpQr},
};
use qqq_model::{Block, RopeChoice, Site, Tokenizer, block::Layer as BlockLayer, names, rope};
use qqq_quant::{
    float_linear::read_block,
    half_type::HalfType,
    recipes::simulated::{Layer, quantize},
    windows::{Surroundings, Window, Windows},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, text, out, amount @ ..] = &args[..] else {
        return Err("MODEL TEXT OUT [WINDOWS [TOKENS]]".into());
    };
    let count: usize = amount.first().map_or(Ok(4), |n| n.parse())?;
    let window: usize = amount.get(1).map_or(Ok(512), |n| n.parse())?;
    let b = &CpuBackend::new();
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let config = &checkpoint.config;
    let tokens = Tokenizer::load(&checkpoint)?.encode(&fs::read_to_string(text)?, false)?;
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let table = checkpoint.tensors.float(names::EMBEDDING, &[vocab, hidden])?;
    let table = qqq_backend::Backend::embedding(b, vocab, hidden, table)?;
    let scale = config.graph.embedding_scale as f32;
    let states = tokens.chunks_exact(window).take(count);
    let states =
        states.map(|ids| Window::embedded(b, &table, ids, hidden, scale)).collect::<Result<Vec<_>, _>>()?;
    let ropes = rope::embeddings(b, config, RopeChoice::new(config, window), window)?;
    let mut windows = Windows::new(Surroundings { backend: b, config, ropes: &ropes }, states, window);

    let float = read_block(b, &checkpoint, 0)?;
    let mut block = Block::without_layers(b, config, 0, float.norms.clone(), InputKind::Float)?;
    for site in Site::ALL {
        let layer = &float.layers[site];
        let linear = b.float_linear(&layer.weights, layer.bias.clone())?;
        *block.layer_mut(site) = BlockLayer::Ready(linear);
    }
    for site in Site::ALL {
        let gram = windows.sum_input("block 0", &block, site, &mut |_| Ok(()))?;
        let hessian = b.hessian(gram)?;
        let hessian: Vec<f64> = b.read_hessian(&hessian)?.iter().map(|h| f64::from(*h)).collect();
        let layer = &float.layers[site];
        let mut largest = vec![0.0f32; layer.k];
        for input in windows.inputs() {
            let (high, low) = b.channel_range(input)?;
            let of_input = high.iter().zip(&low).map(|(h, l)| h.abs().max(l.abs()));
            largest.iter_mut().zip(of_input).for_each(|(most, m)| *most = most.max(m));
        }
        // One module of each site: the first.
        let (module, n) = site.modules(config)[0];
        let name = names::linear(0, module);
        let weights: Vec<f64> =
            b.read_weights(&layer.weights)?[..n * layer.k].iter().map(|w| f64::from(*w)).collect();
        let place = Path::new(out).join(module);
        fs::create_dir_all(&place)?;
        write_npy(&place.join("weights.npy"), &[n, layer.k], &weights)?;
        write_npy(&place.join("hessian.npy"), &[layer.k, layer.k], &hessian)?;
        write_npy(
            &place.join("largest.npy"),
            &[layer.k],
            &largest.iter().map(|m| f64::from(*m)).collect::<Vec<_>>(),
        )?;
        let task = Layer {
            name: &name,
            weights: &weights,
            n,
            k: layer.k,
            hessian: Some(&hessian),
            largest: Some(&largest),
        };
        let quip = |bits, greedy| SimulatedMethod::Quip(Quip { bits, greedy, ..Quip::default() });
        let methods = [
            ("llm-int8", SimulatedMethod::LlmInt8(LlmInt8::default())),
            ("quik 4 bits", SimulatedMethod::Quik(Quik { down_bits: 4, ..Quik::default() })),
            ("quik 8 bits", SimulatedMethod::Quik(Quik { bits: 8, ..Quik::default() })),
            ("spqr", SimulatedMethod::SpQr(SpQr::default())),
            ("quip 2 bits", quip(2, 0)),
            ("quip 3 bits", quip(3, 0)),
            ("quip 4 bits", quip(4, 0)),
            ("quip 2 bits greedy 10", quip(2, 10)),
        ];
        for (what, method) in methods {
            let made = quantize(&method, &task, HalfType::F16, 0)?;
            println!(
                "{module} {what} {:.4e} (nearest {:.4e}), {:.3} bits",
                made.loss,
                made.loss_nearest,
                made.bits / (n * layer.k) as f64
            );
        }
    }
    Ok(())
}

/// A little-endian float64 array in NumPy's format, version 1.0.
fn write_npy(path: &Path, shape: &[usize], values: &[f64]) -> std::io::Result<()> {
    let shape: String = shape.iter().map(|n| format!("{n},")).collect();
    let header = format!("{{'descr': '<f8', 'fortran_order': False, 'shape': ({shape}), }}");
    // The data begin at a multiple of 64 bytes.
    let width = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((width as u16).to_le_bytes());
    bytes.extend(format!("{header:<0$}\n", width - 1).bytes());
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    fs::write(path, bytes)
}
