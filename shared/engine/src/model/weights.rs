//! Weights of a model, checked against its configuration and packed for the kernels.

use std::fs;
use std::path::Path;

use super::Model;
use super::checkpoint::Checkpoint;
use crate::adapter::Target;
use crate::config::{Compute, ModelConfig};
use crate::cpu::pack::PackedWeights;
use crate::cpu::rope::RopeTable;
use crate::error::EngineError;

/// Weights of one layer.
#[derive(Debug)]
pub struct LayerWeights {
    /// Before attention, `[hidden]`.
    pub attn_norm: Vec<f32>,
    /// Before the feed-forward, `[hidden]`.
    pub ffn_norm: Vec<f32>,
    /// Of the attention's result, `[hidden]`.
    pub attn_branch_norm: Option<Vec<f32>>,
    /// Of the feed-forward's result, `[hidden]`.
    pub ffn_branch_norm: Option<Vec<f32>>,
    /// For each query head, `[head_dim]`.
    pub q_norm: Option<Vec<f32>>,
    /// For each key head, `[head_dim]`.
    pub k_norm: Option<Vec<f32>>,
    linear: Vec<PackedWeights>,
    /// Biases of queries, keys and values.
    biases: Option<[Vec<f32>; 3]>,
}

impl LayerWeights {
    /// A layer whose norms are one and whose biases are zero; `linear` by [`Target::index`].
    pub(super) fn plain(config: &ModelConfig, linear: Vec<PackedWeights>) -> Self {
        let ones = |len: usize| vec![1.0; len];
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let (q, kv) = (config.q_size(), config.kv_size());
        Self {
            attn_norm: ones(hidden),
            ffn_norm: ones(hidden),
            attn_branch_norm: config.branch_norms.then(|| ones(hidden)),
            ffn_branch_norm: config.branch_norms.then(|| ones(hidden)),
            q_norm: config.qk_norm.then(|| ones(head_dim)),
            k_norm: config.qk_norm.then(|| ones(head_dim)),
            linear,
            biases: config
                .qkv_bias
                .then(|| [q, kv, kv].map(|len| vec![0.0; len])),
        }
    }

    /// The weights of one linear layer.
    #[must_use]
    pub fn linear(&self, target: Target) -> &PackedWeights {
        &self.linear[target.index()]
    }

    /// The bias of one linear layer, `[out]`.
    #[must_use]
    pub fn bias(&self, target: Target) -> Option<&[f32]> {
        self.biases.as_ref()?.get(target.index()).map(Vec::as_slice)
    }
}

/// An embedding that is not the output matrix, row-major.
#[derive(Debug)]
pub(super) enum Embedding {
    F32(Vec<f32>),
    Bf16(Vec<u16>),
}

impl Embedding {
    fn row(&self, token: usize, to: &mut [f32]) {
        let range = token * to.len()..(token + 1) * to.len();
        match self {
            Self::F32(all) => to.copy_from_slice(&all[range]),
            Self::Bf16(all) => {
                let wide = |bits: &u16| f32::from_bits(u32::from(*bits) << 16);
                to.iter_mut()
                    .zip(&all[range])
                    .for_each(|(to, bits)| *to = wide(bits));
            }
        }
    }
}

impl Model {
    /// Copies the embedding of a token; the token is inside the vocabulary.
    pub(crate) fn embed(&self, token: u32, to: &mut [f32]) {
        match &self.embedding {
            Some(embedding) => embedding.row(token as usize, to),
            None => self.output.copy_row(token as usize, to),
        }
        let scale = self.config.embedding_scale;
        if scale != 1.0 {
            to.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

/// Loads a model's folder.
pub(super) fn load(dir: &Path, compute: Compute) -> Result<Model, EngineError> {
    let file = dir.join("config.json");
    let json = fs::read(&file).map_err(|e| EngineError::io(&file, e))?;
    let config = ModelConfig::parse(&file, &json)?;
    let checkpoint = Checkpoint::open(dir)?;
    let digest = checkpoint.digest(&json);
    let layers = (0..config.num_layers).map(|i| layer(&checkpoint, &config, compute, i));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    const EMBED: &str = "model.embed_tokens.weight";
    let tied = config.tie_word_embeddings || !checkpoint.has("lm_head.weight");
    let output = packed(
        &checkpoint,
        if tied { EMBED } else { "lm_head.weight" },
        [vocab, hidden],
        compute,
    )?;
    let embedding = if tied {
        None
    } else {
        let view = checkpoint.tensor(EMBED, &[vocab, hidden])?;
        let bf16 = view.to_bf16_bits().map(Embedding::Bf16);
        Some(bf16.unwrap_or_else(|| Embedding::F32(view.to_f32())))
    };
    let positions = config.max_position_embeddings;
    let ropes = config.ropes.iter();
    Ok(Model {
        compute,
        digest,
        embedding,
        layers,
        final_norm: norm(&checkpoint, &config, "model.norm", hidden)?,
        output,
        ropes: ropes
            .map(|rope| RopeTable::new(config.head_dim, *rope, positions))
            .collect(),
        config,
    })
}

fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    compute: Compute,
    index: usize,
) -> Result<LayerWeights, EngineError> {
    let prefix = format!("model.layers.{index}");
    let (hidden, head_dim) = (config.hidden_size, config.head_dim);
    let vector = |name: &str, len| norm(checkpoint, config, &format!("{prefix}.{name}"), len);
    let when = |switch: bool, name: &str, len| switch.then(|| vector(name, len)).transpose();
    let linear = Target::ALL.into_iter().map(|target| {
        let (n, k) = target.shape(config);
        let name = format!("{prefix}.{}", target.path());
        if checkpoint.has(&format!("{name}.bias")) && !has_bias(config, target) {
            let what = format!("{name}.bias");
            let file = Path::new("model.safetensors").to_owned();
            return Err(EngineError::ModelUnsupported { file, what });
        }
        packed(checkpoint, &format!("{name}.weight"), [n, k], compute)
    });
    let bias = |target: Target| {
        let name = format!("{prefix}.{}.bias", target.path());
        let view = checkpoint.tensor(&name, &[target.shape(config).0])?;
        Ok::<_, EngineError>(view.to_f32())
    };
    let biases = match config.qkv_bias {
        true => Some([bias(Target::Q)?, bias(Target::K)?, bias(Target::V)?]),
        false => None,
    };
    // Where branches are normed, `post_attention_layernorm` is the norm of a branch.
    let ffn_norm = match config.branch_norms {
        true => "pre_feedforward_layernorm",
        false => "post_attention_layernorm",
    };
    Ok(LayerWeights {
        attn_norm: vector("input_layernorm", hidden)?,
        ffn_norm: vector(ffn_norm, hidden)?,
        attn_branch_norm: when(config.branch_norms, "post_attention_layernorm", hidden)?,
        ffn_branch_norm: when(config.branch_norms, "post_feedforward_layernorm", hidden)?,
        q_norm: when(config.qk_norm, "self_attn.q_norm", head_dim)?,
        k_norm: when(config.qk_norm, "self_attn.k_norm", head_dim)?,
        linear: linear.collect::<Result<_, _>>()?,
        biases,
    })
}

const fn has_bias(config: &ModelConfig, target: Target) -> bool {
    config.qkv_bias && matches!(target, Target::Q | Target::K | Target::V)
}

/// The weight of a norm, as it is multiplied.
fn norm(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    name: &str,
    len: usize,
) -> Result<Vec<f32>, EngineError> {
    let mut weight = checkpoint
        .tensor(&format!("{name}.weight"), &[len])?
        .to_f32();
    if config.norm_plus_one {
        weight.iter_mut().for_each(|value| *value += 1.0);
    }
    Ok(weight)
}

fn packed(
    checkpoint: &Checkpoint,
    name: &str,
    [n, k]: [usize; 2],
    compute: Compute,
) -> Result<PackedWeights, EngineError> {
    let view = checkpoint.tensor(name, &[n, k])?;
    Ok(match (view.to_bf16_bits(), compute) {
        (Some(bits), _) => PackedWeights::pack_bf16(&bits, n, k),
        (None, Compute::F32) => PackedWeights::pack(&view.to_f32(), n, k),
        (None, Compute::Bf16) => PackedWeights::pack_rounded(&view.to_f32(), n, k),
    })
}
