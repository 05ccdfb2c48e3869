//! Weights of a model, checked against its configuration and packed for the kernels.

use std::fs;
use std::path::Path;

use super::Model;
use super::checkpoint::Checkpoint;
use crate::adapter::Target;
use crate::config::ModelConfig;
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
    /// For each query head, `[head_dim]`.
    pub q_norm: Option<Vec<f32>>,
    /// For each key head, `[head_dim]`.
    pub k_norm: Option<Vec<f32>>,
    linear: Vec<PackedWeights>,
}

impl LayerWeights {
    /// The weights of one linear layer.
    #[must_use]
    pub fn linear(&self, target: Target) -> &PackedWeights {
        &self.linear[target.index()]
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
    }
}

/// Loads a model's folder.
pub(super) fn load(dir: &Path) -> Result<Model, EngineError> {
    let file = dir.join("config.json");
    let json = fs::read(&file).map_err(|e| EngineError::io(&file, e))?;
    let config = ModelConfig::parse(&file, &json)?;
    let checkpoint = Checkpoint::open(dir)?;
    let digest = checkpoint.digest(&json);
    let layers = (0..config.num_layers).map(|i| layer(&checkpoint, &config, i));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    const EMBED: &str = "model.embed_tokens.weight";
    let tied = config.tie_word_embeddings || !checkpoint.has("lm_head.weight");
    let output = packed(
        &checkpoint,
        if tied { EMBED } else { "lm_head.weight" },
        vocab,
        hidden,
    )?;
    let embedding = if tied {
        None
    } else {
        let view = checkpoint.tensor(EMBED, &[vocab, hidden])?;
        let bf16 = view.to_bf16_bits().map(Embedding::Bf16);
        Some(bf16.unwrap_or_else(|| Embedding::F32(view.to_f32())))
    };
    Ok(Model {
        digest,
        embedding,
        layers,
        final_norm: checkpoint.tensor("model.norm.weight", &[hidden])?.to_f32(),
        output,
        rope: RopeTable::new(
            config.head_dim,
            config.rope_theta,
            config.max_position_embeddings,
        ),
        config,
    })
}

fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
) -> Result<LayerWeights, EngineError> {
    let prefix = format!("model.layers.{index}");
    let vector = |name: &str, len: usize| {
        let name = format!("{prefix}.{name}.weight");
        checkpoint.tensor(&name, &[len]).map(|view| view.to_f32())
    };
    let head_norm = |name: &str| {
        config
            .qk_norm
            .then(|| vector(name, config.head_dim))
            .transpose()
    };
    let linear = Target::ALL.into_iter().map(|target| {
        let (n, k) = target.shape(config);
        let name = format!("{prefix}.{}", target.path());
        if checkpoint.has(&format!("{name}.bias")) {
            let what = format!("{name}.bias");
            let file = Path::new("model.safetensors").to_owned();
            return Err(EngineError::ModelUnsupported { file, what });
        }
        packed(checkpoint, &format!("{name}.weight"), n, k)
    });
    Ok(LayerWeights {
        attn_norm: vector("input_layernorm", config.hidden_size)?,
        ffn_norm: vector("post_attention_layernorm", config.hidden_size)?,
        q_norm: head_norm("self_attn.q_norm")?,
        k_norm: head_norm("self_attn.k_norm")?,
        linear: linear.collect::<Result<_, _>>()?,
    })
}

fn packed(
    checkpoint: &Checkpoint,
    name: &str,
    n: usize,
    k: usize,
) -> Result<PackedWeights, EngineError> {
    let view = checkpoint.tensor(name, &[n, k])?;
    Ok(match view.to_bf16_bits() {
        Some(bits) => PackedWeights::pack_bf16(&bits, n, k),
        None => PackedWeights::pack(&view.to_f32(), n, k),
    })
}
