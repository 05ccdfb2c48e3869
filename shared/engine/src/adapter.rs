//! LoRA adapters: low-rank additions to a model's linear layers and its output matrix (Hu et al.
//! 2021, arXiv 2106.09685).
//!
//! An adapted layer computes `y = W x + s B (A x)` with `A: [rank, in]`, `B: [out, rank]` and the
//! scale `s` of [`LoraConfig::scale`]. An [`Adapter`] is the *published copy*: sampler and learner
//! read the same values, and only the optimiser knows more digits than stand here.

mod bytes;
mod config;
mod init;
mod peft;
mod site;

use sha2::{Digest, Sha256};

pub use config::{LoraConfig, Target};
pub(crate) use site::PerSite;
pub use site::Site;

use crate::config::{Compute, ModelConfig};
use crate::error::EngineError;
use crate::model::{PackedAdapter, PackedCell};

/// The two factors of one adapted layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraPair {
    /// `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, rank]`, row-major.
    pub b: Vec<f32>,
}

/// A complete set of adapter weights. It never changes once it is shared.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    config: LoraConfig,
    pairs: PerSite<Option<LoraPair>>,
    packed: PackedCell,
}

/// Which factor of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// `[rank, in]`
    A,
    /// `[out, rank]`
    B,
}

/// One tensor of an adapter, in the fixed order: that of [`Site::all`], A before B.
#[derive(Clone, Debug)]
pub struct AdapterTensor<'a> {
    /// The matrix that it adds to.
    pub site: Site,
    /// Which factor.
    pub factor: Factor,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Row-major values.
    pub values: &'a [f32],
}

impl AdapterTensor<'_> {
    /// The name that PEFT gives the tensor in its files.
    #[must_use]
    pub fn peft_name(&self) -> String {
        format!("base_model.model.{}.weight", self.module_name())
    }

    /// The module's path in the model and the factor, without the wrappers of a file:
    /// `model.layers.0.self_attn.q_proj.lora_A`.
    #[must_use]
    pub fn module_name(&self) -> String {
        format!("{}.lora_{:?}", self.site.path(), self.factor)
    }
}

impl Adapter {
    /// The settings.
    #[must_use]
    pub const fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// The factor `s` that both halves are multiplied with.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.config.scale()
    }

    /// Rows of every A.
    #[must_use]
    pub const fn rank(&self) -> usize {
        self.config.rank
    }

    /// The factors as the matrix product reads them, packed at the first call.
    pub(crate) fn packed(&self, compute: Compute) -> &PackedAdapter {
        self.packed.get(self, compute)
    }

    /// Packs the factors now instead of at the first use, so that a batch does not wait for it.
    pub fn prepare(&self, compute: Compute) {
        self.packed(compute);
    }

    /// Number of transformer layers.
    #[must_use]
    pub const fn num_layers(&self) -> usize {
        self.pairs.num_layers()
    }

    /// The pair of a site, if it is adapted.
    #[must_use]
    pub fn pair(&self, site: Site) -> Option<&LoraPair> {
        self.pairs.get(site)?.as_ref()
    }

    /// Every tensor in the fixed order.
    pub fn tensors(&self) -> impl Iterator<Item = AdapterTensor<'_>> {
        let rank = self.config.rank;
        let present = (self.pairs.iter()).filter_map(|(site, pair)| Some((site, pair.as_ref()?)));
        present.flat_map(move |(site, pair)| {
            let halves = [
                (Factor::A, [rank, pair.a.len() / rank], pair.a.as_slice()),
                (Factor::B, [pair.b.len() / rank, rank], pair.b.as_slice()),
            ];
            halves.map(|(factor, shape, values)| AdapterTensor {
                site,
                factor,
                shape,
                values,
            })
        })
    }

    /// The values of every tensor, in the order of [`Self::tensors`].
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.packed = PackedCell::default();
        let pairs = self.pairs.values_mut().flatten();
        pairs.flat_map(|pair| [pair.a.as_mut_slice(), pair.b.as_mut_slice()])
    }

    /// Number of values.
    #[must_use]
    pub fn num_values(&self) -> usize {
        self.tensors().map(|tensor| tensor.values.len()).sum()
    }

    /// Refuses NaN and infinity.
    ///
    /// # Errors
    ///
    /// [`EngineError::AdapterNonfinite`] with the first such value.
    pub fn check_finite(&self) -> Result<(), EngineError> {
        for tensor in self.tensors() {
            if let Some(index) = tensor.values.iter().position(|value| !value.is_finite()) {
                return Err(EngineError::AdapterNonfinite {
                    tensor: tensor.peft_name(),
                    index,
                });
            }
        }
        Ok(())
    }

    /// Refuses an adapter whose layers are not the model's.
    ///
    /// # Errors
    ///
    /// [`EngineError::AdapterMismatch`] with the first tensor that differs, its shape and the
    /// shape that is due.
    pub fn check_fits(&self, model: &ModelConfig) -> Result<(), EngineError> {
        if self.num_layers() != model.num_layers {
            return Err(mismatch(format!(
                "layers expected={} got={}",
                model.num_layers,
                self.num_layers()
            )));
        }
        for tensor in self.tensors() {
            let due = tensor.factor.shape(self.config.rank, tensor.site, model);
            if tensor.shape != due {
                return Err(shape_mismatch(&tensor.peft_name(), due, &tensor.shape));
            }
        }
        Ok(())
    }

    /// SHA-256 of [`Self::to_bytes`]: equal adapters have equal digests on every machine.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.to_bytes()).into()
    }
}

impl Factor {
    /// The shape that a factor has in a model.
    fn shape(self, rank: usize, site: Site, model: &ModelConfig) -> [usize; 2] {
        let (rows, columns) = site.shape(model);
        match self {
            Self::A => [rank, columns],
            Self::B => [rows, rank],
        }
    }
}

fn mismatch(what: String) -> EngineError {
    EngineError::AdapterMismatch { what }
}

fn shape_mismatch(tensor: &str, expected: [usize; 2], got: &[usize]) -> EngineError {
    mismatch(format!("tensor={tensor} expected={expected:?} got={got:?}"))
}
