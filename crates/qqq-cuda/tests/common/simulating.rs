//! Layers whose arithmetic is simulated, on a GPU against the CPU's.

use qqq_backend::CpuBackend;
use qqq_cuda::CudaBackend;
use qqq_testing::values;

use crate::simulated::{input, output, weights};
use crate::{close, unit};

/// Of few rows, and of more rows than are multiplied together.
pub fn simulated_layers(b: CudaBackend) {
    let cpu = CpuBackend::new();
    for (m, n, k) in [(1, 16, 64), (37, 96, 576), (2100, 64, 272)] {
        let x = input(b.half(), (m, k));
        for (i, weight) in weights(b.half(), (n, k)).into_iter().enumerate() {
            let what = format!("{m} x {n} x {k}, {:?}", weight.arithmetic);
            let bias = (i % 2 == 0).then(|| values(n, 5));
            let want = output(&cpu, weight.clone(), bias.clone(), (m, &x));
            let got = output(&b, weight, bias, (m, &x));
            // The output is rounded once.
            let size = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            close(&got, &want, 1.02 * unit(&b), 1e-5 * size, &what);
        }
    }
}
