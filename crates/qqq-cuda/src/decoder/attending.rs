//! Rotary embedding with the append to the KV cache, and attention over it.

use std::sync::PoisonError;

use qqq_backend::{AttentionKind, HeadLayout, Norm, Result};

use super::CudaBackend;
use super::attention::{AttentionConfig, AttentionKernel, AttentionParameters};
use super::backend::{CudaRope, check_norm, shape};
use super::batch::CudaBatch;
use super::kv_pool::CudaKvPool;
use super::memory::CudaTensor;
use super::steps::{RopeParameters, StepKernel};

impl CudaBackend {
    /// See [`Backend::rope_append`](qqq_backend::Backend::rope_append).
    #[allow(clippy::too_many_arguments)]
    pub(super) fn rotate_and_append(
        &self,
        qkv: &mut CudaTensor,
        heads: HeadLayout,
        qk_norm: Option<(&Norm<CudaBackend>, &Norm<CudaBackend>)>,
        rope: Option<&CudaRope>,
        kv: &mut CudaKvPool,
        layer: usize,
        batch: &CudaBatch,
    ) -> Result<()> {
        self.expect(qkv, self.half(), "queries, keys and values")?;
        AttentionConfig::check(&heads)?;
        kv.check(&batch.plan, (heads.num_kv_heads, heads.head_dim))?;
        check_rows(qkv, heads.qkv_width(), batch)?;
        if let Some((q, k)) = qk_norm {
            check_norm(heads.head_dim, q)?;
            check_norm(heads.head_dim, k)?;
        }
        if let Some(rope) = rope {
            let end = batch.plan.spans.iter().map(|s| s.end()).max().unwrap_or(0);
            if end > rope.positions || 2 * rope.pairs > heads.head_dim {
                return shape(format!(
                    "a rotary embedding of {} positions and {} pairs for position {} of heads {} wide",
                    rope.positions,
                    rope.pairs,
                    end.saturating_sub(1),
                    heads.head_dim
                ));
            }
        }
        let (keys, values) = kv.layer(layer)?;
        let growing = rope.and_then(|r| r.query_scale).filter(|scale| scale.period > 0);
        let parameters = RopeParameters {
            qkv: qkv.address(),
            keys,
            values,
            q_norm: qk_norm.map_or(0, |(q, _)| q.weight.address()),
            k_norm: qk_norm.map_or(0, |(_, k)| k.weight.address()),
            cosines: rope.map_or(0, |r| r.cosines.address()),
            sines: rope.map_or(0, |r| r.sines.address()),
            positions: batch.positions(),
            slots: batch.slots(),
            rows: qkv.rows as i32,
            num_heads: heads.num_heads as i32,
            num_kv_heads: heads.num_kv_heads as i32,
            head_dim: heads.head_dim as i32,
            pairs: rope.map_or(0, |r| r.pairs as i32),
            q_epsilon: qk_norm.map_or(0.0, |(q, _)| q.eps),
            k_epsilon: qk_norm.map_or(0.0, |(_, k)| k.eps),
            query_beta: growing.map_or(0.0, |scale| scale.beta),
            query_period: growing.map_or(1, |scale| scale.period.clamp(1, i32::MAX as usize) as i32),
        };
        let units = qkv.rows * (heads.num_heads + 2 * heads.num_kv_heads);
        // SAFETY: rows, pages and positions were checked above.
        Ok(unsafe { self.launch_step(StepKernel::RopeAppend(self.half()), units, parameters) }?)
    }

    /// See [`Backend::attention`](qqq_backend::Backend::attention).
    pub(super) fn attend(
        &self,
        qkv: &CudaTensor,
        kind: &AttentionKind,
        kv: &CudaKvPool,
        layer: usize,
        batch: &CudaBatch,
        out: &mut CudaTensor,
    ) -> Result<()> {
        let heads = &kind.heads;
        self.expect(qkv, self.half(), "queries")?;
        AttentionConfig::check(heads)?;
        kv.check(&batch.plan, (heads.num_kv_heads, heads.head_dim))?;
        check_rows(qkv, heads.qkv_width(), batch)?;
        out.reshape(qkv.rows, heads.q_width(), self.half())?;
        let (keys, values) = kv.layer(layer)?;
        let window = match kind.window {
            Some(0) => return shape(String::from("a window of no positions")),
            Some(window) => i32::try_from(window).unwrap_or(0),
            None => 0,
        };
        let parameters = AttentionParameters {
            qkv: qkv.address(),
            out: out.address(),
            keys,
            values,
            pages: batch.pages(),
            tiles: 0,
            joined: 0,
            sums: 0,
            stats: 0,
            num_heads: heads.num_heads as i32,
            num_kv_heads: heads.num_kv_heads as i32,
            window,
            scale: kind.scale * std::f32::consts::LOG2_E,
        };
        let device = self.device();
        let arch = device.arch()?;
        let config = |long| AttentionConfig::new(arch, heads.head_dim, long, self.half());
        let ctas = device.sms() * config(false).ctas_per_sm(arch.shared_bytes());
        let mut parts = self.shared.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let (sums, stats) = &mut *parts;
        Ok(batch.with_tiles(device, kind, (config(true).rows(), ctas), |cuts| {
            for (long, tiles) in [true, false].into_iter().zip(cuts).filter(|(_, t)| t.tiles > 0) {
                let config = config(long);
                let rows = tiles.parts * heads.num_kv_heads * config.rows();
                sums.reserve(rows * heads.head_dim * 4)?;
                stats.reserve(rows * 8)?;
                let mut parameters = AttentionParameters {
                    tiles: tiles.address(),
                    joined: tiles.joined_address(),
                    sums: sums.address(),
                    stats: stats.address(),
                    ..parameters
                };
                let kernel = self.attention_kernel(config, AttentionKernel::Tiles)?;
                let shape = (tiles.tiles * heads.num_kv_heads, config.threads(), config.shared_bytes());
                // SAFETY: tiles are those of the batch, whose rows and pages were checked above.
                unsafe { self.launch(&kernel, shape, &mut parameters) }?;
                if tiles.joined > 0 {
                    let kernel = self.attention_kernel(config, AttentionKernel::Join)?;
                    let shape = (tiles.joined * heads.num_heads, config.threads(), 0);
                    // SAFETY: as above.
                    unsafe { self.launch(&kernel, shape, &mut parameters) }?;
                }
            }
            Ok(())
        })?)
    }
}

fn check_rows(qkv: &CudaTensor, width: usize, batch: &CudaBatch) -> Result<()> {
    if (qkv.rows, qkv.cols) == (batch.plan.rows(), width) {
        return Ok(());
    }
    shape(format!(
        "queries, keys and values of shape {} x {} in a batch that takes {} x {width}",
        qkv.rows,
        qkv.cols,
        batch.plan.rows()
    ))
}
