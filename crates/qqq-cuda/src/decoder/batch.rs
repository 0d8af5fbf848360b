//! A step's rows on a device.

use std::sync::{Mutex, PoisonError};

use qqq_backend::{AttentionKind, BatchPlan, PAGE};

use super::attention::{self, AttentionTile, JoinedTile};
use super::memory::Buffer;
use crate::{Device, Result};

/// What operations know of a step's rows: made once, read by every layer.
#[derive(Debug)]
pub struct CudaBatch {
    pub(super) plan: BatchPlan,
    /// int32: tokens, positions, slots (page times [`PAGE`], and the place in it), `rows` each, then page tables.
    numbers: Buffer,
    /// Tiles of attention for each kind of it that a layer asked for.
    tiles: Mutex<Vec<KindTiles>>,
}

/// How a kind of attention cuts the step.
#[derive(Debug)]
struct KindTiles {
    /// Query heads of a key head, key heads, window.
    kind: (usize, usize, Option<usize>),
    used: bool,
    cuts: [DeviceTiles; 2],
}

/// Tiles of one kernel on the device.
#[derive(Debug)]
pub(super) struct DeviceTiles {
    buffer: Buffer,
    pub(super) tiles: usize,
    pub(super) joined: usize,
    pub(super) parts: usize,
}

impl DeviceTiles {
    /// Address of the tiles.
    pub(super) fn address(&self) -> u64 {
        self.buffer.address()
    }

    /// Address of those that are joined, which follow.
    pub(super) fn joined_address(&self) -> u64 {
        self.buffer.address() + (self.tiles * size_of::<AttentionTile>()) as u64
    }

    fn fill(&mut self, cut: &attention::Tiles) -> Result<()> {
        let mut bytes: Vec<u8> = bytemuck::cast_slice::<AttentionTile, u8>(&cut.tiles).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice::<JoinedTile, u8>(&cut.joined));
        (self.tiles, self.joined, self.parts) = (cut.tiles.len(), cut.joined.len(), cut.parts);
        self.buffer.write(&bytes)
    }
}

impl CudaBatch {
    pub(super) fn new(device: &Device, plan: &BatchPlan) -> Result<Self> {
        let mut batch =
            Self { plan: BatchPlan::default(), numbers: Buffer::new(device, 0)?, tiles: Mutex::default() };
        batch.refill(plan)?;
        Ok(batch)
    }

    pub(super) fn refill(&mut self, plan: &BatchPlan) -> Result<()> {
        self.plan.clone_from(plan);
        let rows = plan.rows();
        let mut numbers = vec![0i32; 3 * rows];
        for (number, token) in numbers.iter_mut().zip(&plan.tokens) {
            *number = *token as i32;
        }
        let mut row = 0;
        for span in &plan.spans {
            for position in span.start..span.end() {
                let page = plan.pages[span.first_page + position / PAGE] as usize;
                numbers[rows + row] = position as i32;
                numbers[2 * rows + row] = (page * PAGE + position % PAGE) as i32;
                row += 1;
            }
        }
        numbers.extend(plan.pages.iter().map(|p| *p as i32));
        self.numbers.write(bytemuck::cast_slice(&numbers))?;
        let tiles = self.tiles.get_mut().unwrap_or_else(PoisonError::into_inner);
        tiles.iter_mut().for_each(|t| t.used = false);
        Ok(())
    }

    pub(super) fn tokens(&self) -> u64 {
        self.numbers.address()
    }

    pub(super) fn positions(&self) -> u64 {
        self.numbers.address() + 4 * self.plan.rows() as u64
    }

    pub(super) fn slots(&self) -> u64 {
        self.numbers.address() + 8 * self.plan.rows() as u64
    }

    pub(super) fn pages(&self) -> u64 {
        self.numbers.address() + 12 * self.plan.rows() as u64
    }

    /// Runs `job` with the tiles of many tokens, and of few, of a kind of attention. `ctas` run at once on the device.
    pub(super) fn with_tiles(
        &self,
        device: &Device,
        kind: &AttentionKind,
        ctas: usize,
        job: impl FnOnce(&[DeviceTiles; 2]) -> Result<()>,
    ) -> Result<()> {
        let mut all = self.tiles.lock().unwrap_or_else(PoisonError::into_inner);
        let heads = &kind.heads;
        let key = (heads.num_heads / heads.num_kv_heads, heads.num_kv_heads, kind.window);
        let index = match all.iter().position(|t| t.kind == key) {
            Some(index) => index,
            None => {
                let empty = || {
                    let buffer = Buffer::new(device, 0)?;
                    Ok::<_, crate::CudaError>(DeviceTiles { buffer, tiles: 0, joined: 0, parts: 0 })
                };
                all.push(KindTiles { kind: key, used: false, cuts: [empty()?, empty()?] });
                all.len() - 1
            }
        };
        let tiles = &mut all[index];
        if !tiles.used {
            let cuts = attention::cut(&self.plan, kind, ctas);
            for (device, cut) in tiles.cuts.iter_mut().zip(&cuts) {
                device.fill(cut)?;
            }
            tiles.used = true;
        }
        job(&tiles.cuts)
    }
}
