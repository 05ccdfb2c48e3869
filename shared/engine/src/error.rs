//! What can go wrong in the engine, with the file, tensor or shape that is to blame.

use std::io;
use std::path::PathBuf;

use volley_protocol::{ErrorCode, Fault};

use thiserror::Error;

/// Messages tell memory in this unit.
const MIB: u64 = 1 << 20;

/// Every failure of the engine. [`EngineError::code`] is the stable name users search for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A file or folder of the model does not exist.
    #[error("{} does not exist", path.display())]
    NotFound {
        /// What was looked for.
        path: PathBuf,
    },
    /// The operating system refused to read or write a file.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// A tensor's bytes reach past the end of its file.
    #[error(
        "{} is truncated: {what} needs {needed_bytes} bytes, the file has {actual_bytes}",
        file.display()
    )]
    Truncated {
        /// The file.
        file: PathBuf,
        /// The tensor or part that is cut off.
        what: String,
        /// Bytes the file must have to hold it.
        needed_bytes: u64,
        /// Bytes the file has.
        actual_bytes: u64,
    },
    /// Something wrote into a weight file while the model was loaded.
    #[error(
        "{} was written to while the model was loaded, so its weights are of no one version; load \
         it again when nothing writes there, and replace files by renaming",
        file.display()
    )]
    ModelChanged {
        /// The file.
        file: PathBuf,
    },
    /// A safetensors header that does not describe its file.
    #[error("{} has a broken safetensors header: {reason}", file.display())]
    SafetensorsHeader {
        /// The file.
        file: PathBuf,
        /// Which rule is broken.
        reason: String,
    },
    /// A tensor that the model or adapter needs is not in its files.
    #[error("{} has no tensor {tensor}", file.display())]
    TensorMissing {
        /// The file, or the folder when no shard has it.
        file: PathBuf,
        /// The missing tensor.
        tensor: String,
    },
    /// A tensor has another shape than the configuration asks for.
    #[error("{}: {tensor} has shape {actual:?}, expected {expected:?}", file.display())]
    TensorShape {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
        /// The shape in the file.
        actual: Vec<usize>,
    },
    /// A tensor is stored in a number format that is not read here.
    #[error("{}: {tensor} is stored as {dtype}; {readable} are read", file.display())]
    TensorDtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The format's name in the file.
        dtype: String,
        /// The formats that are read here.
        readable: &'static str,
    },
    /// A configuration file that cannot be parsed or contradicts itself.
    #[error("{} is not a valid configuration: {reason}", file.display())]
    ConfigInvalid {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A weight is NaN or infinite.
    #[error("{}: tensor {tensor} has a value at index {index} that is not finite", file.display())]
    TensorNonfinite {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// First offending element, row-major.
        index: usize,
    },
    /// The model needs something that this engine does not compute.
    #[error("{}: {what} is not supported", file.display())]
    ModelUnsupported {
        /// The file that asks for it.
        file: PathBuf,
        /// What it asks for, by its name there.
        what: String,
    },
    /// An adapter does not fit the model, or changes the mathematics in an unknown way.
    #[error("adapter does not fit: {what}")]
    AdapterMismatch {
        /// Which tensor, shape or setting, and what was expected.
        what: String,
    },
    /// An adapter contains NaN or infinity.
    #[error("adapter tensor {tensor} has a non-finite value at index {index}")]
    AdapterNonfinite {
        /// The tensor.
        tensor: String,
        /// First offending element, row-major.
        index: usize,
    },
    /// A loss or a gradient is NaN or infinite; no update was made.
    #[error("{what} is not finite; the step was abandoned")]
    LossNonfinite {
        /// Which number.
        what: String,
    },
    /// A step does not fit the memory it may use, even if every layer is computed twice.
    #[error(
        "training on {rows} rows at once needs {} MiB beside the model, the budget is {} MiB",
        needed_bytes.div_ceil(MIB),
        budget_bytes / MIB
    )]
    MemoryBudget {
        /// The budget.
        budget_bytes: u64,
        /// The smallest budget that would do.
        needed_bytes: u64,
        /// Rows of the largest micro-batch.
        rows: usize,
    },
    /// A saved optimiser state that is damaged or belongs to another adapter.
    #[error("the saved training state cannot be restored: {reason}")]
    StateInvalid {
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer or its chat template cannot be read or applied.
    #[error("{}: {reason}", file.display())]
    TokenizerInvalid {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A sequence is longer than the model's positions.
    #[error("sequence needs {needed} positions, the model has {max}")]
    ContextExceeded {
        /// Positions needed.
        needed: usize,
        /// Positions that exist.
        max: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A caller's arguments contradict each other.
    #[error("{what}")]
    InvalidArgument {
        /// What contradicts what.
        what: String,
    },
}

impl From<&EngineError> for Fault {
    /// What a user is told: the same words, under a code that has a page.
    fn from(error: &EngineError) -> Self {
        let code = match error {
            EngineError::NotFound { .. } => ErrorCode::ModelNotFound,
            EngineError::Io { .. } => ErrorCode::IoFailed,
            EngineError::Truncated { .. }
            | EngineError::ModelChanged { .. }
            | EngineError::SafetensorsHeader { .. }
            | EngineError::TensorNonfinite { .. }
            | EngineError::TensorMissing { .. } => ErrorCode::ModelTruncated,
            EngineError::TensorShape { .. }
            | EngineError::TensorDtype { .. }
            | EngineError::ConfigInvalid { .. }
            | EngineError::ModelUnsupported { .. } => ErrorCode::ModelUnsupported,
            EngineError::AdapterMismatch { .. } => ErrorCode::AdapterMismatch,
            EngineError::AdapterNonfinite { .. } => ErrorCode::AdapterNonfinite,
            EngineError::LossNonfinite { .. } => ErrorCode::LossNonfinite,
            EngineError::MemoryBudget { .. } => ErrorCode::ConfigInvalid,
            EngineError::StateInvalid { .. } => ErrorCode::CheckpointInvalid,
            EngineError::TokenizerInvalid { .. } => ErrorCode::TokenizerInvalid,
            EngineError::ContextExceeded { .. } => ErrorCode::ContextExceeded,
            EngineError::TokenOutOfRange { .. } | EngineError::InvalidArgument { .. } => {
                ErrorCode::InvalidRequest
            }
        };
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
        let fault = Self::new(code, format!("{error}{}", cause.unwrap_or_default()));
        match error {
            EngineError::MemoryBudget { needed_bytes, .. } => fault.with_hint(format!(
                "set train.memory_mb to {} or more, or train on shorter sequences",
                needed_bytes.div_ceil(MIB)
            )),
            _ => fault,
        }
    }
}

impl EngineError {
    /// The stable code of this error, as documented for users.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "MODEL_NOT_FOUND",
            Self::Io { .. } => "MODEL_IO",
            Self::Truncated { .. } | Self::TensorNonfinite { .. } => "MODEL_TRUNCATED",
            Self::ModelChanged { .. } => "MODEL_CHANGED",
            Self::SafetensorsHeader { .. } => "SAFETENSORS_HEADER",
            Self::TensorMissing { .. } => "TENSOR_MISSING",
            Self::TensorShape { .. } => "TENSOR_SHAPE",
            Self::TensorDtype { .. } => "TENSOR_DTYPE",
            Self::ConfigInvalid { .. } => "MODEL_CONFIG",
            Self::ModelUnsupported { .. } => "MODEL_UNSUPPORTED",
            Self::AdapterMismatch { .. } => "ADAPTER_MISMATCH",
            Self::AdapterNonfinite { .. } => "ADAPTER_NONFINITE",
            Self::LossNonfinite { .. } => "LOSS_NONFINITE",
            Self::MemoryBudget { .. } => "MEMORY_BUDGET",
            Self::StateInvalid { .. } => "CHECKPOINT_INVALID",
            Self::TokenizerInvalid { .. } => "TOKENIZER_INVALID",
            Self::ContextExceeded { .. } => "CONTEXT_EXCEEDED",
            Self::TokenOutOfRange { .. } => "TOKEN_OUT_OF_RANGE",
            Self::InvalidArgument { .. } => "INVALID_ARGUMENT",
        }
    }

    /// Wraps an error of the operating system, telling "does not exist" from the rest.
    #[must_use]
    pub fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        if source.kind() == io::ErrorKind::NotFound {
            Self::NotFound { path }
        } else {
            Self::Io { path, source }
        }
    }
}
