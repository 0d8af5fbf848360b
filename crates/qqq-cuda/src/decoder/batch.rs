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
    /// Whether launches are as large as those of the step before.
    pub(super) is_alike: bool,
}

/// How a kind of attention cuts the step.
#[derive(Debug)]
struct KindTiles {
    kind: AttentionKind,
    /// Rows of a tile of many tokens, and CTAs of few that run at once.
    sizes: (usize, usize),
    cuts: [DeviceTiles; 2],
}

impl KindTiles {
    fn fill(&mut self, plan: &BatchPlan) -> Result<()> {
        let cuts = attention::cut(plan, &self.kind, self.sizes.0, self.sizes.1);
        self.cuts.iter_mut().zip(&cuts).try_for_each(|(device, cut)| device.fill(cut))
    }
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
        // Not allocated again whenever there is one more.
        self.buffer.reserve(bytes.len().next_power_of_two())?;
        self.buffer.write(&bytes)
    }
}

impl CudaBatch {
    pub(super) fn new(device: &Device, plan: &BatchPlan) -> Result<Self> {
        let mut batch = Self {
            plan: BatchPlan::default(),
            numbers: Buffer::new(device, 0)?,
            tiles: Mutex::default(),
            is_alike: false,
        };
        batch.refill(plan)?;
        Ok(batch)
    }

    pub(super) fn refill(&mut self, plan: &BatchPlan) -> Result<()> {
        let before = self.shape();
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
        self.numbers.reserve((4 * numbers.len()).next_power_of_two())?;
        self.numbers.write(bytemuck::cast_slice(&numbers))?;
        let plan = &self.plan;
        let tiles = self.tiles.get_mut().unwrap_or_else(PoisonError::into_inner);
        tiles.iter_mut().try_for_each(|t| t.fill(plan))?;
        // Of a step that never ran nothing is known.
        self.is_alike = before.len() > 1 && self.shape() == before;
        Ok(())
    }

    /// What the launches of a step are as large as.
    pub(super) fn shape(&self) -> Vec<usize> {
        let tiles = self.tiles.lock().unwrap_or_else(PoisonError::into_inner);
        let of_kind = |t: &KindTiles| t.cuts.each_ref().map(|c| [c.tiles, c.joined]).concat();
        [self.plan.rows()].into_iter().chain(tiles.iter().flat_map(of_kind)).collect()
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

    /// Runs `job` with the tiles of many tokens, and of few, of a kind of attention. `sizes`: rows of the former, and how many
    /// CTAs of the latter run at once on the device.
    pub(super) fn with_tiles(
        &self,
        device: &Device,
        kind: &AttentionKind,
        sizes: (usize, usize),
        job: impl FnOnce(&[DeviceTiles; 2]) -> Result<()>,
    ) -> Result<()> {
        let mut all = self.tiles.lock().unwrap_or_else(PoisonError::into_inner);
        let alike = |t: &KindTiles| (t.kind.heads, t.kind.window) == (kind.heads, kind.window);
        let index = match all.iter().position(alike) {
            Some(index) => index,
            None => {
                let empty = || {
                    let buffer = Buffer::new(device, 0)?;
                    Ok::<_, crate::CudaError>(DeviceTiles { buffer, tiles: 0, joined: 0, parts: 0 })
                };
                let mut tiles = KindTiles { kind: *kind, sizes, cuts: [empty()?, empty()?] };
                tiles.fill(&self.plan)?;
                all.push(tiles);
                all.len() - 1
            }
        };
        let tiles = &all[index];
        job(&tiles.cuts)
    }
}
