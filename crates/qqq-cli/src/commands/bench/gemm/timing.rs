//! Timing on the device.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaStream, sys};
use qqq_cuda::{Result, error::driver};

/// Bursts that are measured.
const BURSTS: usize = 5;
/// What a burst should take, in microseconds: long against a launch, short against the reaction of the power limit.
const BURST_MICROSECONDS: f64 = 5000.0;
/// Pause before each, for the GPU to cool down.
const PAUSE: Duration = Duration::from_millis(30);

/// Microseconds of a launch. `launch` is called with a running number and enqueues on `stream`; numbers start at 0 and
/// rotate through a multiple of `period`.
pub(super) fn microseconds(
    stream: &Arc<CudaStream>,
    period: usize,
    mut launch: impl FnMut(usize) -> Result<()>,
) -> Result<f64> {
    let failed = || driver("timing a kernel");
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let (begin, end) = (
        stream.context().new_event(flags).map_err(failed())?,
        stream.context().new_event(flags).map_err(failed())?,
    );
    // Kernels are loaded on the first launch; the second round tells how many make a burst.
    (0..period).try_for_each(&mut launch)?;
    begin.record(stream).map_err(failed())?;
    (0..period).try_for_each(&mut launch)?;
    end.record(stream).map_err(failed())?;
    let one = f64::from(begin.elapsed_ms(&end).map_err(failed())?) * 1e3 / period as f64;
    let launches = ((BURST_MICROSECONDS / one) as usize).clamp(8, 48).next_multiple_of(period);

    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).map_err(failed())?;
    let captured = (0..launches).try_for_each(&mut launch);
    let graph = stream
        .end_capture(sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
        .map_err(failed())?
        .expect("a capture that was begun gives a graph");
    captured?;
    graph.launch().map_err(failed())?;
    stream.synchronize().map_err(failed())?;
    let mut times = Vec::with_capacity(BURSTS);
    for _ in 0..BURSTS {
        std::thread::sleep(PAUSE);
        begin.record(stream).map_err(failed())?;
        graph.launch().map_err(failed())?;
        end.record(stream).map_err(failed())?;
        times.push(f64::from(begin.elapsed_ms(&end).map_err(failed())?) * 1e3 / launches as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[BURSTS / 2])
}
