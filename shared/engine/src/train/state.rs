//! The optimiser's whole state as one byte string: with it, a run goes on to the bit.

use std::collections::BTreeMap;

use super::arena::Moments;
use crate::adapter::{Adapter, LoraConfig, Site};
use crate::error::EngineError;
use crate::safetensors::{Dtype, SafetensorsFile, TensorData, serialize};

/// Names the layout; another number is another layout.
const FORMAT: &str = "volley-train-1";

/// Masters, moments and step count, with the settings of the adapter they belong to.
pub(super) fn save(moments: &Moments, adapter: &Adapter) -> Vec<u8> {
    let Moments {
        master,
        exp_avg,
        exp_avg_sq,
        step,
    } = moments;
    let tensor = |name: &str, data| TensorData {
        name: name.to_owned(),
        shape: vec![master.len()],
        dtype: Dtype::F32,
        data,
    };
    let tensors = [
        tensor("master", master.as_slice()),
        tensor("exp_avg", exp_avg),
        tensor("exp_avg_sq", exp_avg_sq),
    ];
    let metadata = BTreeMap::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("adapter".to_owned(), settings(adapter.config())),
        ("step".to_owned(), step.to_string()),
    ]);
    serialize(&tensors, &metadata).expect("every shape is the length of its data")
}

/// Reads what [`save`] wrote, for an adapter of the same settings.
pub(super) fn restore(bytes: &[u8], adapter: &Adapter) -> Result<Moments, EngineError> {
    let file = SafetensorsFile::from_bytes("state", bytes.to_vec())
        .map_err(|error| invalid(error.to_string()))?;
    let field = |key: &str| -> Result<&str, EngineError> {
        let value = file.metadata().get(key).map(String::as_str);
        value.ok_or_else(|| invalid(format!("it has no {key}")))
    };
    let due = settings(adapter.config());
    for (key, expected) in [("format", FORMAT), ("adapter", due.as_str())] {
        let got = field(key)?;
        if got != expected {
            return Err(invalid(format!("{key} is {got}, expected {expected}")));
        }
    }
    let step = field("step")?.parse();
    let step = step.map_err(|_| invalid("its step is no number".to_owned()))?;
    let len = adapter.num_values();
    let values = |name: &str| -> Result<Vec<f32>, EngineError> {
        let tensor = file
            .tensor(name)
            .and_then(|tensor| tensor.expect_shape(&[len]));
        let tensor = tensor.map_err(|error| invalid(error.to_string()))?;
        let values = tensor.to_f32();
        if tensor.dtype() != Dtype::F32 || values.iter().any(|value| !value.is_finite()) {
            return Err(invalid(format!("{name} is not made of finite f32 values")));
        }
        Ok(values)
    };
    Ok(Moments {
        master: values("master")?,
        exp_avg: values("exp_avg")?,
        exp_avg_sq: values("exp_avg_sq")?,
        step,
    })
}

/// What the arena's layout and the adapter's meaning depend on.
fn settings(config: &LoraConfig) -> String {
    let LoraConfig {
        rank,
        alpha,
        rslora,
        targets,
        lm_head,
    } = config;
    let targets = targets.iter().map(|target| target.name());
    let targets: Vec<&str> = targets.chain(lm_head.then_some(Site::LM_HEAD)).collect();
    let alpha = alpha.to_bits();
    format!(
        "rank {rank}, alpha bits {alpha}, rslora {rslora}, {}",
        targets.join(" ")
    )
}

const fn invalid(reason: String) -> EngineError {
    EngineError::StateInvalid { reason }
}
