//! Timing launches on a device.

use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaGraph, CudaStream, sys};

use crate::error::{Result, driver};

const TIMING: &str = "timing a kernel";
/// Fewest and most launches of a burst.
const LAUNCHES: (usize, usize) = (8, 48);

/// Memory that all copies of what launches read should fill, in bytes: several times the L2 cache.
const ROTATE: usize = 200 << 20;

/// How many copies of `bytes` launches take in turn to read them from memory, as in a model: 2 to `most`.
pub fn rotating_copies(bytes: usize, most: usize) -> usize {
    (ROTATE / bytes + 1).clamp(2, most)
}

/// Launches in a CUDA graph, between two events: the host's share of a launch is not measured.
pub struct Burst {
    graph: CudaGraph,
    stream: Arc<CudaStream>,
    begin: CudaEvent,
    end: CudaEvent,
    launches: usize,
}

/// Microseconds of a launch, from `period` of them in a row, after as many that load the kernel: where launches are short, the
/// host's share is in it.
///
/// # Errors
/// Those of `launch`, and what the driver refuses.
pub fn rough_microseconds(
    stream: &Arc<CudaStream>,
    period: usize,
    mut launch: impl FnMut(usize) -> Result<()>,
) -> Result<f64> {
    let (begin, end) = events(stream)?;
    (0..period).try_for_each(&mut launch)?;
    begin.record(stream).map_err(driver(TIMING))?;
    (0..period).try_for_each(&mut launch)?;
    end.record(stream).map_err(driver(TIMING))?;
    Ok(f64::from(begin.elapsed_ms(&end).map_err(driver(TIMING))?) * 1e3 / period as f64)
}

fn events(stream: &Arc<CudaStream>) -> Result<(CudaEvent, CudaEvent)> {
    let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let event = || stream.context().new_event(flags).map_err(driver(TIMING));
    Ok((event()?, event()?))
}

impl Burst {
    /// Launches that take some `microseconds` together, where one takes about `one`
    /// ([`rough_microseconds`]). `launch` is called with a running number and enqueues on `stream`; numbers start at 0 and rotate
    /// through a multiple of `period`. What the launches read and write must live as long as the burst.
    ///
    /// # Errors
    /// Those of `launch`, and what the driver refuses.
    pub fn new(
        stream: &Arc<CudaStream>,
        period: usize,
        (microseconds, one): (f64, f64),
        mut launch: impl FnMut(usize) -> Result<()>,
    ) -> Result<Self> {
        let failed = || driver(TIMING);
        let (begin, end) = events(stream)?;
        let launches = ((microseconds / one) as usize).clamp(LAUNCHES.0, LAUNCHES.1).next_multiple_of(period);
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
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn microseconds(&self) -> Result<f64> {
        let failed = || driver(TIMING);
        self.begin.record(&self.stream).map_err(failed())?;
        self.graph.launch().map_err(failed())?;
        self.end.record(&self.stream).map_err(failed())?;
        Ok(f64::from(self.begin.elapsed_ms(&self.end).map_err(failed())?) * 1e3 / self.launches as f64)
    }
}
