//! What the stages of a block take.

use qqq_model::Site;

use super::{Kind, Units};

/// Calibration stages of a block of quantized layers, named for the layer whose input they make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StageEstimate {
    pub qkv: Units,
    /// The input of v, averaged by attention.
    pub attended: Units,
    pub o: Units,
    pub gate_up: Units,
    pub down: Units,
    /// The states after the block.
    pub finish: Units,
    /// What the float model's inputs deviate, by site.
    pub(super) deviations: [Units; 4],
}

impl StageEstimate {
    /// From amounts in the order of the fields.
    pub(super) fn new([qkv, attended, o, gate_up, down, finish]: [f64; 6]) -> Self {
        Self {
            qkv: Units::new(Kind::Qkv, qkv),
            attended: Units::new(Kind::Attended, attended),
            o: Units::new(Kind::O, o),
            gate_up: Units::new(Kind::GateUp, gate_up),
            down: Units::new(Kind::Down, down),
            finish: Units::new(Kind::Finish, finish),
            deviations: [Units::new(Kind::Deviations, 0.0); 4],
        }
    }

    /// With those for the deviations at each site.
    pub(super) fn with_deviations(self, amounts: [f64; 4]) -> Self {
        Self { deviations: amounts.map(|amount| Units::new(Kind::Deviations, amount)), ..self }
    }

    /// Taking the float model to a site's input, and the sums of what that deviates.
    pub fn deviations(&self, site: Site) -> Units {
        self.deviations[site as usize]
    }

    /// The stage that makes a site's input.
    pub fn site(&self, site: Site) -> Units {
        match site {
            Site::Qkv => self.qkv,
            Site::O => self.o,
            Site::GateUp => self.gate_up,
            Site::Down => self.down,
        }
    }

    pub(super) fn all(&self) -> [Units; 6] {
        [self.qkv, self.attended, self.o, self.gate_up, self.down, self.finish]
    }
}
