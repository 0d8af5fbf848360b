//! What layers take on disk, to the byte, before there are any.

use qqq_backend::solve::Scheme;
use qqq_formats::{
    Checkpoint, CheckpointFormat, CodeBits, LayerScheme, ModelConfig, size, writer::CheckpointWriter,
};
use qqq_model::{BlockNorms, Site, names};

use super::{Budget, SiteChoice, site_name};
use crate::{QuantError, Recipe, Result, Schemes, Transform, preflight, run::zeros};

/// Sizes of a model's layers.
pub(super) struct Sizes {
    /// Sites that no rule decides on: block and place in it, in the order of computation.
    pub free: Vec<(usize, Site)>,
    /// What each of them becomes in 4 bits, and in 8.
    pub schemes: [Scheme; 2],
    config: ModelConfig,
    /// Bytes of a free site in 4 bits and in 8, by kind.
    bytes: [[u64; 2]; 4],
    /// Bytes and weights of the layers that rules quantize.
    ruled: (u64, u64),
    /// Bytes of all that is no code or scale of a quantized layer.
    others: u64,
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
        let four =
            Scheme { bits: CodeBits::Four, activations: recipe.activations, group_size: recipe.group_size };
        let pair = [four, Scheme { bits: CodeBits::Eight, group_size: None, ..four }];
        let mut known: Vec<((Site, Scheme), u64)> = Vec::new();
        let mut bytes_of = |site: Site, scheme: Scheme| -> Result<u64> {
            if let Some((_, bytes)) = known.iter().find(|(of, _)| *of == (site, scheme)) {
                return Ok(*bytes);
            }
            let bytes = stored(&config, site, scheme)?;
            known.push(((site, scheme), bytes));
            Ok(bytes)
        };
        let mut bytes = [[0; 2]; 4];
        let mut free = Vec::new();
        let (mut ruled_bytes, mut ruled_weights) = (0, 0);
        let mut others = ends(&config, recipe.transform == Transform::Rotate);
        for (block, site, scheme) in schemes.all() {
            if site == Site::Qkv {
                let norms = BlockNorms::read(checkpoint, block)?;
                others += norms.named().into_iter().map(|(_, weight)| 2 * weight.len() as u64).sum::<u64>();
            }
            for (module, n) in site.modules(&config) {
                let bias = format!("{}.bias", names::linear(block, module));
                if checkpoint.tensors.info(&bias).is_some() {
                    others += 2 * n as u64;
                }
            }
            match scheme {
                _ if !ruled[block][site] => {
                    bytes[site as usize] = [bytes_of(site, pair[0])?, bytes_of(site, pair[1])?];
                    free.push((block, site));
                }
                Some(scheme) => {
                    ruled_bytes += bytes_of(site, scheme)?;
                    ruled_weights += weights(&config, site);
                }
                None => others += 2 * weights(&config, site),
            }
        }
        if free.is_empty() {
            return Err(QuantError::Recipe(
                "the rules decide on every layer: there is nothing that a budget could; leave one of the two out".into(),
            ));
        }
        Ok(Self { free, schemes: pair, config, bytes, ruled: (ruled_bytes, ruled_weights), others })
    }

    /// Free sites of which nothing is known yet, in 4 bits.
    pub fn sites(&self) -> Vec<SiteChoice> {
        let of = |&(block, site): &(usize, Site)| {
            let [bytes_4, bytes_8] = self.bytes[site as usize];
            SiteChoice {
                name: site_name(block, site),
                weights: weights(&self.config, site),
                bytes_4,
                bytes_8,
                kl_divergence_4: None,
                kl_divergence_8: None,
                bits: CodeBits::Four,
            }
        };
        self.free.iter().map(of).collect()
    }

    /// Weights of all quantized layers.
    fn weights(&self) -> u64 {
        self.ruled.1 + self.free.iter().map(|(_, site)| weights(&self.config, *site)).sum::<u64>()
    }

    /// Codes and scales of all quantized layers, with all free ones in 4 bits, or in 8.
    fn least_and_most(&self) -> [u64; 2] {
        [0, 1].map(|i| {
            self.ruled.0 + self.free.iter().map(|(_, site)| self.bytes[*site as usize][i]).sum::<u64>()
        })
    }

    /// Bytes that a budget leaves beyond 4 bits everywhere.
    ///
    /// # Errors
    /// It leaves less than none, or more than 8 bits everywhere need.
    pub fn room(&self, budget: Budget) -> Result<u64> {
        let [least, most] = self.least_and_most();
        let weights = self.weights() as f64;
        let bits = |bytes: u64| bytes as f64 * 8.0 / weights;
        let (bytes, from, to) = match budget {
            // Rounded so that both ends of the range that is told are in it.
            Budget::BitsPerWeight(asked) => (
                (asked * weights / 8.0).floor(),
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
        Err(QuantError::Recipe(format!(
            "a budget of {budget} cannot be kept: 4 bits for every layer on which no rule decides and 8 bits for every one take from \
             {from} to {to}; ask for one between{}",
            if bytes < least as f64 {
                ", or for larger groups"
            } else {
                ", or for --bits 8 --group-size channel"
            }
        )))
    }

    /// What these sites and the others take.
    pub fn bits_per_weight(&self, sites: &[SiteChoice]) -> f64 {
        let of = |site: &SiteChoice| if site.bits == CodeBits::Eight { site.bytes_8 } else { site.bytes_4 };
        (self.ruled.0 + sites.iter().map(of).sum::<u64>()) as f64 * 8.0 / self.weights() as f64
    }
}

fn weights(config: &ModelConfig, site: Site) -> u64 {
    (site.out_features(config) * site.in_features(config)) as u64
}

/// Codes and scales of a site's modules, as the writer counts them.
fn stored(config: &ModelConfig, site: Site, scheme: Scheme) -> Result<u64> {
    let mut writer = CheckpointWriter::counting();
    let form = LayerScheme::new(
        CheckpointFormat::CompressedTensors,
        scheme.bits,
        scheme.activations,
        scheme.group_size,
    )?;
    for (module, n) in site.modules(config) {
        let weight = zeros(n, site.in_features(config), scheme);
        writer.add_linear(&names::linear(0, module), &weight, form)?;
    }
    Ok(writer.tensors().map(|(_, bytes)| bytes).sum())
}

/// Embedding, last norm and output head in 16 bits; rotated, a tied head is a tensor of its own.
fn ends(config: &ModelConfig, rotated: bool) -> u64 {
    let table = (config.vocab_size * config.hidden_size) as u64;
    let tables = if config.tie_word_embeddings && !rotated { 1 } else { 2 };
    2 * (tables * table + config.hidden_size as u64)
}
