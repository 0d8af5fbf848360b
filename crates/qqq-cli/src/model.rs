//! Opening the models that a command names.

use std::path::{Path, PathBuf};

use anyhow::Context;
use qqq_backend::{Backend, CpuBackend};
use qqq_cuda::CudaOptions;
use qqq_formats::Checkpoint;
use qqq_model::{
    Decoder, Tokenizer,
    hub::{self, HubOptions},
};

use crate::{
    console::Console,
    device::{CpuPlace, Place},
    download,
    errors::bad_input_hint,
    interrupt,
    loading::Loading,
};

/// How to use the Hugging Face hub.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Hugging Face hub")]
pub struct HubArgs {
    /// Branch, tag or commit of a hub model [default: main]
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    // What the environment says is read where the hub's own tools' rules are known, in the model library.
    /// Access token for private or gated models [default: HF_TOKEN, else the one that the hub's own tools have stored]
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Never use the network: take what earlier downloads have left in the cache [default: as HF_HUB_OFFLINE says]
    #[arg(long)]
    pub offline: bool,
}

impl HubArgs {
    /// For the model library.
    pub fn options(&self) -> HubOptions {
        HubOptions { revision: self.revision.clone(), ..self.data_set_options() }
    }

    /// The same for a data set: the revision is the model's.
    pub fn data_set_options(&self) -> HubOptions {
        HubOptions {
            revision: None,
            token: self.token.clone(),
            offline: self.offline,
            progress: Some(download::show),
        }
    }

    /// Refuses a revision where no model of a command comes from the hub: the files that are here may be any.
    pub fn check(&self, models: &[&str]) -> anyhow::Result<()> {
        match &self.revision {
            Some(revision) if models.iter().all(|spec| Path::new(spec).exists()) => Err(bad_input_hint(
                format!(
                    "--revision {revision} does nothing with {}, which {} not from the hub: leave it out",
                    models.join(" and "),
                    if models.len() == 1 { "is" } else { "are" },
                ),
                "files are used as they lie on the disk; a model of the hub is named owner/name",
            )),
            _ => Ok(()),
        }
    }
}

/// A model, ready to run.
pub struct LoadedModel<B: Backend = CpuBackend> {
    /// As it lies on disk.
    pub checkpoint: Checkpoint,
    /// What makes tokens of texts, from the same files.
    pub tokenizer: Tokenizer,
    /// Its weights in memory.
    pub decoder: Decoder<B>,
}

/// Finds a model and reads its headers.
pub fn open(spec: &str, hub: &HubArgs) -> anyhow::Result<Checkpoint> {
    hub.check(&[spec])?;
    open_checked(spec, hub)
}

/// As [`open`], where the hub's options were [checked](HubArgs::check) for several models.
pub fn open_checked(spec: &str, hub: &HubArgs) -> anyhow::Result<Checkpoint> {
    open_path(&locate(spec, hub)?)
}

/// Where a model lies, after it was fetched if it is on the hub.
///
/// # Errors
/// A name that is none of a model.
pub fn locate(spec: &str, hub: &HubArgs) -> anyhow::Result<PathBuf> {
    let path = Path::new(spec);
    if spec.is_empty() {
        return Err(bad_input_hint("the model's name is empty", MODEL_HINT));
    }
    if path.exists() {
        return Ok(path.to_owned());
    }
    if spec.contains("://") {
        return Err(bad_input_hint(
            format!("{spec}: an address is not the name of a model"),
            "a model on the hub is named owner/name; its branch by --revision, a GGUF file of it by owner/name:file.gguf",
        ));
    }
    if !hub::is_id(spec) {
        return Err(bad_input_hint(format!("{spec}: no such file or directory"), MODEL_HINT));
    }
    Ok(hub::resolve(spec, &hub.options())?)
}

/// The method that a simulated checkpoint stands for.
pub fn simulated(checkpoint: &Checkpoint) -> Option<&'static str> {
    checkpoint.config.quantization.as_ref()?.simulated().map(|s| s.method.name())
}

/// Opens a model, and says so where that is not all of it.
fn open_path(path: &Path) -> anyhow::Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path)?;
    if let (Some(method), Some(console)) = (simulated(&checkpoint), download::console()) {
        console.note(&format!(
            "{}: the arithmetic of {method} is simulated, with 16-bit weights; its speed and size say nothing of the method's",
            path.display()
        ));
    }
    if let (Some(whole), Some(console)) = (checkpoint.config.text_part_of, download::console()) {
        console.note(&format!(
            "{}: the text part of a {whole}; the parts that see or hear are left out",
            path.display()
        ));
    }
    Ok(checkpoint)
}

const MODEL_HINT: &str = "a model is a directory with config.json and safetensors, a .gguf file, or owner/name on the hub \
     (owner/name:file.gguf for a GGUF file of it)";

/// Finds a model and loads it whole.
pub fn load<P: Place>(spec: &str, hub: &HubArgs, place: &P) -> anyhow::Result<LoadedModel<P::Backend>> {
    load_with(spec, hub, place, CudaOptions::default())
}

/// As [`load`], with what can be said to a GPU.
pub fn load_with<P: Place>(
    spec: &str,
    hub: &HubArgs,
    place: &P,
    options: CudaOptions,
) -> anyhow::Result<LoadedModel<P::Backend>> {
    load_opened(spec, place, options, || open(spec, hub))
}

/// As [`load`], where the hub's options were [checked](HubArgs::check) for several models.
pub fn load_checked<P: Place>(
    spec: &str,
    hub: &HubArgs,
    place: &P,
) -> anyhow::Result<LoadedModel<P::Backend>> {
    load_opened(spec, place, CudaOptions::default(), || open_checked(spec, hub))
}

/// Loads the model at a path whole, to run on the CPU.
pub fn load_path(path: &Path) -> anyhow::Result<LoadedModel> {
    load_opened(&path.display().to_string(), &CpuPlace, CudaOptions::default(), || open_path(path))
}

fn load_opened<P: Place>(
    spec: &str,
    place: &P,
    options: CudaOptions,
    open: impl Fn() -> anyhow::Result<Checkpoint>,
) -> anyhow::Result<LoadedModel<P::Backend>> {
    let quiet = Console::new(false, true);
    // What is measured once serves every run on this model of GPU.
    let options = CudaOptions { trials: true, ..options };
    let load = || {
        let checkpoint = open()?;
        let tokenizer = Tokenizer::load(&checkpoint)?;
        let mut loading = Loading::new(download::console().unwrap_or(&quiet));
        let mut decoder = Decoder::load_with(
            place.backend_with(&checkpoint, options)?,
            &checkpoint,
            &mut |done, total| {
                loading.update(done, total, spec);
                // Without a guard the process has ended by now.
                !interrupt::requested()
            },
        )?;
        loading.finish(spec, place, &mut decoder);
        anyhow::Ok(LoadedModel { checkpoint, tokenizer, decoder })
    };
    load().with_context(|| format!("cannot load {spec}"))
}
