//! Choosing plans on a device.

use std::sync::Arc;

use super::{CostModel, GemmSpec, Plan, SumOrder, TunedKey, TunedPlans, TunedStore};
use crate::{Arch, DType, Device, Result};

/// Chooses plans for products on a device: what was tuned on this model of GPU, else what the
/// [cost model](super::CostModel) says.
#[derive(Clone, Debug)]
pub struct Planner {
    device: Arc<Device>,
    arch: Arch,
    tuned: Arc<TunedPlans>,
}

impl Planner {
    /// With the device's own kernels and all that was tuned until now.
    ///
    /// # Errors
    /// [`CudaError::Device`](crate::CudaError::Device) when there are no kernels for this GPU.
    pub fn new(device: &Arc<Device>) -> Result<Self> {
        let tuned = Arc::new(TunedStore::of_device(device).load());
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
        any.then(|| self.tuned.plan(&self.tuned_key(spec), m)).flatten()
    }

    /// The cost model's plan for `m` tokens.
    pub fn estimated(&self, spec: &GemmSpec, m: usize) -> Plan {
        CostModel::new(self.device.sms()).plan(spec, self.arch, m)
    }
}
