//! Transformations keep the float model's function.

use std::path::Path;

use qqq_backend::HeadLayout;
use qqq_formats::{Checkpoint, DType, writer::CheckpointWriter};
use qqq_model::names;
use qqq_quant::{
    RotationKind,
    float_block::{FloatBlock, FloatLinear},
    half_type::HalfType,
    rotation::Rotation,
    transform,
};
use tempfile::TempDir;

use crate::tiny::{HEAD_DIM, HIDDEN, Tiny, VOCAB, largest_error, logits};

/// Changes the embedding, the final norm and the head.
type Ends<'a> = dyn Fn(&mut Vec<f32>, &mut Vec<f32>, &mut Vec<f32>) + 'a;

/// Writes the model again in f32 with every block changed by `change`, and embedding, last norm and head by `ends`.
fn rewrite(model: &Path, out: &Path, untie: bool, change: &dyn Fn(usize, &mut FloatBlock), ends: &Ends) {
    let checkpoint = Checkpoint::open(model).unwrap();
    let config = &checkpoint.config;
    let mut writer = CheckpointWriter::create(out).unwrap();
    let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let mut embedding = checkpoint.tensors.f32(names::EMBEDDING, &[VOCAB, HIDDEN]).unwrap();
    let mut norm = checkpoint.tensors.f32(names::FINAL_NORM, &[HIDDEN]).unwrap();
    let mut head = match config.tie_word_embeddings {
        true => embedding.clone(),
        false => checkpoint.tensors.f32(names::LM_HEAD, &[VOCAB, HIDDEN]).unwrap(),
    };
    ends(&mut embedding, &mut norm, &mut head);
    writer.add(names::EMBEDDING, DType::F32, &[VOCAB, HIDDEN], &bytes(&embedding)).unwrap();
    writer.add(names::FINAL_NORM, DType::F32, &[HIDDEN], &bytes(&norm)).unwrap();
    let tied = config.tie_word_embeddings && !untie;
    if !tied {
        writer.add(names::LM_HEAD, DType::F32, &[VOCAB, HIDDEN], &bytes(&head)).unwrap();
    }
    for i in 0..config.num_layers {
        let mut block = FloatBlock::read(&checkpoint, i).unwrap();
        change(i, &mut block);
        let mut add = |name: &str, shape: &[usize], v: &[f32]| {
            writer.add(&format!("model.layers.{i}.{name}"), DType::F32, shape, &bytes(v)).unwrap();
        };
        add("input_layernorm.weight", &[HIDDEN], &block.input_norm);
        add("post_attention_layernorm.weight", &[HIDDEN], &block.post_norm);
        if let Some((q, k)) = &block.qk_norm {
            add("self_attn.q_norm.weight", &[HEAD_DIM], q);
            add("self_attn.k_norm.weight", &[HEAD_DIM], k);
        }
        let mut split = |linear: &FloatLinear, parts: &[(&str, usize)]| {
            let mut first = 0;
            for (name, rows) in parts {
                let k = linear.k;
                add(&format!("{name}.weight"), &[*rows, k], &linear.weight[first * k..(first + rows) * k]);
                if let Some(bias) = &linear.bias {
                    add(&format!("{name}.bias"), &[*rows], &bias[first..first + rows]);
                }
                first += rows;
            }
        };
        let (q, kv) = (config.num_heads * HEAD_DIM, config.num_kv_heads * HEAD_DIM);
        split(&block.qkv, &[("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)]);
        split(&block.o, &[("self_attn.o_proj", HIDDEN)]);
        split(&block.gate_up, &[("mlp.gate_proj", block.down.k), ("mlp.up_proj", block.down.k)]);
        split(&block.down, &[("mlp.down_proj", HIDDEN)]);
    }
    let mut raw = config.raw.clone();
    raw.insert("tie_word_embeddings".into(), tied.into());
    std::fs::write(writer.staging().join("config.json"), serde_json::to_string(&raw).unwrap()).unwrap();
    writer.finish().unwrap();
}

fn heads(tiny: &Tiny) -> HeadLayout {
    HeadLayout { num_heads: tiny.heads, num_kv_heads: tiny.kv_heads, head_dim: HEAD_DIM }
}

#[test]
fn rotation_keeps_the_function() {
    let dir = TempDir::new().unwrap();
    for (m, tiny) in Tiny::families().into_iter().enumerate() {
        let model = tiny.write(dir.path(), &format!("model{m}"));
        let before = logits(&model);
        for kind in [RotationKind::Hadamard, RotationKind::Orthogonal] {
            let stream = Rotation::new(kind, HIDDEN, 5).unwrap();
            let head = Rotation::head(HEAD_DIM).unwrap();
            let out = dir.path().join(format!("rotated{m}{kind:?}"));
            rewrite(
                &model,
                &out,
                true,
                &|_, block| {
                    transform::fold_norms(block);
                    transform::rotate(block, &stream, &head, heads(&tiny));
                },
                &|embedding, norm, lm_head| {
                    for row in lm_head.chunks_exact_mut(HIDDEN) {
                        row.iter_mut().zip(norm.iter()).for_each(|(w, n)| *w *= n);
                    }
                    norm.fill(1.0);
                    stream.apply_rows(embedding);
                    stream.apply_rows(lm_head);
                },
            );
            let error = largest_error(&logits(&out), &before);
            assert!(error < 1e-5, "model {m}, {kind:?}: {error}");
        }
    }
}

#[test]
fn smoothing_keeps_the_function_even_when_norms_are_rounded() {
    let dir = TempDir::new().unwrap();
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
                    transform::smooth_qkv(block, &scales(HIDDEN, i), half);
                    if tiny.heads == tiny.kv_heads {
                        transform::smooth_o(block, &scales(block.o.k, i + 1), heads(&tiny));
                    }
                    transform::smooth_gate_up(block, &scales(HIDDEN, i + 2), half);
                    transform::smooth_down(block, &scales(block.down.k, i + 3));
                    for (j, s) in scales(HIDDEN, i).iter().enumerate().filter(|(_, s)| **s > 1.0) {
                        assert_eq!(block.input_norm[j], half.round(block.input_norm[j]), "scale {s}");
                    }
                },
                &|_, _, _| {},
            );
            let error = largest_error(&logits(&out), &before);
            assert!(error < 1e-5, "model {m}, {half:?}: {error}");
        }
    }
}
