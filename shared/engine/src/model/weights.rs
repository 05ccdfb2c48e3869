//! Weights of a model, checked against its configuration and with the matrices that
//! [`super::matrices`] packs.

use std::path::Path;

use super::checkpoint::Checkpoint;
use super::matrices::Matrices;
use super::{LoadOptions, Model};
use crate::adapter::Target;
use crate::config::ModelConfig;
use crate::cpu::pack::PackedWeights;
use crate::cpu::rope::RopeTable;
use crate::error::EngineError;
use crate::small_file;

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

impl Model {
    /// Copies the embedding of a token; the token is inside the vocabulary.
    pub(crate) fn embed(&self, token: u32, to: &mut [f32]) {
        match &self.embedding {
            Some(embedding) => embedding.copy_row(token as usize, to),
            None => self.output.copy_row(token as usize, to),
        }
        let scale = self.config.embedding_scale;
        if scale != 1.0 {
            to.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

/// Loads a model's folder.
pub(super) fn load(dir: &Path, options: &LoadOptions) -> Result<Model, EngineError> {
    let file = dir.join("config.json");
    let json = small_file::read(&file)?;
    let config = ModelConfig::parse(&file, &json)?;
    let checkpoint = Checkpoint::open(dir)?;
    // Of the very files that are packed below: they stay open in between, and whoever writes into
    // them is noticed.
    let digest = checkpoint.digest(&json);
    assemble(&checkpoint, config, digest, options)
}

/// Makes a model from an open checkpoint with that digest.
fn assemble(
    checkpoint: &Checkpoint,
    config: ModelConfig,
    digest: [u8; 32],
    options: &LoadOptions,
) -> Result<Model, EngineError> {
    let matrices = Matrices::of(checkpoint, &config, options.compute)?;
    let packed = matrices.provide(&digest, options)?;
    let mut all = packed.matrices.into_iter();
    let layers = (0..config.num_layers).map(|index| {
        let linear = all.by_ref().take(Target::ALL.len()).collect();
        layer(checkpoint, &config, index, linear)
    });
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let positions = config.max_position_embeddings;
    let ropes = config.ropes.iter();
    let model = Model {
        compute: options.compute,
        digest,
        layers,
        final_norm: norm(checkpoint, &config, "model.norm", config.hidden_size)?,
        output: all.next().expect("the output matrix follows the layers"),
        embedding: all.next(),
        transposed: packed.transposed,
        packings: packed.packings,
        ropes: ropes
            .map(|rope| RopeTable::new(config.head_dim, *rope, positions))
            .collect(),
        config,
    };
    // Norms and biases are read after the matrices, or alone when those are mapped.
    checkpoint.check_unchanged()?;
    Ok(model)
}

fn layer(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    index: usize,
    linear: Vec<PackedWeights>,
) -> Result<LayerWeights, EngineError> {
    let prefix = format!("model.layers.{index}");
    let (hidden, head_dim) = (config.hidden_size, config.head_dim);
    let vector = |name: &str, len| norm(checkpoint, config, &format!("{prefix}.{name}"), len);
    let when = |switch: bool, name: &str, len| switch.then(|| vector(name, len)).transpose();
    let bias = |target: Target| {
        let name = format!("{prefix}.{}.bias", target.path());
        let view = checkpoint.tensor(&name, &[target.shape(config).0])?;
        Ok::<_, EngineError>(view.expect_finite()?.to_f32())
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
        linear,
        biases,
    })
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
        .expect_finite()?
        .to_f32();
    if config.norm_plus_one {
        weight.iter_mut().for_each(|value| *value += 1.0);
    }
    Ok(weight)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::fs::{File, FileTimes};
    use std::os::unix::fs::FileExt as _;
    use std::path::PathBuf;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::packed::{PackedCache, Packing};

    /// A copy of a tiny model whose files were last written long ago.
    fn copied() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/qwen3-tiny");
        for name in ["config.json", "model.safetensors"] {
            fs::copy(fixture.join(name), folder.path().join(name)).expect("writable");
        }
        let weights = folder.path().join("model.safetensors");
        let times = FileTimes::new().set_modified(SystemTime::now() - Duration::from_hours(1));
        let file = File::options().write(true).open(&weights);
        file.and_then(|f| f.set_times(times)).expect("ours");
        (folder, weights)
    }

    /// Loads a model, and does something between the hashing and the packing.
    fn load_and(
        dir: &Path,
        options: &LoadOptions,
        meanwhile: impl FnOnce(),
    ) -> Result<Model, EngineError> {
        let file = dir.join("config.json");
        let json = fs::read(&file).expect("it is there");
        let config = ModelConfig::parse(&file, &json).expect("valid");
        let checkpoint = Checkpoint::open(dir).expect("whole");
        let digest = checkpoint.digest(&json);
        meanwhile();
        assemble(&checkpoint, config, digest, options)
    }

    /// Changes the last weight in place.
    fn overwrite(weights: &Path) {
        let file = File::options().read(true).write(true).open(weights);
        let file = file.expect("ours");
        let last = file.metadata().expect("it is there").len() - 1;
        let mut byte = [0];
        file.read_exact_at(&mut byte, last).expect("inside");
        file.write_all_at(&[byte[0] ^ 1], last).expect("writable");
    }

    fn cached(cache: &Path) -> LoadOptions {
        LoadOptions {
            cache: Some(PackedCache::new(cache).for_models_from(0)),
            training: true,
            ..LoadOptions::default()
        }
    }

    #[test]
    fn a_checkpoint_that_is_overwritten_while_it_loads_is_refused_and_not_kept() {
        let (folder, weights) = copied();
        let cache = folder.path().join("packed");
        for options in [LoadOptions::default(), cached(&cache)] {
            let changed = load_and(folder.path(), &options, || overwrite(&weights));
            let changed = changed.expect_err("its digest is of other weights");
            assert_eq!(changed.code(), "MODEL_CHANGED");
            assert!(changed.to_string().contains("model.safetensors"));
        }
        let usage = PackedCache::new(&cache).usage().expect("readable");
        assert_eq!(usage, (0, 0));
    }

    /// Then nothing is packed; the norms are read from the checkpoint all the same.
    #[test]
    fn so_is_one_whose_matrices_are_mapped() {
        let (folder, weights) = copied();
        let options = cached(&folder.path().join("packed"));
        load(folder.path(), &options).expect("it loads");
        let changed = load_and(folder.path(), &options, || overwrite(&weights));
        assert_eq!(changed.expect_err("changed").code(), "MODEL_CHANGED");
    }

    /// The open file stays what it was, so a model that is replaced properly loads.
    #[test]
    fn a_checkpoint_that_is_replaced_by_renaming_loads() {
        let (folder, weights) = copied();
        let options = cached(&folder.path().join("packed"));
        let other = folder.path().join("new");
        fs::copy(&weights, &other).expect("writable");
        overwrite(&other);
        let renamed = || fs::rename(&other, &weights).expect("writable");
        let model = load_and(folder.path(), &options, renamed).expect("it loads");
        assert!(matches!(model.packings()[0], Packing::Written { .. }));
        let new = load(folder.path(), &options).expect("it loads");
        assert_ne!(model.digest(), new.digest());
    }
}
