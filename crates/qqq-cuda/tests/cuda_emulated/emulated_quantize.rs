//! The kernels that quantize activations, and those that pack weights.

use std::ffi::OsString;

use crate::emulator::{Emulator, Memory, Region, Shape};
use crate::everything;
use crate::packing::{Packing, PackingOutputs};
use crate::quantized::{Case, EPSILON, Outputs, Residual};
use qqq_backend::pool::parallel_for;
use qqq_cuda::DType;
use qqq_cuda::gemm::prepack::{self, Direction};
use qqq_cuda::gemm::{PrepackKernel, PrepackOperands, WeightKind};
use qqq_cuda::quantize::{Operation, QuantizeConfig, QuantizeOperands};

/// One block after the other.
fn shape((blocks, threads): (usize, usize)) -> Shape {
    Shape { blocks, threads, cluster: 1, shared_bytes: 0, together: false }
}

fn raw<T>(parameters: &T) -> (*const std::ffi::c_void, usize) {
    ((&raw const *parameters).cast(), size_of::<T>())
}

pub fn activations_are_those_of_float64(compiler: OsString) {
    // Seven widths for each operation, type and precision: every third meets all of them.
    let step = if everything() { 1 } else { 3 };
    let configs: Vec<_> = QuantizeConfig::all().into_iter().step_by(step).collect();
    let sources: Vec<_> = configs.iter().map(QuantizeConfig::source).collect();
    let emulator = Emulator::new(&compiler, sources);
    parallel_for(configs.len(), |i| {
        let config = configs[i];
        let widest = if config.vectors == 0 { 65536 } else { config.row_threads * config.vectors * 8 };
        let norms = [DType::F16, DType::BF16, DType::F32];
        let normalizes = config.operation == Operation::RmsNorm;
        // The widest row, and one that leaves threads without work.
        for (j, (m, k)) in [(2, widest), (5, widest / 2 + 16)].into_iter().enumerate() {
            let residual = if normalizes { Residual::ALL[(i + j) % 3] } else { Residual::None };
            let case = Case::new(config, m, k, residual);
            run(&emulator, &case, norms[(i / 3 + j) % 3], (2 * i + j) as u64);
        }
    });
}

fn run(emulator: &Emulator, case: &Case, norm_type: DType, seed: u64) {
    let mut memory = Memory::default();
    let poison = case.poison();
    let x = memory.upload(&case.x);
    let norm = memory.upload(&case.norm(norm_type).0);
    let [residual, new_residual] =
        [poison.residual, poison.new_residual].map(|r| r.map(|r| memory.upload(&r)));
    let [q, scale, sum] =
        [memory.upload(&poison.q), memory.upload(&poison.scale), memory.upload(&poison.sum)];
    let operands = QuantizeOperands {
        x: x.address,
        residual: residual.map_or(0, |r| r.address),
        new_residual: new_residual.or(residual).map_or(0, |r| r.address),
        norm: if case.config.operation == Operation::RmsNorm { norm.address } else { 0 },
        norm_type,
        epsilon: EPSILON,
        q: q.address,
        scale: scale.address,
        sum: sum.address,
        m: case.m,
    };
    let parameters = operands.parameters(&case.config, case.k).unwrap();
    // The launch before may write whatever this one reads or writes.
    let late: Vec<Region> = memory.regions();
    let shape = shape(case.config.launch_shape(case.m));
    let source = case.config.source();
    emulator.launch(&source, shape, raw(&parameters), &memory, &late, seed).expect(&source.name);
    let outputs = Outputs {
        q: memory.download(q),
        scale: memory.download(scale),
        sum: memory.download(sum),
        residual: residual.map(|r| memory.download(r)),
        new_residual: new_residual.map(|r| memory.download(r)),
    };
    case.check(&outputs, norm_type);
}

pub fn weights_are_packed_as_on_the_host(compiler: OsString) {
    let kinds = WeightKind::ALL;
    let sources = |direction| kinds.iter().map(move |k| prepack::source(*k, direction));
    let sources: Vec<_> = sources(Direction::Pack).chain(sources(Direction::Unpack)).collect();
    let emulator = Emulator::new(&compiler, sources);
    parallel_for(kinds.len(), |i| {
        let group = kinds[i].group_size().unwrap_or(16);
        for (n, k) in [(64, 128), (80, group), (208, 256 + group)] {
            check_packing(&emulator, &Packing::new(kinds[i], n, k));
        }
    });
}

fn check_packing(emulator: &Emulator, weights: &Packing) {
    let Packing { kind, n, k, .. } = *weights;
    let mut memory = Memory::default();
    let neutral = [&weights.codes, &weights.scales, &weights.channel].map(|b| memory.upload(b));
    let poison = weights.poison();
    let back = [&poison.codes, &poison.scales, &poison.channel].map(|b| memory.upload(b));
    let [weight_tiles, padded] = [&poison.weight_tiles, &poison.padded].map(|b| memory.upload(b));
    for (direction, [codes, scales, channel]) in [(Direction::Pack, neutral), (Direction::Unpack, back)] {
        let operands = PrepackOperands {
            codes: codes.address,
            scales: if kind.group_size().is_some() { scales.address } else { 0 },
            weight_tiles: weight_tiles.address,
            channel_scale: channel.address,
            padded_scale: padded.address,
            n,
            k,
        };
        let parameters = operands.parameters(kind).unwrap();
        let shape = shape(PrepackKernel::launch_shape(kind, n, k));
        let source = prepack::source(kind, direction);
        emulator.launch(&source, shape, raw(&parameters), &memory, &[], 0).expect(&source.name);
    }
    let [weight_tiles, padded] = [weight_tiles, padded].map(|b| memory.download(b));
    let [codes, scales, channel] = back.map(|b| memory.download(b));
    weights.check(&PackingOutputs { weight_tiles, padded, codes, scales, channel });
}
