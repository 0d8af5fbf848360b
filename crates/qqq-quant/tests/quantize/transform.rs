//! Transformations keep the float model's function.

use std::{path::Path, sync::Arc};

use qqq_backend::{Calibrate, CpuBackend, HeadLayout};
use qqq_formats::{Checkpoint, DType, writer::CheckpointWriter};
use qqq_model::{Site, names};
use qqq_quant::{
    RotationKind,
    float_linear::{FloatBlock, FloatLinear, read_block},
    half_type::HalfType,
    rotation::Rotation,
    rotations::{DeviceRotations, Rotations},
    transform,
};
use tempfile::TempDir;

use crate::tiny::{HIDDEN, Tiny, VOCAB, largest_error, logits};

/// Changes the embedding, the final norm and the head.
type Ends<'a> = dyn Fn(&mut Vec<f32>, &mut Vec<f32>, &mut Vec<f32>) + 'a;

/// Changes a block, whose index it is told.
type Change<'a> = dyn Fn(usize, &mut FloatBlock<CpuBackend>) + 'a;

/// Writes the model again in f32 with every block changed by `change`, and embedding, last norm and head by `ends`.
fn rewrite(model: &Path, out: &Path, untie: bool, change: &Change<'_>, ends: &Ends) {
    let (b, checkpoint) = (CpuBackend::default(), Checkpoint::open(model).unwrap());
    let config = &checkpoint.config;
    let (hidden, head_dim) = (config.hidden_size, config.head_dim);
    let mut writer = CheckpointWriter::create(out).unwrap();
    let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut embedding = checkpoint.tensors.f32(names::EMBEDDING, &[VOCAB, hidden]).unwrap();
    let mut norm = checkpoint.tensors.f32(names::FINAL_NORM, &[hidden]).unwrap();
    let mut head = match config.tie_word_embeddings {
        true => embedding.clone(),
        false => checkpoint.tensors.f32(names::LM_HEAD, &[VOCAB, hidden]).unwrap(),
    };
    ends(&mut embedding, &mut norm, &mut head);
    writer.add(names::EMBEDDING, DType::F32, &[VOCAB, hidden], &bytes(&embedding)).unwrap();
    writer.add(names::FINAL_NORM, DType::F32, &[hidden], &bytes(&norm)).unwrap();
    let tied = config.tie_word_embeddings && !untie;
    if !tied {
        writer.add(names::LM_HEAD, DType::F32, &[VOCAB, hidden], &bytes(&head)).unwrap();
    }
    let mut biased = false;
    for i in 0..config.num_layers {
        let mut block = read_block(&b, &checkpoint, i).unwrap();
        change(i, &mut block);
        biased |= block.layers[Site::O].bias.is_some();
        let mut add = |name: &str, shape: &[usize], v: &[f32]| {
            writer.add(&format!("model.layers.{i}.{name}"), DType::F32, shape, &bytes(v)).unwrap();
        };
        add("input_layernorm.weight", &[hidden], &block.norms.input);
        add("post_attention_layernorm.weight", &[hidden], &block.norms.post);
        if let Some((q, k)) = &block.norms.qk {
            add("self_attn.q_norm.weight", &[head_dim], q);
            add("self_attn.k_norm.weight", &[head_dim], k);
        }
        let mut split = |linear: &FloatLinear<CpuBackend>, parts: Vec<(&str, usize)>| {
            let weight = b.read_weights(&linear.weights).unwrap();
            let mut first = 0;
            for (name, rows) in parts {
                let k = linear.k;
                add(&format!("{name}.weight"), &[rows, k], &weight[first * k..(first + rows) * k]);
                if let Some(bias) = &linear.bias {
                    add(&format!("{name}.bias"), &[rows], &bias[first..first + rows]);
                }
                first += rows;
            }
        };
        for site in Site::ALL {
            split(&block.layers[site], site.modules(config));
        }
    }
    let mut raw = config.raw.clone();
    raw.insert("tie_word_embeddings".into(), tied.into());
    if biased {
        raw.insert("attention_bias".into(), true.into());
    }
    std::fs::write(writer.staging().join("config.json"), serde_json::to_string(&raw).unwrap()).unwrap();
    writer.finish().unwrap();
}

fn heads(tiny: &Tiny) -> HeadLayout {
    HeadLayout { num_heads: tiny.heads, num_kv_heads: tiny.kv_heads, head_dim: tiny.head_dim }
}

#[test]
fn rotation_keeps_the_function() {
    let dir = TempDir::new().unwrap();
    for (m, tiny) in Tiny::families().into_iter().enumerate() {
        for kind in [RotationKind::Hadamard, RotationKind::Orthogonal] {
            check_rotation(dir.path(), &format!("{m}{kind:?}"), &tiny, kind);
        }
    }
}

#[test]
fn rotation_keeps_the_function_whatever_the_widths() {
    let dir = TempDir::new().unwrap();
    // Heads of v and o, or the residual stream, of widths for which there is no Hadamard matrix (but for 36).
    for (hidden, head_dim) in [(128, 36), (128, 50), (94, 94), (150, 30), (92, 46), (944, 2)] {
        for (b, biased) in [false, true].into_iter().enumerate() {
            let tiny = Tiny { hidden, head_dim, attention_bias: biased, mlp_bias: biased, ..Tiny::default() };
            check_rotation(dir.path(), &format!("{hidden}x{head_dim}{b}"), &tiny, RotationKind::Hadamard);
        }
    }
}

/// Rotates a model, and compares its logits with those of before.
fn check_rotation(dir: &Path, name: &str, tiny: &Tiny, kind: RotationKind) {
    let model = tiny.write(dir, &format!("model{name}"));
    let before = logits(&model);
    let stream = Rotation::new(kind, tiny.hidden, 5).unwrap();
    let b = CpuBackend::default();
    let both = Rotations { stream: stream.clone(), head: Rotation::head(tiny.head_dim) };
    let rotations = DeviceRotations::new(&b, Arc::new(both)).unwrap();
    let out = dir.join(format!("rotated{name}"));
    rewrite(
        &model,
        &out,
        true,
        &|_, block| {
            for site in Site::ALL {
                let layer = &mut block.layers[site];
                let norm = match site {
                    Site::Qkv => Some(&mut block.norms.input),
                    Site::GateUp => Some(&mut block.norms.post),
                    Site::O | Site::Down => None,
                };
                if let Some(norm) = norm {
                    layer.scale_inputs(&b, norm).unwrap();
                    norm.fill(1.0);
                }
                let bias = layer.bias.as_deref_mut();
                rotations.turn(&b, site, &mut layer.weights, bias, heads(tiny)).unwrap();
            }
        },
        &|embedding, norm, lm_head| {
            for row in lm_head.chunks_exact_mut(tiny.hidden) {
                row.iter_mut().zip(norm.iter()).for_each(|(w, n)| *w *= n);
            }
            norm.fill(1.0);
            stream.apply_rows(embedding);
            stream.apply_rows(lm_head);
        },
    );
    let error = largest_error(&logits(&out), &before);
    assert!(error < 1e-5, "model {name}: {error}");
}

#[test]
fn smoothing_keeps_the_function_even_when_norms_are_rounded() {
    let (b, dir) = (CpuBackend::default(), TempDir::new().unwrap());
    let scales = |n: usize, i: usize| -> Vec<f32> {
        (0..n)
            .map(|j| if usize::is_multiple_of(j * 13 + i, 7) { 1.0 + (j % 11) as f32 * 1.7 } else { 1.0 })
            .collect()
    };
    for (m, tiny) in Tiny::families().into_iter().enumerate() {
        let model = tiny.write(dir.path(), &format!("model{m}"));
        let before = logits(&model);
        for half in [HalfType::F16, HalfType::BF16] {
            let out = dir.path().join(format!("smoothed{m}{half:?}"));
            rewrite(
                &model,
                &out,
                false,
                &|i, block| {
                    let [o, down] = [Site::O, Site::Down].map(|site| block.layers[site].k);
                    transform::smooth_qkv(&b, block, &scales(HIDDEN, i), half).unwrap();
                    if tiny.heads == tiny.kv_heads {
                        transform::smooth_o(&b, block, &scales(o, i + 1), heads(&tiny)).unwrap();
                    }
                    transform::smooth_gate_up(&b, block, &scales(HIDDEN, i + 2), half).unwrap();
                    transform::smooth_down(&b, block, &scales(down, i + 3)).unwrap();
                    for (j, s) in scales(HIDDEN, i).iter().enumerate().filter(|(_, s)| **s > 1.0) {
                        assert_eq!(block.norms.input[j], half.round(block.norms.input[j]), "scale {s}");
                    }
                },
                &|_, _, _| {},
            );
            let error = largest_error(&logits(&out), &before);
            assert!(error < 1e-5, "model {m}, {half:?}: {error}");
        }
    }
}

/// Each channel of v has its shift and divisor, which the input channels of o share that it feeds.
#[test]
fn shifting_the_input_of_o_keeps_the_function() {
    let (b, dir) = (CpuBackend::default(), TempDir::new().unwrap());
    let models = [
        Tiny::default(),
        Tiny { attention_bias: true, ..Tiny::default() },
        Tiny { kv_heads: 4, attention_bias: true, ..Tiny::default() },
        Tiny { kv_heads: 1, tied: false, ..Tiny::default() },
    ];
    for (m, tiny) in models.into_iter().enumerate() {
        let model = tiny.write(dir.path(), &format!("model{m}"));
        let before = logits(&model);
        let each = tiny.heads / tiny.kv_heads;
        let of_values = |of: &dyn Fn(usize) -> f32| -> Vec<f32> {
            let value = |j: usize| j / (each * tiny.head_dim) * tiny.head_dim + j % tiny.head_dim;
            (0..tiny.heads * tiny.head_dim).map(|j| of(value(j))).collect()
        };
        let z = of_values(&|j| (j * 29 % 13) as f32 / 4.0 - 1.3);
        let s = of_values(&|j| 1.0 + (j % 5) as f32);
        for half in [HalfType::F16, HalfType::BF16] {
            let out = dir.path().join(format!("shifted{m}{half:?}"));
            let shift = |_: usize, block: &mut FloatBlock<CpuBackend>| {
                transform::shift_o(&b, block, &z, &s, heads(&tiny), half).unwrap();
                let first = (tiny.heads + tiny.kv_heads) * tiny.head_dim;
                let bias = block.layers[Site::Qkv].bias.as_ref().unwrap();
                assert!(bias[first..].iter().all(|v| (half.round(*v) - v).abs() <= 1e-6 * v.abs()));
                assert!(bias[first..].iter().any(|v| v.abs() > 0.2));
            };
            rewrite(&model, &out, false, &shift, &|_, _, _| {});
            let error = largest_error(&logits(&out), &before);
            assert!(error < 2e-5, "model {m}, {half:?}: {error}");
        }
    }
}
