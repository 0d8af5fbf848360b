//! Weights with learned clipping, rounded, and gradients through that.

use qqq_backend::learn::{WeightGradients, WeightGrid, fill_steps};
use qqq_backend::{BackendError, Learn, Result};

use super::kernels::LearnKernel as Kernel;
use super::parameters::LearnWeightParameters;
use super::{DeviceLearner, DeviceMatrix, LearnDevice, expect};
use crate::DType;
use crate::decoder::steps::value_type;

impl<D: LearnDevice> DeviceLearner<D> {
    /// What the kernel is given of weights with their scales and clipping; the rest is 0.
    fn rounding(
        w: &DeviceMatrix<D::Memory>,
        scales: Option<&DeviceMatrix<D::Memory>>,
        clip: &DeviceMatrix<D::Memory>,
        WeightGrid { grid, group, dtype }: WeightGrid,
    ) -> Result<LearnWeightParameters> {
        if group == 0 || !w.cols.is_multiple_of(group) {
            return Err(BackendError::Shape(format!("groups of {group} of {} input channels", w.cols)));
        }
        let groups = w.rows * (w.cols / group);
        expect(clip, (2, groups), "clipping strengths")?;
        scales.map_or(Ok(()), |scales| expect(scales, (1, w.cols), "scales of input channels"))?;
        Ok(LearnWeightParameters {
            weights: w.at(0),
            scales: scales.map_or(0, |scales| scales.at(0)),
            clip: clip.at(0),
            dw: 0,
            out: 0,
            by_group: 0,
            groups: groups as i64,
            k: w.cols as i32,
            group: group as i32,
            low: grid.low,
            high: grid.high,
            reach: grid.reach,
            value_type: value_type(dtype.dtype())?,
        })
    }

    /// # Safety
    /// As [`LearnDevice::launch`].
    unsafe fn launch_rounding(&self, parameters: LearnWeightParameters, back: bool) -> crate::Result<()> {
        let kernel = Kernel::Weights { grouped: parameters.group < parameters.k, back };
        // SAFETY: the caller's promise.
        unsafe { self.device.launch(kernel, parameters.groups as usize, parameters) }
    }

    pub(super) fn rounded_weight(
        &self,
        w: &DeviceMatrix<D::Memory>,
        scales: Option<&DeviceMatrix<D::Memory>>,
        clip: Option<(&DeviceMatrix<D::Memory>, WeightGrid)>,
    ) -> Result<DeviceMatrix<D::Memory>> {
        let out = self.matrix(w.rows, w.cols)?;
        let Some((clip, grid)) = clip else {
            scales.map_or(Ok(()), |scales| expect(scales, (1, w.cols), "scales of input channels"))?;
            self.floats((w.at(0), DType::F32), scales.map_or(0, |scales| scales.at(0)), &out)?;
            return Ok(out);
        };
        let parameters = LearnWeightParameters { out: out.at(0), ..Self::rounding(w, scales, clip, grid)? };
        // SAFETY: all have these sizes.
        unsafe { self.launch_rounding(parameters, false) }?;
        Ok(out)
    }

    pub(super) fn weight_gradients(
        &self,
        dw: &DeviceMatrix<D::Memory>,
        w: &DeviceMatrix<D::Memory>,
        scales: Option<&DeviceMatrix<D::Memory>>,
        clip: Option<(&DeviceMatrix<D::Memory>, WeightGrid)>,
    ) -> Result<WeightGradients<DeviceMatrix<D::Memory>>> {
        expect(dw, (w.rows, w.cols), "gradients by weights")?;
        let (mut by_clip, mut through) = (None, None);
        if let Some((clip, grid)) = clip {
            let by_strengths = self.matrix(2, clip.cols)?;
            if scales.is_some() {
                through = Some(self.matrix(w.rows, w.cols)?);
            }
            let parameters = LearnWeightParameters {
                dw: dw.at(0),
                out: through.as_ref().map_or(0, |out| out.at(0)),
                by_group: by_strengths.at(0),
                ..Self::rounding(w, scales, clip, grid)?
            };
            // SAFETY: all have these sizes.
            unsafe { self.launch_rounding(parameters, true) }?;
            by_clip = Some(by_strengths);
        }
        let scales = match scales {
            None => None,
            Some(_) => {
                let by_scales = self.matrix(1, w.cols)?;
                self.column_sums((through.as_ref().unwrap_or(dw), w), 0, None, &by_scales)?;
                Some(by_scales)
            }
        };
        Ok(WeightGradients { clip: by_clip, scales })
    }

    pub(super) fn weight_steps(
        &self,
        w: &DeviceMatrix<D::Memory>,
        clip: &DeviceMatrix<D::Memory>,
        grid: WeightGrid,
    ) -> Result<Vec<f32>> {
        let rounding = Self::rounding(w, None, clip, grid)?;
        let steps = self.matrix(1, clip.cols)?;
        let parameters = LearnWeightParameters { by_group: steps.at(0), ..rounding };
        // SAFETY: there is a step for each group.
        unsafe { self.launch_rounding(parameters, false) }?;
        let mut steps = Learn::read(self, &steps)?;
        fill_steps(&mut steps, w.cols / grid.group);
        Ok(steps)
    }
}
