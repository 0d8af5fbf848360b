//! Hidden states of the windows in a file: their sizes, the states, and a hash of all.

use std::{
    fs::File,
    hash::Hasher as _,
    io::{self, BufReader, BufWriter, Read, Write},
    path::Path,
};

use qqq_backend::Calibrate;
use qqq_formats::writer::states_file;
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use super::damaged;
use crate::{
    QuantError, Result,
    float_stream::FloatStream,
    held_out::HeldOut,
    output,
    run::Run,
    windows::{Window, Windows},
};

/// Most bytes of the sizes.
const MAX_SIZES: u64 = 1 << 24;

/// What calibration had behind some block.
pub(crate) struct States<B: Calibrate> {
    /// Blocks before it.
    pub blocks: usize,
    /// The calibration windows.
    pub windows: Vec<Window<B>>,
    /// The same in the float model, where that is followed.
    pub float: Vec<Window<B>>,
    /// That of the smoothing search, where there is one.
    pub smoothing_window: Option<Window<B>>,
    /// Held-out windows in the float model.
    pub held_out_float: Vec<Window<B>>,
    /// The same in the quantized one.
    pub held_out: Vec<Window<B>>,
}

#[derive(Serialize, Deserialize)]
struct Sizes {
    /// Tokens of each window whose states follow.
    windows: Vec<usize>,
    /// Whether those of the float model come then, as many.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    float: bool,
    /// Then that of the smoothing search.
    smoothing_window: Option<usize>,
    /// At last held-out windows in the float model, and in the quantized one.
    #[serde(default)]
    held_out: Vec<usize>,
    /// Width of the states.
    hidden: usize,
}

/// Writes the states that a run has behind `blocks` blocks; `tokens`: of each window. The file is not synced.
///
/// # Errors
/// The system's; what the backend says as one of them.
pub(super) fn write<B: Calibrate>(
    directory: &Path,
    blocks: usize,
    run: &Run<'_, B>,
    windows: &Windows<'_, B>,
    tokens: &[usize],
) -> io::Result<File> {
    // Behind the last block only held-out windows are of use.
    let is_last = blocks == run.around.config.num_layers;
    let tokens = if is_last { &[] } else { tokens };
    let smoothing_window = run.smoothing_window.as_ref().filter(|_| !is_last);
    let held_out = run.held_out.as_ref();
    let sizes = Sizes {
        windows: tokens.to_vec(),
        float: run.recipe.follows_float() && !is_last,
        smoothing_window: smoothing_window.map(|_| run.recipe.calibration.smooth_tokens),
        held_out: held_out.map(HeldOut::lengths).unwrap_or_default(),
        hidden: run.around.config.hidden_size,
    };
    let sizes = serde_json::to_vec(&sizes)?;
    let mut out = Hashed::create(&states_file(directory, blocks))?;
    out.write_with_length(&sizes)?;
    let learned = run.float_windows.iter().map(|window| &window.flow.residual);
    let float = run.float_stream.iter().flat_map(FloatStream::states).chain(learned);
    let smoothing_window = smoothing_window.map(|window| &window.flow.residual);
    let held_out = held_out.into_iter().flat_map(HeldOut::states);
    let windows = windows.states().chain(float).filter(|_| !is_last);
    for tensor in windows.chain(smoothing_window).chain(held_out) {
        // One at a time: a device hands out a copy.
        let states = run.around.backend.read(tensor).map_err(|e| io::Error::other(e.to_string()))?;
        out.write_all(bytemuck::cast_slice(&states))?;
    }
    out.end()
}

impl<B: Calibrate> States<B> {
    /// None are needed behind the last of `blocks` blocks.
    pub fn none(blocks: usize) -> Self {
        let none = Vec::new;
        let (windows, float, held_out_float, held_out) = (none(), none(), none(), none());
        Self { blocks, windows, float, smoothing_window: None, held_out_float, held_out }
    }

    /// The states behind `blocks` blocks; `None` if they are not there.
    ///
    /// # Errors
    /// A file that is damaged; those of the backend.
    pub fn read(b: &B, directory: &Path, blocks: usize) -> Result<Option<Self>> {
        let path = states_file(directory, blocks);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|e| output::io(&path, e))?,
        };
        let read = Self::read_file(b, directory, (&path, file), blocks);
        read.map(Some).map_err(|e| match e {
            QuantError::Resume(what) => QuantError::Resume(format!(
                "{what}; if {} is deleted, the finished blocks are run again instead",
                path.display()
            )),
            e => e,
        })
    }

    fn read_file(b: &B, directory: &Path, (path, file): (&Path, File), blocks: usize) -> Result<Self> {
        let bytes = file.metadata().map_err(|e| output::io(path, e))?.len();
        let mut reader = Reader::new(directory, path, file);
        let mut length = [0; 8];
        reader.read(&mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_SIZES {
            return Err(damaged(directory, "the sizes of its states are no sizes"));
        }
        let mut sizes = vec![0; length as usize];
        reader.read(&mut sizes)?;
        let sizes: Sizes = serde_json::from_slice(&sizes).map_err(|e| damaged(directory, &e.to_string()))?;
        // Before memory is taken for what a damaged file says.
        if sizes.bytes().is_none_or(|states| states > bytes) {
            return Err(damaged(directory, "it ends too early"));
        }
        let mut window = |tokens: usize| {
            let mut states = vec![0f32; tokens * sizes.hidden];
            reader.read(bytemuck::cast_slice_mut(&mut states))?;
            Window::new(b, b.upload(tokens, sizes.hidden, states)?, tokens)
        };
        let mut all =
            |sizes: &[usize]| sizes.iter().map(|tokens| window(*tokens)).collect::<Result<Vec<_>>>();
        let windows = all(&sizes.windows)?;
        let float = if sizes.float { all(&sizes.windows)? } else { Vec::new() };
        let smoothing_window = all(sizes.smoothing_window.as_slice())?.pop();
        let (held_out_float, held_out) = (all(&sizes.held_out)?, all(&sizes.held_out)?);
        reader.end()?;
        Ok(Self { blocks, windows, float, smoothing_window, held_out_float, held_out })
    }
}

impl Sizes {
    /// Bytes of all states; `None` if nothing counts so far.
    fn bytes(&self) -> Option<u64> {
        let streams = if self.float { 2 } else { 1 };
        let sum = |sizes: &[usize]| sizes.iter().try_fold(0usize, |sum, tokens| sum.checked_add(*tokens));
        let held_out =
            sum(&self.held_out)?.checked_mul(2)?.checked_add(self.smoothing_window.unwrap_or(0))?;
        let tokens = sum(&self.windows)?.checked_mul(streams)?.checked_add(held_out)?;
        u64::try_from(tokens.checked_mul(self.hidden)?).ok()?.checked_mul(4)
    }
}

/// Hashes what it writes.
pub(super) struct Hashed {
    file: BufWriter<File>,
    hash: XxHash3_64,
}

impl Hashed {
    /// A new file.
    ///
    /// # Errors
    /// The system's.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: BufWriter::new(File::create(path)?), hash: XxHash3_64::new() })
    }

    /// Writes how many bytes follow, and these.
    ///
    /// # Errors
    /// The system's.
    pub fn write_with_length(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(&(bytes.len() as u64).to_le_bytes())?;
        self.write_all(bytes)
    }

    /// Writes the hash of all that was written.
    ///
    /// # Errors
    /// The system's.
    pub fn end(mut self) -> io::Result<File> {
        let hash = self.hash.finish();
        self.file.write_all(&hash.to_le_bytes())?;
        self.file.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.write(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Hashes what it reads of what a run has left.
pub(super) struct Reader<'a> {
    directory: &'a Path,
    path: &'a Path,
    file: BufReader<File>,
    hash: XxHash3_64,
}

impl<'a> Reader<'a> {
    /// Of a file at its start.
    pub fn new(directory: &'a Path, path: &'a Path, file: File) -> Self {
        Self { directory, path, file: BufReader::new(file), hash: XxHash3_64::new() }
    }

    /// Fills `bytes`.
    ///
    /// # Errors
    /// The system's; a file that ends before.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.file.read_exact(bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => damaged(self.directory, "it ends too early"),
            _ => output::io(self.path, e),
        })?;
        self.hash.write(bytes);
        Ok(())
    }

    /// That the hash of all that was read comes next, and then nothing.
    ///
    /// # Errors
    /// It does not.
    pub fn end(mut self) -> Result<()> {
        let mut end = Vec::new();
        self.file.read_to_end(&mut end).map_err(|e| output::io(self.path, e))?;
        match end.len() {
            0..8 => Err(damaged(self.directory, "it ends too early")),
            _ if end != self.hash.finish().to_le_bytes() => {
                Err(damaged(self.directory, "its hash is not that of its content"))
            }
            _ => Ok(()),
        }
    }
}
