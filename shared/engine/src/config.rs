//! What a checkpoint's `config.json` says, in the key layouts of transformers 4 and 5.
//!
//! A model is described by sizes plus a few switches ([`ModelConfig`]); the forward and the
//! backward pass read only those and never ask for the architecture's name. A further
//! architecture is one more arm in [`raw`]'s table of switches. A setting that would change the
//! mathematics and is not computed is refused by name.

mod attention;
mod keys;
mod raw;
mod refused;

use std::path::Path;

use crate::error::EngineError;
use crate::small_file;
use keys::At;

/// The architectures that this engine computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// `Qwen3ForCausalLM`: grouped-query attention with RMS-normed queries and keys.
    Qwen3,
    /// `Qwen2ForCausalLM`: grouped-query attention with biases on queries, keys and values.
    Qwen2,
    /// `LlamaForCausalLM`: the plain stack; Llama 3 rescales its rotary frequencies.
    Llama,
    /// `Gemma3ForCausalLM`: sliding and full attention in turn, norms around every branch.
    Gemma3,
}

/// The gate's non-linearity in the feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x sigmoid(x)`
    Silu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` (Hendrycks & Gimpel 2016,
    /// arXiv 1606.08415, section 2)
    GeluTanh,
}

/// In which number format the inputs and weights of matrix products are.
///
/// Everything else is f32 in both: residual stream, norms, attention, softmax, gradients,
/// optimiser. Results of one format are never compared with those of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compute {
    /// As they are stored: every product is exact in its operands.
    #[default]
    F32,
    /// Rounded to bfloat16: half the memory and about twice the speed.
    Bf16,
}

impl Compute {
    /// The name on command lines and in recipes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Names this arithmetic. Log-probabilities of equal classes and versions are equal to the
    /// bit; the number rises with every change that alters one.
    #[must_use]
    pub const fn numerics_class(self) -> &'static str {
        match self {
            Self::F32 => "cpu-f32-1",
            Self::Bf16 => "cpu-bf16-1",
        }
    }

    /// Pairs that a row of `k` values is rounded to; none where products take it as it is.
    pub(crate) const fn pairs(self, k: usize) -> usize {
        match self {
            Self::F32 => 0,
            Self::Bf16 => k.div_ceil(2),
        }
    }

    /// The format of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::Bf16]
            .into_iter()
            .find(|compute| compute.name() == name)
    }
}

/// How rotary frequencies differ from `theta^(-2 i / head_dim)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// They do not.
    None,
    /// All are divided by the factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Long wavelengths are divided by the factor, short ones kept, those between blended
    /// (Llama 3.1's release; wavelengths in units of the original context).
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are short.
        high_freq_factor: f64,
        /// The context before it was extended.
        original: f64,
    },
}

/// One family of rotary angles.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Their scaling.
    pub scaling: RopeScaling,
}

/// What distinguishes the attention of one layer from that of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerAttention {
    /// A query sees this many keys, its own included; `None`: all before it.
    pub window: Option<usize>,
    /// Index in [`ModelConfig::ropes`].
    pub rope: usize,
}

/// Sizes and switches of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Architecture the checkpoint was made for.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated feed-forward.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f32,
    /// Positions the model was trained for.
    pub max_position_embeddings: usize,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether queries and keys are RMS-normed per head before rotation.
    pub qk_norm: bool,
    /// Whether queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// Whether checkpoints store a norm's weight minus one.
    pub norm_plus_one: bool,
    /// Whether the results of attention and feed-forward are normed before they are added.
    pub branch_norms: bool,
    /// The gate's non-linearity.
    pub activation: Activation,
    /// Embeddings are multiplied by this.
    pub embedding_scale: f32,
    /// Products of queries and keys are multiplied by this.
    pub attention_scale: f32,
    /// The families of rotary angles.
    pub ropes: Vec<RopeConfig>,
    /// One per layer.
    pub attention: Vec<LayerAttention>,
    /// Tokens that end a text, from `config.json`.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads `config.json` in a model's folder.
    pub fn load(dir: &Path) -> Result<Self, EngineError> {
        let file = dir.join("config.json");
        Self::parse(&file, &small_file::read(&file)?)
    }

    /// Parses the bytes of a `config.json`; `file` names it in errors.
    pub fn parse(file: &Path, bytes: &[u8]) -> Result<Self, EngineError> {
        let at = At::new(file);
        let config = raw::parse(&at, bytes)?;
        config.check(&at)?;
        Ok(config)
    }

    /// Width of all query heads together.
    #[must_use]
    pub const fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    #[must_use]
    pub const fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    fn check(&self, at: &At) -> Result<(), EngineError> {
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let (heads, kv_heads) = (self.num_heads, self.num_kv_heads);
            return Err(at.invalid(format!("{heads} heads cannot share {kv_heads} key heads")));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(at.invalid(format!("head_dim {} is odd", self.head_dim)));
        }
        for rope in &self.ropes {
            if let RopeScaling::Llama3 {
                low_freq_factor: low,
                high_freq_factor: high,
                ..
            } = rope.scaling
                && low >= high
            {
                let reason = format!("low_freq_factor {low} is not below high_freq_factor {high}");
                return Err(at.invalid(reason));
            }
        }
        Ok(())
    }
}
