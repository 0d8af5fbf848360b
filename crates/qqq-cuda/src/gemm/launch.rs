//! Launching the kernel.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::{Instance, Plan, Schedule, Sm90Config, Tile};
use crate::device::{Device, Kernel};
use crate::tensor_map::{TensorMap, TiledMatrix};
use crate::{Arch, CudaError, DType, Result};

/// The device addresses of a product's operands. All of them must stay valid until the launch has run.
#[derive(Clone, Copy, Debug)]
pub struct GemmOperands {
    /// Activations, `m x k` of the plan's type, row-major, 16-byte aligned.
    pub x: u64,
    /// Scale of each token, `m` float32. Ignored where activations are no int8.
    pub token_scale: u64,
    /// Output, `m x n`, row-major, 16-byte aligned.
    pub y: u64,
    /// Weight tiles of [`PackedWeights`](super::PackedWeights), 16-byte aligned.
    pub weights: u64,
    /// `ceil(n / 64) * 64` float32.
    pub channel_scale: u64,
    /// `n` float32, or 0.
    pub bias: u64,
    /// Tokens: rows of activations and output.
    pub m: usize,
    /// Output channels: rows of the weights.
    pub n: usize,
    /// Input channels: columns of activations and weights.
    pub k: usize,
}

impl GemmOperands {
    /// That there are tokens, and that addresses are there and aligned.
    fn check(&self, activation: DType) -> Result<()> {
        if self.m == 0 || self.m > i32::MAX as usize {
            return Err(CudaError::Shape(format!("a product of {} tokens", self.m)));
        }
        for (name, address, alignment, needed) in [
            ("activations", self.x, 16, true),
            ("token scales", self.token_scale, 4, activation == DType::I8),
            ("output", self.y, 16, true),
            ("weights", self.weights, 16, true),
            ("channel scales", self.channel_scale, 4, true),
            ("bias", self.bias, 4, false),
        ] {
            if needed && address == 0 {
                return Err(CudaError::Shape(format!("a product without an address for its {name}")));
            }
            if !address.is_multiple_of(alignment) {
                return Err(CudaError::Shape(format!(
                    "the address {address:#x} of a product's {name} is not aligned to {alignment} bytes"
                )));
            }
        }
        Ok(())
    }
}

/// `GemmParameters` of `sm90_config.cuh`.
#[repr(C, align(64))]
pub struct Sm90Parameters {
    x: TensorMap,
    y: TensorMap,
    weights: u64,
    channel_scale: u64,
    token_scale: u64,
    bias: u64,
    partials: u64,
    counters: u64,
    m: i32,
    n: i32,
    box_tokens: i32,
    last_token: i32,
    schedule: Schedule,
}

/// `Sm80Parameters` of `sm80_config.cuh`.
#[repr(C)]
pub struct Sm80Parameters {
    x: u64,
    y: u64,
    weights: u64,
    channel_scale: u64,
    token_scale: u64,
    bias: u64,
    partials: u64,
    counters: u64,
    m: i32,
    n: i32,
    k: i32,
    schedule: Schedule,
}

/// What a kernel of products takes.
pub enum GemmParameters {
    /// Of the kernel for Hopper.
    Sm90(Box<Sm90Parameters>),
    /// Of the kernel for every GPU since Ampere.
    Sm80(Box<Sm80Parameters>),
}

impl GemmParameters {
    /// Where the kernel's one parameter lies, and its bytes.
    pub fn as_raw(&self) -> (*const c_void, usize) {
        match self {
            Self::Sm90(p) => ((&raw const **p).cast(), size_of::<Sm90Parameters>()),
            Self::Sm80(p) => ((&raw const **p).cast(), size_of::<Sm80Parameters>()),
        }
    }
}

/// A plan on a device that runs this many clusters at once: everything of a launch that needs no device.
#[derive(Clone, Copy, Debug)]
pub struct GemmLaunch {
    plan: Plan,
    tile: Tile,
    clusters: usize,
}

impl GemmLaunch {
    /// `clusters` of the plan's clusters run at once.
    pub fn new(plan: Plan, clusters: usize) -> Self {
        Self { plan, tile: plan.instance.tile(), clusters }
    }

    /// The instance and its split of the product.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Its instance's tile.
    pub fn tile(&self) -> &Tile {
        &self.tile
    }

    /// The schedule for a shape.
    pub fn schedule(&self, m: usize, n: usize, k: usize) -> Schedule {
        Schedule::new(&self.tile, (m, n, k), self.clusters, self.plan.stream_k)
    }

    /// CTAs of a launch.
    pub fn ctas(&self, schedule: &Schedule) -> usize {
        schedule.clusters(self.clusters) * self.tile.ctas_in_cluster()
    }

    /// Bytes of the workspace for a shape: partial sums, then counters. The counters must be zero before the first
    /// launch; every launch leaves them zero.
    pub fn workspace_bytes(&self, m: usize, n: usize, k: usize) -> (usize, usize) {
        let s = self.schedule(m, n, k);
        (self.partial_bytes(s.stream_k_clusters as usize), self.counter_bytes(s.stream_k_tiles as usize))
    }

    /// Bytes of a workspace for `n` output channels that serves every number of tokens and input channels.
    pub(super) fn most_workspace_bytes(&self, n: usize) -> (usize, usize) {
        if !self.plan.stream_k {
            return (0, 0);
        }
        // Fewer tiles than clusters are cut, or one row of tiles.
        let tiles = self.clusters.max(n.div_ceil(self.tile.channels));
        (self.partial_bytes(self.clusters), self.counter_bytes(tiles))
    }

    /// Each of the clusters has at most two parts of tiles.
    fn partial_bytes(&self, clusters: usize) -> usize {
        clusters * 2 * self.tile.channels * self.tile.tokens * 4
    }

    fn counter_bytes(&self, tiles: usize) -> usize {
        tiles * self.tile.multicast * self.tile.warpgroups * 4
    }

    /// What the kernel is given; `encode` makes the tensor maps.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when there are no tokens, an address is missing or not aligned, or there are too few input
    /// channels for the plan; those of `encode`.
    pub fn parameters(
        &self,
        o: &GemmOperands,
        schedule: Schedule,
        workspace: (u64, u64),
        encode: impl Fn(&TiledMatrix) -> Result<TensorMap>,
    ) -> Result<GemmParameters> {
        let tile = &self.tile;
        o.check(tile.types.activation())?;
        if !tile.takes(o.k) {
            return Err(CudaError::Shape(format!(
                "{} input channels cannot be cut into {} parts of at least {}",
                o.k,
                tile.cluster_split_k,
                tile.types.k_tile()
            )));
        }
        Ok(match &self.plan.instance {
            Instance::Sm90(c) => {
                GemmParameters::Sm90(Box::new(sm90_parameters(c, o, workspace, schedule, encode)?))
            }
            Instance::Sm80(_) => GemmParameters::Sm80(Box::new(sm80_parameters(o, workspace, schedule))),
        })
    }
}

/// A compiled and loaded instance.
#[derive(Clone, Debug)]
pub(super) struct GemmKernel {
    launch: GemmLaunch,
    kernel: Arc<Kernel>,
}

impl GemmKernel {
    /// Compiles (or takes from the cache) and loads the instance.
    ///
    /// # Errors
    /// When the instance is not for this GPU, NVRTC is needed and missing, or the driver refuses the kernel.
    pub(super) fn new(device: &Device, plan: Plan) -> Result<Self> {
        if matches!(plan.instance, Instance::Sm90(_)) && device.arch()? != Arch::Sm90a {
            let (major, minor) = device.capability();
            return Err(CudaError::Device(format!(
                "{} has compute capability {major}.{minor}: the wgmma kernel runs on Hopper GPUs (9.0) alone",
                device.name()
            )));
        }
        let tile = plan.instance.tile();
        let kernel = device.kernel(&plan.instance.source(), tile.shared_bytes)?;
        // What the device can run at once, asked of the driver for this very kernel.
        let ctas = device.sms() * plan.ctas_per_sm();
        let in_cluster = tile.ctas_in_cluster();
        let clusters = if in_cluster == 1 {
            ctas
        } else {
            let most = kernel.max_active_clusters(tile.threads, tile.shared_bytes, in_cluster)?;
            most.min(ctas / in_cluster).max(1)
        };
        Ok(Self { launch: GemmLaunch::new(plan, clusters), kernel })
    }

    /// Everything of a launch but the device.
    pub(super) fn plan(&self) -> &GemmLaunch {
        &self.launch
    }

    /// As [`GemmPlans::launch`](super::GemmPlans::launch), with the addresses of partial sums and counters.
    ///
    /// # Safety
    /// The operands must be device memory of the sizes given, `workspace` that of [`GemmLaunch::workspace_bytes`]
    /// (0 where that is 0), not in use by another launch at the same time; with `overlap`, no launch that may still run
    /// writes the weights.
    pub(super) unsafe fn launch(
        &self,
        stream: sys::CUstream,
        o: &GemmOperands,
        workspace: (u64, u64),
        overlap: bool,
    ) -> Result<()> {
        let schedule = self.launch.schedule(o.m, o.n, o.k);
        let parameters = self.launch.parameters(o, schedule, workspace, TiledMatrix::encode)?;
        let tile = self.launch.tile();
        let shape = (self.launch.ctas(&schedule), tile.threads, tile.shared_bytes);
        // SAFETY: this is the kernel's one parameter, which the driver copies; the caller vouches for the memory.
        unsafe {
            let parameters = parameters.as_raw().0.cast_mut();
            self.kernel.launch(stream, shape, tile.ctas_in_cluster(), overlap, &mut [parameters])
        }
    }
}

fn sm90_parameters(
    c: &Sm90Config,
    o: &GemmOperands,
    workspace: (u64, u64),
    schedule: Schedule,
    encode: impl Fn(&TiledMatrix) -> Result<TensorMap>,
) -> Result<Sm90Parameters> {
    let activation = c.types.activation();
    let box_tokens = box_tokens(c, o.m);
    let tile = (box_tokens, c.types.k_tile());
    let x = TiledMatrix { address: o.x, element: activation, shape: (o.m, o.k), tile };
    let y = TiledMatrix {
        address: o.y,
        element: c.types.output(),
        shape: (o.m, o.n),
        tile: (c.staging_tokens(), 64),
    };
    Ok(Sm90Parameters {
        x: encode(&x)?,
        y: encode(&y)?,
        weights: o.weights,
        channel_scale: o.channel_scale,
        token_scale: o.token_scale,
        bias: o.bias,
        partials: workspace.0,
        counters: workspace.1,
        m: o.m as i32,
        n: o.n as i32,
        box_tokens: box_tokens as i32,
        last_token: last_token(c, o.m, &schedule),
        schedule,
    })
}

/// Tokens that each CTA of those that share a tile's by multicast brings. A box has no rows outside where that can be helped:
/// the copy engine is slow to fill them.
fn box_tokens(c: &Sm90Config, m: usize) -> usize {
    let most = c.tokens / c.multicast;
    // Parts of one tile begin where the swizzle does.
    let each = if c.multicast == 1 { m } else { m.div_ceil(c.multicast).next_multiple_of(8) };
    each.min(most)
}

/// First token of the last tile at most, so that it is full, for the same reason. Two tiles then give the outputs of the tokens
/// that they share, which are the same bits unless 16-bit products are cut along K at places that depend on the tile.
fn last_token(c: &Sm90Config, m: usize, schedule: &Schedule) -> i32 {
    let same_sums = c.types.activation() == DType::I8 || schedule.stream_k_tiles == 0;
    if same_sums && m > c.tokens { (m - c.tokens) as i32 } else { i32::MAX }
}

fn sm80_parameters(o: &GemmOperands, workspace: (u64, u64), schedule: Schedule) -> Sm80Parameters {
    Sm80Parameters {
        x: o.x,
        y: o.y,
        weights: o.weights,
        channel_scale: o.channel_scale,
        token_scale: o.token_scale,
        bias: o.bias,
        partials: workspace.0,
        counters: workspace.1,
        m: o.m as i32,
        n: o.n as i32,
        k: o.k as i32,
        schedule,
    }
}
