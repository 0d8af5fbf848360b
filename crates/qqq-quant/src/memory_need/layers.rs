//! While layers are calibrated and solved.

use qqq_model::Site;

use super::*;

impl Model<'_> {
    /// The inputs of v as attention averages them, in every lane, beside q, k and v in float.
    pub(super) fn averages(&self, waiting: &dyn Fn(Site) -> f64) -> Phase {
        let queries = (self.config.num_heads * self.pieces.attended_queries) as f64;
        let weights = (self.config.num_heads * self.pieces.probability_queries) as f64 * self.window * 4.0;
        let each = self.attention() + 5.0 * self.window * self.hidden + 4.0 * queries * self.hidden + weights;
        let lanes = windows::lanes(&[self.config.hidden_size], self.pieces.lanes);
        let hessians = 1 + lanes.min(self.recipe.calibration.windows);
        // Those of the float model: its layer, averages of a wave in both, the sums of inputs and of averages.
        let beside = match self.recipe.corrects() {
            true => {
                let wave = lanes.min(self.recipe.calibration.windows) as f64;
                self.float_inputs(Site::Qkv)
                    + 4.0 * self.weights(Site::Qkv)
                    + 8.0 * wave * queries * self.hidden
                    + 16.0 * self.hidden * self.hidden
            }
            false => 0.0,
        };
        Phase {
            name: "calibrating v",
            arrays: self.always
                + self.kept(Site::Qkv)
                + 4.0 * self.weights(Site::Qkv)
                + waiting(Site::O)
                + beside
                + 4.0 * self.hidden * self.hidden * hessians as f64,
            besides: self.passes(lanes, each),
        }
    }

    /// The calibration stages of a quantized block. `waiting` is what the float layers from one on take that were
    /// transformed beforehand.
    pub(super) fn stages(&self, waiting: &dyn Fn(Site) -> f64) -> Vec<Phase> {
        let packed = self.packed();
        let kept = self.kept(Site::Qkv);
        // Where weights are corrected, the float layer before is kept, and what it takes.
        let float = |before: Site| match self.recipe.corrects() {
            true => self.float_inputs(before) + 4.0 * self.weights(before),
            false => 0.0,
        };
        let panels = self.threads * self.pieces.gram_rows as f64 * self.inner * 4.0 * 3.0;
        vec![
            Phase {
                name: "calibrating o",
                arrays: self.always + kept + packed / 4.0 + waiting(Site::O) + float(Site::Qkv),
                besides: self.passes(self.pieces.lanes, self.attention()),
            },
            Phase {
                name: "calibrating down",
                arrays: self.always
                    + self.kept(Site::Down)
                    + packed / 2.0
                    + waiting(Site::Down)
                    + float(Site::GateUp),
                besides: self.passes(
                    self.pieces.lanes,
                    (self.pieces.mlp_tokens as f64).min(self.window) * 4.0 * 3.0 * self.inner,
                ),
            },
            Phase {
                name: "summing the Hessian of down",
                arrays: self.always
                    + self.kept(Site::Down)
                    + packed / 2.0
                    + waiting(Site::Down)
                    + float(Site::GateUp)
                    + 4.0 * self.inner * self.inner,
                besides: panels,
            },
        ]
    }

    /// Reading, factorising and solving each layer.
    pub(super) fn solves(&self, calibrates: bool, smooth: bool) -> Vec<Phase> {
        let name = |linear| match linear {
            Site::Qkv => "solving q, k and v",
            Site::O => "solving o",
            Site::GateUp => "solving gate and up",
            Site::Down => "solving down",
        };
        let quantized = calibrates && self.recipe.propagation == Propagation::Quantized;
        let mut phases = Vec::new();
        let mut others = self.all_weights();
        for linear in Site::ALL {
            let (n, k, weights) = (self.outputs(linear), self.inputs(linear), self.weights(linear));
            others -= weights;
            // Inputs that the next stage takes; float layers that wait; Hessians that do.
            let kept = if quantized { self.kept(linear) } else { self.held_inputs(linear) };
            let held = smooth || !quantized && calibrates;
            let waiting = if held { 4.0 * others } else { 0.0 };
            let hessians = if quantized || !calibrates { 0.0 } else { 4.0 * self.inner * self.inner };
            let own = if calibrates { 4.0 * k * k } else { 0.0 };
            // The deviation; the float layer that the float stream goes on with; the weights as they were moved.
            let corrects = self.recipe.corrects();
            let corrected = match corrects {
                true => {
                    let copies = if linear == Site::Down { 1.0 } else { 2.0 };
                    8.0 * k * k + self.float_inputs(linear) + copies * 4.0 * weights
                }
                false => 0.0,
            };
            // Everything in float64: Hessian, damped, turned and factorised; weights, turned, of both results and their errors.
            let simulated = match self.recipe.simulated {
                Some(_) if calibrates => 5.0 * 8.0 * k * k + 6.0 * 8.0 * weights,
                Some(_) => 4.0 * 8.0 * weights,
                None => 0.0,
            };
            let fixed = self.always + kept + waiting + hessians + own + corrected + simulated;
            let page = 8192.0 * k;
            let factor = if self.recipe.compensate { 2.0 * k * k + page } else { 0.0 };
            let factorising = if self.recipe.compensate || corrects { 4.0 * k * k + 2.0 * page } else { 0.0 };
            // Outputs of a rotated layer are turned from a copy of it.
            let reading = weights * (4.0f64).max(self.stored.linear * if n > k { 2.0 } else { 1.0 });
            phases.push(Phase {
                name: name(linear),
                arrays: fixed + 4.0 * weights + if held { factorising } else { factorising.max(reading) },
                besides: 0.0,
            });
            let tasks = (n / ROWS_PER_TASK as f64).ceil().min(self.threads);
            phases.push(Phase {
                name: name(linear),
                arrays: fixed + 4.0 * weights + factor + 2.2 * weights,
                besides: tasks
                    * ROWS_PER_TASK as f64
                    * k
                    * (SOLVER_BYTES + if corrects { CORRECTED_BYTES } else { 0.0 }),
            });
        }
        phases
    }
}
