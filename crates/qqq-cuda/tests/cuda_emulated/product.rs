//! Products on the emulated GPU.

use qqq_cuda::gemm::{GemmLaunch, GemmOperands, GemmTypes};

use crate::emulator::{Emulator, Memory, Region, Shape, encode};

/// A NaN that no conversion makes, in float16 and in bfloat16.
const POISON: u16 = 0x7FAB;

/// A product to run.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub launch: GemmLaunch,
    pub m: usize,
    /// Fewer channels than a tile has.
    pub narrow: bool,
    pub biased: bool,
    pub seed: u64,
}

impl Case {
    pub fn types(&self) -> GemmTypes {
        self.launch.tile().types
    }

    /// N and K beside the tiles' multiples, where groups allow it.
    pub fn shape(&self) -> (usize, usize) {
        let (n, k) = if self.narrow { (48, 1024) } else { (336, 2048) };
        (n, k + self.types().weights().group_size().unwrap_or(16))
    }

    pub fn bias(&self) -> Option<Vec<f32>> {
        self.biased.then(|| (0..self.shape().0).map(|i| i as f32 * 0.37 - 20.0).collect())
    }
}

/// Launches a product twice, with seeds of their own. Both outputs must be the same.
pub fn product<X: bytemuck::NoUninit>(
    emulator: &Emulator,
    case: &Case,
    (x, token_scale): (&[X], &[f32]),
    (chunks, channel_scale): (&[u8], &[f32]),
) -> Result<Vec<u16>, String> {
    let (launch, m, (n, k)) = (&case.launch, case.m, case.shape());
    let tile = launch.tile();
    let mut memory = Memory::default();
    let (partials, counters) = launch.workspace_bytes(m, n, k);
    let [partials, counters] = [memory.upload(&vec![0x7Eu8; partials]), memory.upload(&vec![0u8; counters])];
    let x = memory.upload(x);
    let token_scale = memory.upload(token_scale);
    let weights = memory.upload(chunks);
    let channel_scale = memory.upload(channel_scale);
    let bias = case.bias().map(|b| memory.upload(&b));
    let y = memory.upload(&vec![POISON; m * n]);
    let operands = GemmOperands {
        x: x.address,
        token_scale: token_scale.address,
        y: y.address,
        weights: weights.address,
        channel_scale: channel_scale.address,
        bias: bias.map_or(0, |b| b.address),
        m,
        n,
        k,
    };
    let workspace = (partials.address, counters.address);
    let schedule = launch.schedule(m, n, k);
    let parameters = launch.parameters(&operands, schedule, workspace, encode).map_err(|e| e.to_string())?;
    let shape = Shape {
        blocks: launch.ctas(&schedule),
        threads: tile.threads,
        cluster: tile.ctas_in_cluster(),
        shared_bytes: tile.shared_bytes,
        together: true,
    };
    // The launch before may have made the tokens, and used the workspace.
    let late: Vec<Region> =
        [x, token_scale, y, partials, counters].into_iter().filter(|r| r.bytes > 0).collect();
    let run = |seed| {
        memory.fill(y, &vec![POISON; m * n]);
        emulator.launch(
            &launch.plan().instance.source(),
            shape,
            parameters.as_raw(),
            &memory,
            &late,
            seed,
        )?;
        if memory.download::<u8>(counters).iter().any(|b| *b != 0) {
            return Err(String::from("counters are not zero after the launch"));
        }
        Ok(memory.download::<u16>(y))
    };
    let first = run(case.seed)?;
    if run(case.seed + 1)? == first { Ok(first) } else { Err(String::from("two launches differ")) }
}
