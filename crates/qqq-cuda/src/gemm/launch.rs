//! Launching the kernel.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys;

use super::{Activation, Instance, OutputType, Plan, Schedule, Sm90Config};
use crate::device::{Device, Kernel};
use crate::tensor_map::{Element, TensorMap, TiledMatrix};
use crate::{Arch, CudaError, Result};

/// The device addresses of a product's operands. All of them must stay valid until the launch has run.
#[derive(Clone, Copy, Debug)]
pub struct GemmOperands {
    /// Activations, `m x k` of the plan's type, row-major, 16-byte aligned.
    pub x: u64,
    /// Scale of each token, `m` float32. Ignored where activations are no int8.
    pub token_scale: u64,
    /// Output, `m x n`, row-major, 16-byte aligned.
    pub y: u64,
    /// Chunks of [`PackedWeights`](super::PackedWeights), 16-byte aligned.
    pub weights: u64,
    /// `ceil(n / 64) * 64` float32.
    pub channel_scale: u64,
    /// `n` float32, or 0.
    pub bias: u64,
    /// Tokens.
    pub m: usize,
    /// Output channels.
    pub n: usize,
    /// Input channels.
    pub k: usize,
}

impl GemmOperands {
    /// That there are tokens, and that addresses are there and aligned.
    fn check(&self, activation: Activation) -> Result<()> {
        if self.m == 0 || self.m > i32::MAX as usize {
            return Err(CudaError::Shape(format!("a product of {} tokens", self.m)));
        }
        for (name, address, alignment, needed) in [
            ("activations", self.x, 16, true),
            ("token scales", self.token_scale, 4, activation == Activation::Int8),
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
    /// The plan.
    pub plan: Plan,
    /// Clusters that the device runs at once.
    pub clusters: usize,
}

impl GemmLaunch {
    /// The schedule for a shape.
    pub fn schedule(&self, m: usize, n: usize, k: usize) -> Schedule {
        Schedule::new(&self.plan.config, m, n, k, self.clusters, self.plan.split)
    }

    /// Blocks of a launch.
    pub fn blocks(&self, m: usize, n: usize, k: usize) -> usize {
        self.schedule(m, n, k).clusters(self.clusters) * self.plan.config.blocks_in_cluster()
    }

    /// Bytes of the workspace for a shape: partial sums, then counters. The counters must be zero before the first launch;
    /// every launch leaves them zero.
    pub fn workspace_bytes(&self, m: usize, n: usize, k: usize) -> (usize, usize) {
        let c = &self.plan.config;
        let s = self.schedule(m, n, k);
        let partials = s.split_clusters as usize * 2 * c.channels() * c.tokens() * 4;
        (partials, s.split_tiles as usize * c.neighbours() * c.warpgroups() * 4)
    }

    /// What the kernel is given; `encode` makes the tensor maps.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when there are no tokens, an address is missing or not aligned, or there are too few input
    /// channels for the plan; those of `encode`.
    pub fn parameters(
        &self,
        o: &GemmOperands,
        workspace: (u64, u64),
        encode: impl Fn(&TiledMatrix) -> Result<TensorMap>,
    ) -> Result<GemmParameters> {
        let c = &self.plan.config;
        o.check(c.types().activation())?;
        if !c.takes(o.k) {
            return Err(CudaError::Shape(format!(
                "{} input channels cannot be cut into {} parts of at least {}",
                o.k,
                c.ranks(),
                c.types().activation().step_columns()
            )));
        }
        let schedule = self.schedule(o.m, o.n, o.k);
        Ok(match c {
            Instance::Sm90(c) => {
                GemmParameters::Sm90(Box::new(sm90_parameters(c, o, workspace, schedule, encode)?))
            }
            Instance::Sm80(_) => GemmParameters::Sm80(Box::new(sm80_parameters(o, workspace, schedule))),
        })
    }
}

/// A compiled and loaded instance.
#[derive(Clone, Debug)]
pub struct GemmKernel {
    /// What it was compiled for.
    pub plan: Plan,
    kernel: Arc<Kernel>,
    clusters: usize,
}

impl GemmKernel {
    /// Compiles (or takes from the cache) and loads the instance.
    ///
    /// # Errors
    /// When the instance is not for this GPU, NVRTC is needed and missing, or the driver refuses the kernel.
    pub fn new(device: &Device, plan: Plan) -> Result<Self> {
        if matches!(plan.config, Instance::Sm90(_)) && device.arch()? != Arch::Sm90a {
            let (major, minor) = device.capability();
            return Err(CudaError::Device(format!(
                "{} has compute capability {major}.{minor}: the wgmma kernel runs on Hopper GPUs (9.0) alone",
                device.name()
            )));
        }
        let c = &plan.config;
        let kernel = device.kernel(&c.source(), c.shared_bytes())?;
        // What the device can run at once, asked of the driver for this very kernel.
        let places = device.multiprocessors() * plan.blocks_per_multiprocessor();
        let clusters = if c.blocks_in_cluster() == 1 {
            places
        } else {
            let most = kernel.max_active_clusters(c.threads(), c.shared_bytes(), c.blocks_in_cluster())?;
            most.min(places / c.blocks_in_cluster()).max(1)
        };
        Ok(Self { plan, kernel, clusters })
    }

    fn launch_plan(&self) -> GemmLaunch {
        GemmLaunch { plan: self.plan, clusters: self.clusters }
    }

    /// The schedule for a shape.
    pub fn schedule(&self, m: usize, n: usize, k: usize) -> Schedule {
        self.launch_plan().schedule(m, n, k)
    }

    /// As [`GemmLaunch::workspace_bytes`].
    pub fn workspace_bytes(&self, m: usize, n: usize, k: usize) -> (usize, usize) {
        self.launch_plan().workspace_bytes(m, n, k)
    }

    /// Bytes of a workspace for `n` output channels that serves every number of tokens and input channels.
    pub(super) fn most_workspace_bytes(&self, n: usize) -> (usize, usize) {
        let c = &self.plan.config;
        if !self.plan.split {
            return (0, 0);
        }
        let partials = self.clusters * 2 * c.channels() * c.tokens() * 4;
        // Fewer tiles than clusters are cut, or one row of tiles.
        let tiles = self.clusters.max(n.div_ceil(c.channels()));
        (partials, tiles * c.neighbours() * c.warpgroups() * 4)
    }

    /// Launches `y = x W^T` on `stream`. With `overlap`, the launch may begin while the one before it on the stream still
    /// runs (programmatic dependent launch): until that one has finished, it only reads weights.
    ///
    /// # Errors
    /// [`CudaError::Shape`] when there are no tokens, an address is missing or not aligned, or there are too few input
    /// channels for the plan; [`CudaError::Driver`] when the driver refuses the launch.
    ///
    /// # Safety
    /// The operands must be device memory of the sizes given, `workspace` that of [`workspace_bytes`](Self::workspace_bytes)
    /// (0 where that is 0), not in use by another launch at the same time; with `overlap`, no launch that may still run
    /// writes the weights.
    pub unsafe fn launch(
        &self,
        stream: sys::CUstream,
        o: &GemmOperands,
        workspace: (u64, u64),
        overlap: bool,
    ) -> Result<()> {
        let c = &self.plan.config;
        let launch = self.launch_plan();
        let parameters = launch.parameters(o, workspace, TiledMatrix::encode)?;
        let shape = (launch.blocks(o.m, o.n, o.k), c.threads(), c.shared_bytes());
        // SAFETY: this is the kernel's one parameter, which the driver copies; the caller vouches for the memory.
        unsafe {
            let parameters = parameters.as_raw().0.cast_mut();
            self.kernel.launch(stream, shape, c.blocks_in_cluster(), overlap, &mut [parameters])
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
    let x = match activation {
        Activation::Int8 => Element::Int8,
        Activation::Float16 => Element::Float16,
        Activation::Bfloat16 => Element::Bfloat16,
    };
    let y = match c.types.output() {
        OutputType::Float16 => Element::Float16,
        OutputType::Bfloat16 => Element::Bfloat16,
    };
    let tile = (c.tokens / c.cluster, activation.step_columns());
    let x = TiledMatrix { address: o.x, element: x, shape: (o.m, o.k), tile };
    let y = TiledMatrix { address: o.y, element: y, shape: (o.m, o.n), tile: (c.staging_tokens(), 64) };
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
        schedule,
    })
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
