//! Timing on the device.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::CudaStream;
use qqq_cuda::Result;
use qqq_cuda::timing::{Burst, rough_microseconds};

/// Bursts that are measured.
const BURSTS: usize = 5;
/// What a burst should take, in microseconds: long against a launch, short against the reaction of the power limit.
const BURST_MICROSECONDS: f64 = 5000.0;
/// Pause before each, for the GPU to cool down.
const PAUSE: Duration = Duration::from_millis(30);
/// The same where many kernels are measured in turn.
const PAUSE_IN_TURN: Duration = Duration::from_millis(5);

/// Microseconds of a launch. `launch` is called with a running number and enqueues on `stream`; numbers start at 0 and
/// rotate through a multiple of `period`.
pub(super) fn microseconds(
    stream: &Arc<CudaStream>,
    period: usize,
    launch: impl FnMut(usize) -> Result<()>,
) -> Result<f64> {
    Ok(in_turn(&[burst(stream, period, launch)?])?[0])
}

/// See [`microseconds`].
pub(super) fn burst(
    stream: &Arc<CudaStream>,
    period: usize,
    mut launch: impl FnMut(usize) -> Result<()>,
) -> Result<Burst> {
    let one = rough_microseconds(stream, period, &mut launch)?;
    Burst::new(stream, period, (BURST_MICROSECONDS, one), launch)
}

/// Medians of the microseconds of a launch, of bursts that are measured in turn: what drifts meets all of them alike.
pub(super) fn in_turn(bursts: &[Burst]) -> Result<Vec<f64>> {
    let pause = if bursts.len() > 1 { PAUSE_IN_TURN } else { PAUSE };
    let mut times = vec![Vec::with_capacity(BURSTS); bursts.len()];
    for _ in 0..BURSTS {
        for (times, burst) in times.iter_mut().zip(bursts) {
            std::thread::sleep(pause);
            times.push(burst.microseconds()?);
        }
    }
    Ok(times
        .into_iter()
        .map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[BURSTS / 2]
        })
        .collect())
}
