//! What layers take on disk, to the byte, before there are any.

use qqq_backend::solve::Scheme;
use qqq_formats::{
    Checkpoint, CheckpointFormat, CodeBits, LayerScheme, ModelConfig, size, writer::CheckpointWriter,
};
use qqq_model::{BlockNorms, Site, Sites, names};

use super::{Budget, Candidate, SiteChoice, site_name};
use crate::{Precision, QuantError, Recipe, Result, Schemes, preflight, run::zeros};

/// Group sizes of 4-bit layers, the coarsest first.
const GROUPS: [usize; 3] = [128, 64, 32];

/// Sizes of a model's layers.
pub(super) struct Sizes {
    /// Sites that no rule decides on: block and place in it, in the order of computation.
    pub free: Vec<(usize, Site)>,
    config: ModelConfig,
    /// What a free site may become, with its bytes, by kind: the smallest first.
    candidates: Sites<Vec<SizedScheme>>,
    /// Layers that rules decide on, and biases of all.
    fixed: Amount,
    /// Bytes of all else: embedding, norms, output head.
    others: u64,
}

/// What a site may become, with its bytes.
type SizedScheme = (Scheme, u64);

/// Of parameters.
#[derive(Clone, Copy, Default)]
struct Amount {
    parameters: u64,
    bytes: u64,
}

impl Amount {
    fn add(&mut self, parameters: u64, bytes: u64) {
        self.parameters += parameters;
        self.bytes += bytes;
    }
}

impl Sizes {
    /// Of what a resolved recipe makes of a model.
    ///
    /// # Errors
    /// Those of its rules; rules that leave nothing to decide; norms that cannot be read.
    pub fn of(checkpoint: &Checkpoint, recipe: &Recipe) -> Result<Self> {
        let config = checkpoint.config.clone();
        let schemes = Schemes::of(&config, recipe)?;
        preflight::check_schemes(&config, &schemes)?;
        let ruled = Schemes::ruled(&config, recipe)?;
        let mut known: Vec<((Site, Scheme), u64)> = Vec::new();
        let mut stored = |site: Site, scheme: Scheme| -> Result<u64> {
            if let Some((_, bytes)) = known.iter().find(|(of, _)| *of == (site, scheme)) {
                return Ok(*bytes);
            }
            let bytes = stored(&config, site, scheme)?;
            known.push(((site, scheme), bytes));
            Ok(bytes)
        };
        let candidates = Sites::try_new(|site| {
            let with_bytes = |scheme| Ok((scheme, stored(site, scheme)?));
            schemes_of(recipe, site.in_features(&config)).into_iter().map(with_bytes).collect::<Result<_>>()
        })?;
        let mut free = Vec::new();
        let mut fixed = Amount::default();
        let mut others = ends(&config, recipe)?;
        for (block, site, scheme) in schemes.all() {
            if site == Site::Qkv {
                let norms = BlockNorms::read(checkpoint, block)?;
                others += norms.named().into_iter().map(|(_, weight)| 2 * weight.len() as u64).sum::<u64>();
            }
            for (module, n) in site.modules(&config) {
                let bias = format!("{}.bias", names::linear(block, module));
                if checkpoint.tensors.info(&bias).is_some() {
                    fixed.add(n as u64, 2 * n as u64);
                }
            }
            let weights = weights(&config, site);
            match scheme {
                _ if !ruled[block][site] => free.push((block, site)),
                Some(scheme) => fixed.add(weights, stored(site, scheme)?),
                None => fixed.add(weights, 2 * weights),
            }
        }
        if free.is_empty() {
            return Err(QuantError::Recipe(
                "the rules decide on every layer: there is nothing that a budget could; leave one of the two out".into(),
            ));
        }
        Ok(Self { free, config, candidates, fixed, others })
    }

    /// What a free site may become, the smallest first.
    pub fn schemes(&self, site: Site) -> impl ExactSizeIterator<Item = Scheme> {
        self.candidates[site].iter().map(|(scheme, _)| *scheme)
    }

    /// Free sites of which nothing is known yet, as small as they can be.
    pub fn sites(&self) -> Vec<SiteChoice> {
        let candidate = |&(scheme, bytes): &SizedScheme| Candidate {
            precision: Precision::of(Some(scheme)),
            bytes,
            kl_divergence: None,
        };
        let of = |&(block, site): &(usize, Site)| {
            let candidates: Vec<_> = self.candidates[site].iter().map(candidate).collect();
            SiteChoice {
                name: site_name(block, site),
                weights: weights(&self.config, site),
                chosen: candidates[0].precision,
                candidates,
            }
        };
        self.free.iter().map(of).collect()
    }

    /// Parameters of all linear layers of the blocks.
    fn parameters(&self) -> u64 {
        self.fixed.parameters + self.free.iter().map(|(_, site)| weights(&self.config, *site)).sum::<u64>()
    }

    /// Bytes of all linear layers of the blocks, with all free ones as small as they can be, and as large.
    fn least_and_most(&self) -> [u64; 2] {
        let sum = |of: fn(&[SizedScheme]) -> Option<&SizedScheme>| {
            let bytes =
                |(_, site): &(usize, Site)| of(&self.candidates[*site]).map_or(0, |(_, bytes)| *bytes);
            self.fixed.bytes + self.free.iter().map(bytes).sum::<u64>()
        };
        [sum(<[_]>::first), sum(<[_]>::last)]
    }

    /// Bytes that a budget leaves beyond the smallest candidate everywhere.
    ///
    /// # Errors
    /// It leaves less than none, or more than 8 bits everywhere need.
    pub fn room(&self, budget: Budget) -> Result<u64> {
        let [least, most] = self.least_and_most();
        let parameters = self.parameters() as f64;
        let bits = |bytes: u64| bytes as f64 * 8.0 / parameters;
        let (bytes, from, to) = match budget {
            // Rounded so that both ends of the range that is told are in it.
            Budget::BitsPerWeight(asked) => (
                (asked * parameters / 8.0).floor(),
                format!("{:.3}", (bits(least) * 1000.0).ceil() / 1000.0),
                format!("{:.3} bits per weight", (bits(most) * 1000.0).floor() / 1000.0),
            ),
            Budget::Bytes(asked) => (
                asked as f64 - self.others as f64,
                format!("{} bytes", least + self.others),
                format!("{} bytes ({})", most + self.others, size::bytes(most + self.others)),
            ),
        };
        if (least as f64..=most as f64).contains(&bytes) {
            return Ok(bytes as u64 - least);
        }
        let smallest = Precision::of(self.schemes(self.free[0].1).next());
        Err(QuantError::Recipe(format!(
            "a budget of {budget} cannot be kept: with every layer on which no rule decides from {smallest} to int8 it is from {from} \
             to {to}; ask for one between{}",
            if bytes < least as f64 {
                ", or for larger groups (--group-size), whose range begins lower"
            } else {
                ", or for --bits 8 --group-size channel"
            }
        )))
    }

    /// What these sites and the layers that rules decide on take.
    pub fn bits_per_weight(&self, sites: &[SiteChoice]) -> f64 {
        let bytes = self.fixed.bytes + sites.iter().map(SiteChoice::bytes).sum::<u64>();
        bytes as f64 * 8.0 / self.parameters() as f64
    }
}

/// What a site of `k` inputs on which no rule decides may become: 4 bits in the recipe's groups, in smaller ones, and 8 bits.
fn schemes_of(recipe: &Recipe, k: usize) -> Vec<Scheme> {
    let own = Scheme { bits: CodeBits::Four, activations: recipe.activations, group_size: recipe.group_size };
    let coarsest = recipe.group_size.unwrap_or(k);
    let finer = GROUPS.into_iter().filter(|&group| group < coarsest && k.is_multiple_of(group));
    let finer = finer.map(|group| Scheme { group_size: Some(group), ..own });
    let eight = Scheme { bits: CodeBits::Eight, group_size: None, ..own };
    std::iter::once(own).chain(finer).chain([eight]).collect()
}

fn weights(config: &ModelConfig, site: Site) -> u64 {
    (site.out_features(config) * site.in_features(config)) as u64
}

/// Codes and scales of a site's modules, as the writer counts them.
fn stored(config: &ModelConfig, site: Site, scheme: Scheme) -> Result<u64> {
    let modules = site.modules(config).into_iter().map(|(module, n)| (names::linear(0, module), n));
    stored_modules(modules, site.in_features(config), scheme)
}

/// The same of modules with their output channels, which take `k` inputs.
fn stored_modules(
    modules: impl IntoIterator<Item = (String, usize)>,
    k: usize,
    scheme: Scheme,
) -> Result<u64> {
    let mut writer = CheckpointWriter::counting();
    let form = LayerScheme::new(
        CheckpointFormat::CompressedTensors,
        scheme.bits,
        scheme.activations,
        scheme.group_size,
    )?;
    for (module, n) in modules {
        writer.add_linear(&module, &zeros(n, k, scheme), form)?;
    }
    Ok(writer.tensors().map(|(_, bytes)| bytes).sum())
}

/// Embedding and last norm in 16 bits, and the output head, where it has a tensor of its own.
fn ends(config: &ModelConfig, recipe: &Recipe) -> Result<u64> {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let head = match recipe.head.scheme() {
        Some(scheme) => stored_modules([(names::LM_HEAD_MODULE.to_owned(), vocab)], hidden, scheme)?,
        None if recipe.separates_head(config) => 2 * (vocab * hidden) as u64,
        None => 0,
    };
    Ok(2 * (vocab * hidden + hidden) as u64 + head)
}
