//! Adaptive smoothing of a block: a search for each site.
//!
//! Sites in order: input of q, k, v (loss on the attention output), input of o (the plain product), input of gate and
//! up (loss on `gate(g) * u`), input of down (the plain product).

use qqq_backend::{Calibrate, solve::Scheme};
use qqq_model::{Site, Sites, block::head_layout};

use crate::{
    Result,
    float_linear::FloatBlock,
    half_type::HalfType,
    report::SmoothReport,
    site_search::{Change, SiteSearch, SiteWalk},
    smooth::{self, SearchOptions, SmoothChoice},
    windows::{Surroundings, Window, Workshop},
};

/// What the search needs to know besides the block.
pub struct SmoothContext<'a, B: Calibrate> {
    /// Device and model.
    pub around: Surroundings<'a, B>,
    /// What becomes of the weights of each site; one that stays float is not searched.
    pub schemes: Sites<Option<Scheme>>,
    /// Type of the norms on disk.
    pub half: HalfType,
    /// Extent of the search.
    pub options: SearchOptions,
}

impl<B: Calibrate> SmoothContext<'_, B> {
    /// Finds and applies the scales of block `index`. `window` stands before the block (one sequence in float); it leaves
    /// it. `on_site` is told when a search begins.
    ///
    /// # Errors
    /// A weight that the backend refuses, inputs or outputs of a site that are not finite, and those of `on_site`.
    pub fn smooth_block(
        &self,
        index: usize,
        block: &mut FloatBlock<B>,
        window: &mut Window<B>,
        workshop: &mut Workshop<B>,
        on_site: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<SmoothReport>> {
        let Self { around, schemes, half, .. } = *self;
        let heads = head_layout(around.config);
        // A channel of v that feeds several input channels of o is not smoothed.
        let wanted = |site: Site| site != Site::O || heads.num_heads == heads.num_kv_heads;
        let walk = SiteWalk { around, schemes, half, to_the_end: false };
        let windows = std::slice::from_mut(window);
        let mut choose = |site: &SiteSearch<'_, B>, workshop: &mut Workshop<B>| {
            let range = site.range()?;
            let choice = smoothed(site, workshop, &range, &self.options)?;
            Ok(Change { report: report_of(site.name, &choice), scales: choice.scales, shift: None })
        };
        walk.change(index, block, windows, workshop, &wanted, on_site, &mut choose)
    }
}

/// Searches the threshold with which the quantized layer's output comes nearest to the float one's.
///
/// # Errors
/// As [`SiteSearch::search`].
pub(crate) fn smoothed<B: Calibrate>(
    site: &SiteSearch<'_, B>,
    workshop: &mut Workshop<B>,
    (max, min): &(Vec<f32>, Vec<f32>),
    options: &SearchOptions,
) -> Result<SmoothChoice> {
    let choice = site.search(workshop, |loss| smooth::search(max, min, loss, options))?;
    site.check_losses([choice.loss_before, choice.loss_after])?;
    Ok(choice)
}

/// What is told of a choice.
pub(crate) fn report_of(name: &str, choice: &SmoothChoice) -> SmoothReport {
    SmoothReport {
        site: name.to_owned(),
        sigma: choice.sigma,
        strength: None,
        smoothed_channels: choice.scales.iter().filter(|&&s| s > 1.0).count(),
        loss_before: choice.loss_before,
        loss_after: choice.loss_after,
        curve: choice.curve.clone(),
    }
}
