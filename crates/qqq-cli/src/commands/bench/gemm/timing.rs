//! Timing on the device.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaEvent, CudaGraph, CudaStream, sys};
use qqq_cuda::{Result, error::driver};

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
    let burst = Burst::new(stream, period, launch)?;
    Ok(in_turn(&[burst])?[0])
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

/// Launches in a CUDA graph, between two events.
pub(super) struct Burst {
    graph: CudaGraph,
    stream: Arc<CudaStream>,
    begin: CudaEvent,
    end: CudaEvent,
    launches: usize,
}

impl Burst {
    /// See [`microseconds`]. What the launches read and write must live as long.
    pub(super) fn new(
        stream: &Arc<CudaStream>,
        period: usize,
        mut launch: impl FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        let failed = || driver("timing a kernel");
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = || stream.context().new_event(flags).map_err(failed());
        let (begin, end) = (event()?, event()?);
        // Kernels are loaded on the first launch; the second round tells how many make a burst.
        (0..period).try_for_each(&mut launch)?;
        begin.record(stream).map_err(failed())?;
        (0..period).try_for_each(&mut launch)?;
        end.record(stream).map_err(failed())?;
        let one = f64::from(begin.elapsed_ms(&end).map_err(failed())?) * 1e3 / period as f64;
        let launches = ((BURST_MICROSECONDS / one) as usize).clamp(8, 48).next_multiple_of(period);

        stream
            .begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(failed())?;
        let captured = (0..launches).try_for_each(&mut launch);
        let graph = stream
            .end_capture(sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH)
            .map_err(failed())?
            .expect("a capture that was begun gives a graph");
        captured?;
        graph.launch().map_err(failed())?;
        stream.synchronize().map_err(failed())?;
        Ok(Self { graph, stream: stream.clone(), begin, end, launches })
    }

    /// One burst: microseconds of a launch.
    fn microseconds(&self) -> Result<f64> {
        let failed = || driver("timing a kernel");
        self.begin.record(&self.stream).map_err(failed())?;
        self.graph.launch().map_err(failed())?;
        self.end.record(&self.stream).map_err(failed())?;
        Ok(f64::from(self.begin.elapsed_ms(&self.end).map_err(failed())?) * 1e3 / self.launches as f64)
    }
}
