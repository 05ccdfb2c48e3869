//! Values of a recipe that are one of a few names.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$item:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize,
            Deserialize,
        )]
        pub enum $name { $($(#[$item])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name in recipes.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

choice! {
    /// Losses for training from rewards.
    LossName {
        /// Policy gradient with importance ratio, no clip.
        #[default]
        ImportanceSampling = "importance_sampling",
        /// Clipped surrogate.
        Ppo = "ppo",
        /// Policy gradient with a clipped, constant importance weight.
        Cispo = "cispo",
        /// Clipped surrogate with one ratio per sequence.
        Gspo = "gspo",
        /// Policy gradient with a quadratic pull towards the sampler.
        Dro = "dro",
    }
}

choice! {
    /// Number formats of the matrix products, in workers and learner alike.
    ComputeFormat {
        /// 32 bits.
        #[default]
        F32 = "f32",
        /// bfloat16: half the memory, about twice the speed.
        Bf16 = "bf16",
    }
}

choice! {
    /// How the rewards of a group become advantages.
    Advantage {
        /// Difference to the mean, in units of the standard deviation.
        #[default]
        Grpo = "grpo",
        /// Difference to the mean.
        DrGrpo = "dr_grpo",
        /// Difference to the mean of the others.
        LeaveOneOut = "leave_one_out",
    }
}

choice! {
    /// When rollouts are played.
    Schedule {
        /// Step after step, always by the newest version.
        #[default]
        Sync = "sync",
        /// Ahead of the learner, within a bound of staleness.
        Async = "async",
    }
}

choice! {
    /// How the learning rate changes over a run.
    LearningRateSchedule {
        /// Not at all.
        #[default]
        Constant = "constant",
        /// Falls in equal steps, to zero after the last one.
        Linear = "linear",
    }
}

choice! {
    /// Matrices that can have an adapter: projections of every layer, and the output matrix.
    LoraTarget {
        /// Attention queries.
        #[default]
        Q = "q",
        /// Attention keys.
        K = "k",
        /// Attention values.
        V = "v",
        /// Attention output.
        O = "o",
        /// Gate of the feed-forward layer.
        Gate = "gate",
        /// Way up of the feed-forward layer.
        Up = "up",
        /// Way down of the feed-forward layer.
        Down = "down",
        /// Output matrix, from the last hidden state to the logits.
        LmHead = "lm_head",
    }
}

impl LoraTarget {
    /// The projections of a layer.
    pub const PROJECTIONS: [Self; 7] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::O,
        Self::Gate,
        Self::Up,
        Self::Down,
    ];
}

impl LossName {
    /// Usual bounds of the importance ratio, for losses that have them.
    pub(super) const fn clip_default(self) -> Option<(f64, f64)> {
        match self {
            Self::Ppo => Some((0.8, 1.2)),
            Self::Cispo => Some((0.0, 4.0)),
            // Zheng et al. 2025 (arXiv 2507.18071), section 5.1.
            Self::Gspo => Some((1.0 - 3e-4, 1.0 + 4e-4)),
            Self::ImportanceSampling | Self::Dro => None,
        }
    }
}
