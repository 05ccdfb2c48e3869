//! What an adapter is made of: rank, scale, and the linear layers it adds to.

use super::Site;
use crate::config::ModelConfig;
use crate::error::EngineError;

/// Largest accepted rank. Published adapters stay below 512; the bound keeps a hostile file from
/// becoming an allocation.
pub(super) const RANK_MAX: usize = 4096;

/// A linear layer of a transformer layer that can be adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The attention's output.
    O,
    /// The feed-forward's gate.
    Gate,
    /// The feed-forward's upward half.
    Up,
    /// The feed-forward's output.
    Down,
}

impl Target {
    /// Every target, in the order of [`Self::index`].
    pub const ALL: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];

    /// Position in [`Self::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The module's name in a checkpoint, for instance `q_proj`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The target of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }

    /// The module's path within a layer, for instance `self_attn.q_proj`.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    /// Outputs and inputs of the linear layer in a model.
    #[must_use]
    pub const fn shape(self, model: &ModelConfig) -> (usize, usize) {
        match self {
            Self::Q => (model.q_size(), model.hidden_size),
            Self::K | Self::V => (model.kv_size(), model.hidden_size),
            Self::O => (model.hidden_size, model.q_size()),
            Self::Gate | Self::Up => (model.intermediate_size, model.hidden_size),
            Self::Down => (model.hidden_size, model.intermediate_size),
        }
    }
}

/// Settings of an adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rows of every A.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Divide by the root of the rank (Kalajdzievski 2023, arXiv 2312.03732) instead of the rank.
    pub rslora: bool,
    /// The linear layers that are adapted in every transformer layer, ascending and each once.
    pub targets: Vec<Target>,
    /// Whether the output matrix is adapted.
    pub lm_head: bool,
}

impl LoraConfig {
    /// An adapter on every linear layer, the output matrix excepted: PEFT's `all-linear`.
    #[must_use]
    pub fn all_linear(rank: usize, alpha: f32) -> Self {
        Self {
            rank,
            alpha,
            rslora: false,
            targets: Target::ALL.to_vec(),
            lm_head: false,
        }
    }

    /// Whether these settings adapt a site.
    #[must_use]
    pub fn adapts(&self, site: Site) -> bool {
        match site {
            Site::Layer(_, target) => self.targets.contains(&target),
            Site::LmHead => self.lm_head,
        }
    }

    /// `alpha / rank`, or `alpha / sqrt(rank)` with `rslora`.
    #[must_use]
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        let divisor = if self.rslora { rank.sqrt() } else { rank };
        (f64::from(self.alpha) / divisor) as f32
    }

    /// Refuses settings that describe no adapter.
    ///
    /// # Errors
    ///
    /// [`EngineError::AdapterMismatch`] with the setting.
    pub fn check(&self) -> Result<(), EngineError> {
        let what = if self.rank == 0 || self.rank > RANK_MAX {
            format!("rank={} outside 1..={RANK_MAX}", self.rank)
        } else if !self.alpha.is_finite() {
            format!("alpha={}", self.alpha)
        } else if self.targets.is_empty() && !self.lm_head {
            "targets=[]".to_owned()
        } else if !self.targets.is_sorted_by(|a, b| a < b) {
            format!("targets={:?} not ascending", self.targets)
        } else {
            return Ok(());
        };
        Err(super::mismatch(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_know_their_position_and_name() {
        for (index, target) in Target::ALL.into_iter().enumerate() {
            assert_eq!(target.index(), index);
            assert_eq!(Target::from_name(target.name()), Some(target));
            assert!(target.path().ends_with(target.name()));
        }
        assert_eq!(Target::from_name("lm_head"), None);
    }

    #[test]
    fn the_scale_divides_by_the_rank_or_its_root() {
        let mut config = LoraConfig::all_linear(16, 32.0);
        assert_eq!(config.scale(), 2.0);
        config.rslora = true;
        assert_eq!(config.scale(), 8.0);
    }

    #[test]
    fn settings_that_describe_no_adapter_are_refused() {
        let good = LoraConfig::all_linear(8, 16.0);
        assert!(good.check().is_ok());
        for bad in [
            LoraConfig {
                rank: 0,
                ..good.clone()
            },
            LoraConfig {
                rank: RANK_MAX + 1,
                ..good.clone()
            },
            LoraConfig {
                alpha: f32::NAN,
                ..good.clone()
            },
            LoraConfig {
                targets: Vec::new(),
                ..good.clone()
            },
            LoraConfig {
                targets: vec![Target::V, Target::Q],
                ..good
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        let head_alone = LoraConfig {
            targets: Vec::new(),
            lm_head: true,
            ..LoraConfig::all_linear(8, 16.0)
        };
        assert!(head_alone.check().is_ok());
        assert!(head_alone.adapts(Site::LmHead) && !head_alone.adapts(Site::Layer(0, Target::Q)));
    }
}
