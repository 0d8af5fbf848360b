//! Choosing plans on a device.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use super::{CostModel, GemmSpec, Plan, SumOrder, TunedKey, TunedPlans, TunedStore, trials};
use crate::{Arch, DType, Device, Result};

/// Chooses plans for products on a device: what was [tuned](TunedStore) or [tried](super::trials) on this model of GPU, else
/// what the [cost model](super::CostModel) says. Clones share what they know.
#[derive(Clone, Debug)]
pub struct Planner {
    device: Arc<Device>,
    arch: Arch,
    tuned: Arc<RwLock<TunedPlans>>,
}

impl Planner {
    /// With the device's own kernels and all that was tuned until now.
    ///
    /// # Errors
    /// [`CudaError::Device`](crate::CudaError::Device) when there are no kernels for this GPU.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        let tuned = Arc::new(RwLock::new(TunedStore::of_device(device).load()));
        Ok(Self { device: device.clone(), arch: device.arch()?, tuned })
    }

    /// With the kernels of an architecture: the device's own, or Ampere's, which run everywhere.
    #[must_use]
    pub fn with_arch(self, arch: Arch) -> Self {
        Self { arch, ..self }
    }

    /// The GPU that is planned for, and that loads the kernels.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The architecture whose kernels are chosen.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Under what tuned plans of a product are kept.
    pub fn tuned_key(&self, spec: &GemmSpec) -> TunedKey {
        TunedKey { arch: self.arch, types: spec.types, n: spec.n, k: spec.k }
    }

    /// The plan for `m` tokens.
    pub fn plan(&self, spec: &GemmSpec, m: usize) -> Plan {
        self.tuned(spec, m).unwrap_or_else(|| self.estimated(spec, m))
    }

    /// The plan that was tuned for `m` tokens, if any.
    pub fn tuned(&self, spec: &GemmSpec, m: usize) -> Option<Plan> {
        // Tuning looks for speed, in whatever order.
        let any = spec.order == SumOrder::Free || spec.types.activation() == DType::I8;
        any.then(|| self.known().plan(&self.tuned_key(spec), m)).flatten()
    }

    /// [Tries](super::trials) the plans of a product with int8 activations on the device, for up to `most_tokens` tokens as far
    /// as nothing is known of them, and keeps what it finds: in this planner and its clones, and on disk if there is a folder
    /// for it. It takes about a second and a few hundred megabytes of the device's memory; where these are missing, the
    /// cost model's choice stands.
    ///
    /// # Errors
    /// As [`GemmPlans::new`](super::GemmPlans::new).
    pub fn try_plans(&self, spec: &GemmSpec, most_tokens: usize) -> Result<()> {
        if !trials::are_tried(spec) {
            return Ok(());
        }
        let key = self.tuned_key(spec);
        let mut wanted: Vec<_> = trials::tokens().take_while(|m| *m < most_tokens).collect();
        wanted.push(most_tokens.min(trials::MOST_TOKENS));
        wanted.dedup();
        wanted.retain(|m| !self.known().is_known(&key, *m));
        if wanted.is_empty() {
            return Ok(());
        }
        let begin = Instant::now();
        let Some(found) = trials::run(self, spec, &wanted)? else {
            tracing::debug!("no memory to try plans of {} x {}: the estimate chooses", spec.n, spec.k);
            return Ok(());
        };
        let better = found.choices.iter().filter(|(_, choice)| choice.plan.is_some()).count();
        tracing::debug!(
            "tried plans of {} x {} for {} numbers of tokens in {:.2} s: another than the estimate's for {better}",
            spec.n,
            spec.k,
            wanted.len(),
            begin.elapsed().as_secs_f64()
        );
        let mut known = self.tuned.write().unwrap_or_else(PoisonError::into_inner);
        found.choices.iter().for_each(|(m, choice)| known.add(&key, *m, choice.plan));
        drop(known);
        // What was tried without some of the kernels is tried again when they may be there.
        let store = TunedStore::of_device(&self.device);
        if found.complete
            && store.path().is_some()
            && let Err(error) = store.put_all(&key, &found.choices)
        {
            tracing::warn!("what was measured is not kept: {error}");
        }
        Ok(())
    }

    fn known(&self) -> RwLockReadGuard<'_, TunedPlans> {
        self.tuned.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cost model's plan for `m` tokens.
    pub fn estimated(&self, spec: &GemmSpec, m: usize) -> Plan {
        CostModel::new(self.device.sms()).plan(spec, self.arch, m)
    }
}
