//! A KV cache that grows on a GPU.

use qqq_backend::{AttentionKind, Backend, BatchPlan, HeadLayout, InputKind, KvDType, KvLayout, PAGE};
use qqq_cuda::{CudaBackend, KernelType};
use qqq_testing::values;

/// Attention over a pool that has grown, twice, is that over one of its size, bit for bit.
pub fn a_pool_that_grows(b: CudaBackend) {
    let heads = HeadLayout { num_heads: 6, num_kv_heads: 2, head_dim: 96 };
    let layout = KvLayout { num_layers: 3, num_kv_heads: 2, head_dim: 96, dtype: KvDType::F16 };
    let attend = |sizes: [usize; 3]| {
        let mut kv = b.kv_pool(layout, sizes[0]).unwrap();
        let mut results = Vec::new();
        for (step, (tokens, pages)) in
            [(2 * PAGE, vec![1, 0]), (70, vec![1, 0, 3]), (1, vec![1, 0, 3, 8])].into_iter().enumerate()
        {
            b.grow_kv(&mut kv, sizes[step]).unwrap();
            let start = [0, 2 * PAGE, 2 * PAGE + 70][step];
            let mut plan = BatchPlan::default();
            plan.push(&vec![0; tokens], start, &pages);
            let batch = b.batch(&plan).unwrap();
            for layer in 0..layout.num_layers {
                let seed = (10 * step + layer) as u64;
                let x = values(tokens * heads.qkv_width(), seed);
                let x = x.iter().map(|v| b.half().decode(b.half().encode(*v))).collect();
                let mut qkv = b.upload(tokens, heads.qkv_width(), x).unwrap();
                let mut input = b.input(tokens, heads.qkv_width()).unwrap();
                b.to_input(&mut qkv, InputKind::Float, &mut input).unwrap();
                b.rope_append(&mut qkv, heads, None, None, &mut kv, layer, &batch).unwrap();
                let mut out = b.tensor(0, 0).unwrap();
                let kind = AttentionKind::causal(heads, None);
                b.attention(&qkv, &kind, &kv, layer, &batch, &mut out).unwrap();
                results.push(b.read(&out).unwrap().into_owned());
            }
        }
        results
    };
    assert_eq!(attend([2, 4, 9]), attend([9, 9, 9]));
    // What the pool has not is refused as before; and what no memory holds, with how many tokens do fit.
    let mut kv = b.kv_pool(layout, 1).unwrap();
    let error = b.grow_kv(&mut kv, 8 << 20).unwrap_err().to_string();
    assert!(error.contains("has room for about") && error.contains("use the CPU"), "{error}");
    let mut plan = BatchPlan::default();
    plan.push(&[0], 0, &[1]);
    let mut qkv = b.upload(1, heads.qkv_width(), vec![0.0; heads.qkv_width()]).unwrap();
    b.to_input(&mut qkv, InputKind::Float, &mut b.input(1, heads.qkv_width()).unwrap()).unwrap();
    let batch = b.batch(&plan).unwrap();
    assert!(b.rope_append(&mut qkv, heads, None, None, &mut kv, 0, &batch).is_err());
    b.grow_kv(&mut kv, 2).unwrap();
    b.rope_append(&mut qkv, heads, None, None, &mut kv, 0, &batch).unwrap();
}
