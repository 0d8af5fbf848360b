//! Tiny models that are quantized as a whole.

use std::fs;

use qqq_backend::Calibrate;
use qqq_formats::{Checkpoint, writer::Reservation};
use qqq_model::Tokenizer;
use qqq_quant::{
    Output, OutputFormat, Progress, Recipe, Report, Result, calibration::Source, quantize, resume::Resume,
};
use qqq_testing::TinyModel;

/// Where they come to lie.
pub const OUT: &str = "out";

/// Interrupts when something is worked on.
struct StopAt(Option<&'static str>);

impl Progress for StopAt {
    fn step(&mut self, _done: f64, _total: f64, next: &str) -> bool {
        self.0.is_none_or(|stop| !next.contains(stop))
    }

    fn warn(&mut self, message: &str) {
        panic!("{message}");
    }
}

/// Quantizes a model, until something is worked on.
pub fn run<B: Calibrate>(
    b: &B,
    tiny: &TinyModel,
    recipe: &Recipe,
    resume: Option<Resume<'_>>,
    stop: Option<&'static str>,
) -> Result<Report> {
    let checkpoint = Checkpoint::open(&tiny.model()).unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    let reservation = Reservation::take(&tiny.path(OUT)).unwrap();
    // What is simulated has a form of its own.
    let simulated = recipe.simulated.is_some();
    let format = if simulated { OutputFormat::Auto } else { OutputFormat::CompressedTensors };
    let output = Output { format, resume, ..Output::new(&reservation, "tiny") };
    let source = Source::Files(vec![tiny.text()]);
    quantize(b, &checkpoint, &tokenizer, recipe, &source, &output, &mut StopAt(stop))
}

/// The bytes of the weights of what was made, which is removed.
pub fn taken_bytes(tiny: &TinyModel) -> Vec<u8> {
    let out = tiny.path(OUT);
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    fs::remove_dir_all(&out).unwrap();
    bytes
}

/// A model's report, and the bytes of its weights.
pub fn quantized<B: Calibrate>(b: &B, tiny: &TinyModel, recipe: &Recipe) -> (Report, Vec<u8>) {
    let report = run(b, tiny, recipe, None, None).unwrap();
    (report, taken_bytes(tiny))
}
