//! What the GPU makes of activations and weights before a product: int8 activations against float64 on the host, every
//! instance of the kernel; prepacked weights against those of the host, byte for byte. Needs a GPU that there are
//! kernels for: the tests are reported as ignored without one.

#[path = "common/compile.rs"]
mod compile;
#[path = "common/packing.rs"]
mod packing;
#[path = "common/quantized.rs"]
mod quantized;
#[path = "common/uniform.rs"]
mod uniform;

use std::process::ExitCode;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, DevicePtr};
use qqq_cuda::gemm::prepack::{self, Direction};
use qqq_cuda::gemm::{PrepackKernel, PrepackOperands, WeightKind};
use qqq_cuda::quantize::{Operation, Precision, QuantizeConfig, QuantizeKernel, QuantizeOperands};
use qqq_cuda::{DType, Device};
use qqq_testing::{Missing, Suite, tests};

use compile::compile;
use packing::{Packing, PackingOutputs};
use quantized::{Case, EPSILON, Outputs, Residual};

fn main() -> ExitCode {
    Suite::new()
        .with(device, tests![activations_are_those_of_float64, weights_are_packed_as_on_the_host])
        .run()
}

/// The GPU, if there are kernels for it.
fn device() -> Result<Arc<Device>, Missing> {
    let device = Device::new(0).and_then(|d| d.arch().map(|_| d));
    device.map_err(|e| Missing::Machine(e.to_string()))
}

fn run(device: &Device, case: &Case, norm_type: DType) {
    let stream = device.stream();
    let x = stream.clone_htod(&case.x).unwrap();
    let norm = stream.clone_htod(&case.norm(norm_type).0).unwrap();
    let poison = case.poison();
    let [residual, new_residual] =
        [poison.residual, poison.new_residual].map(|r| r.map(|r| stream.clone_htod(&r).unwrap()));
    let q = stream.clone_htod(&poison.q).unwrap();
    let scale = stream.clone_htod(&poison.scale).unwrap();
    let sum = stream.clone_htod(&poison.sum).unwrap();
    fn address<T>(device: &Device, slice: &CudaSlice<T>) -> u64 {
        slice.device_ptr(device.stream()).0
    }
    let QuantizeConfig { operation, input, precision, .. } = case.config;
    let kernel = QuantizeKernel::new(device, operation, input, precision, case.k).unwrap();
    let operands = QuantizeOperands {
        x: address(device, &x),
        residual: residual.as_ref().map_or(0, |r| address(device, r)),
        new_residual: new_residual.as_ref().or(residual.as_ref()).map_or(0, |r| address(device, r)),
        norm: if operation == Operation::RmsNorm { address(device, &norm) } else { 0 },
        norm_type,
        epsilon: EPSILON,
        q: address(device, &q),
        scale: address(device, &scale),
        sum: address(device, &sum),
        m: case.m,
    };
    // SAFETY: the operands have these sizes.
    unsafe { kernel.launch(stream.cu_stream(), &operands, true) }.unwrap();
    let outputs = Outputs {
        q: stream.clone_dtoh(&q).unwrap(),
        scale: stream.clone_dtoh(&scale).unwrap(),
        sum: stream.clone_dtoh(&sum).unwrap(),
        residual: residual.map(|r| stream.clone_dtoh(&r).unwrap()),
        new_residual: new_residual.map(|r| stream.clone_dtoh(&r).unwrap()),
    };
    case.check(&outputs, norm_type);
}

fn activations_are_those_of_float64(device: Arc<Device>) {
    let configs = QuantizeConfig::all();
    let sources: Vec<_> = configs.iter().map(QuantizeConfig::source).collect();
    compile(&sources, device.arch().unwrap());
    let mut checked = 0;
    for config in configs {
        let widest = if config.vectors == 0 { 65536 } else { config.row_threads * config.vectors * 8 };
        // The widest row, and one that leaves threads without work.
        for (m, k) in [(2, widest), (6, widest / 2 + 16)] {
            assert_eq!(QuantizeConfig::new(config.operation, config.input, config.precision, k), config);
            if config.operation == Operation::RmsNorm {
                for norm in [DType::F16, DType::BF16, DType::F32] {
                    for residual in Residual::ALL {
                        run(&device, &Case::new(config, m, k, residual), norm);
                        checked += 1;
                    }
                }
            } else {
                run(&device, &Case::new(config, m, k, Residual::None), DType::F32);
                checked += 1;
            }
        }
    }
    // The smallest, and many rows.
    for (m, k) in [(1, 16), (4097, 1040)] {
        let config = QuantizeConfig::new(Operation::Plain, DType::F16, Precision::Float32, k);
        run(&device, &Case::new(config, m, k, Residual::None), DType::F32);
    }
    println!("{checked} operations checked");
}

fn weights_are_packed_as_on_the_host(device: Arc<Device>) {
    let kinds = WeightKind::ALL;
    let sources = |direction| kinds.iter().map(move |k| prepack::source(*k, direction));
    let sources: Vec<_> = sources(Direction::Pack).chain(sources(Direction::Unpack)).collect();
    compile(&sources, device.arch().unwrap());
    for kind in kinds {
        let group = kind.group_size().unwrap_or(16);
        for (n, k) in [(64, 128), (80, group), (208, 256 + group), (1040, 1152 + group)] {
            check_packing(&device, &Packing::new(kind, n, k));
        }
    }
}

fn check_packing(device: &Device, weights: &Packing) {
    let Packing { kind, n, k, .. } = *weights;
    let stream = device.stream();
    // Nothing cannot be allocated.
    let upload =
        |bytes: &[u8]| stream.clone_htod(if bytes.is_empty() { &[0u8; 16][..] } else { bytes }).unwrap();
    let neutral = [&weights.codes, &weights.scales, &weights.channel].map(|b| upload(b));
    let poison = weights.poison();
    let back = [&poison.codes, &poison.scales, &poison.channel].map(|b| upload(b));
    let [weight_tiles, padded] = [&poison.weight_tiles, &poison.padded].map(|b| upload(b));
    let address = |s: &CudaSlice<u8>| s.device_ptr(stream).0;
    for (direction, [codes, scales, channel]) in [(Direction::Pack, &neutral), (Direction::Unpack, &back)] {
        let operands = PrepackOperands {
            codes: address(codes),
            scales: if kind.group_size().is_some() { address(scales) } else { 0 },
            weight_tiles: address(&weight_tiles),
            channel_scale: address(channel),
            padded_scale: address(&padded),
            n,
            k,
        };
        let kernel = PrepackKernel::new(device, kind, direction).unwrap();
        // SAFETY: the operands have these sizes.
        unsafe { kernel.launch(stream.cu_stream(), &operands) }.unwrap();
    }
    let [weight_tiles, padded] = [weight_tiles, padded].map(|b| stream.clone_dtoh(&b).unwrap());
    let [codes, scales, channel] = back.map(|b| stream.clone_dtoh(&b).unwrap());
    weights.check(&PackingOutputs { weight_tiles, padded, codes, scales, channel });
}
