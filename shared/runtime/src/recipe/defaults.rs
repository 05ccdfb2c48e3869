//! What a recipe says where it says nothing.

use super::{
    Advantage, Evaluation, KlReference, LearnerProcess, LearningRateSchedule, Lora, LoraTarget,
    LossName, Sampling, Schedule, Train, Workers,
};

impl Default for Train {
    fn default() -> Self {
        Self {
            steps: 60,
            groups_per_step: 24,
            group_size: 8,
            learning_rate: 7e-4,
            loss: LossName::default(),
            clip_low: None,
            clip_high: None,
            dro_beta: None,
            kl_penalty: 0.0,
            kl_reference: KlReference::default(),
            advantage: Advantage::default(),
            schedule: Schedule::default(),
            max_staleness: 1,
            grad_clip: 1.0,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            seed: 0,
            first_instance: 5_000_000,
            checkpoint_every: 20,
            retain_versions: 4,
            lr_schedule: LearningRateSchedule::default(),
            memory_mb: None,
        }
    }
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            targets: LoraTarget::PROJECTIONS.to_vec(),
            rslora: false,
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            stop: Vec::new(),
        }
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self {
            count: 2,
            slots: 32,
            threads: 1,
        }
    }
}

impl Default for LearnerProcess {
    fn default() -> Self {
        Self { threads: 2 }
    }
}

impl Default for Evaluation {
    fn default() -> Self {
        Self {
            instances: 300,
            first_instance: 1_000_000,
        }
    }
}
