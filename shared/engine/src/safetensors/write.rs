//! Writing: equal tensors give equal bytes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use half::{bf16, f16};

use super::Dtype;
use crate::error::EngineError;

/// One tensor to be written.
#[derive(Debug, Clone)]
pub struct TensorData<'a> {
    /// Its name.
    pub name: String,
    /// Row-major shape; its product is `data.len()`.
    pub shape: Vec<usize>,
    /// Number format to store; values are rounded to nearest even.
    pub dtype: Dtype,
    /// The values.
    pub data: &'a [f32],
}

/// The bytes of a file with these tensors, in this order. Equal input gives equal bytes.
pub fn serialize(
    tensors: &[TensorData<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, EngineError> {
    let mut fields = Vec::with_capacity(tensors.len() + 1);
    if !metadata.is_empty() {
        fields.push(format!("\"__metadata__\":{}", serde_json::json!(metadata)));
    }
    let mut end = 0usize;
    for tensor in tensors {
        if tensor.shape.iter().product::<usize>() != tensor.data.len() {
            let what = format!(
                "{} has {} values for shape {:?}",
                tensor.name,
                tensor.data.len(),
                tensor.shape
            );
            return Err(EngineError::InvalidArgument { what });
        }
        let begin = end;
        end += tensor.data.len() * tensor.dtype.bytes();
        let entry = serde_json::json!({
            "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [begin, end],
        });
        fields.push(format!("{}:{entry}", serde_json::json!(tensor.name)));
    }
    let mut header = format!("{{{}}}", fields.join(","));
    // The format asks for 8-byte alignment of the data, padded with spaces.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut out = Vec::with_capacity(8 + header.len() + end);
    out.extend_from_slice(&(header.len() as u64).to_le_bytes());
    out.extend_from_slice(header.as_bytes());
    for tensor in tensors {
        append_values(&mut out, tensor);
    }
    Ok(out)
}

/// Writes a file with these tensors: to a neighbour first, then renamed, so that a reader
/// never meets half a file.
pub fn write(
    path: &Path,
    tensors: &[TensorData<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<(), EngineError> {
    let bytes = serialize(tensors, metadata)?;
    let partial = path.with_extension("partial");
    let io = |source| EngineError::io(path, source);
    let mut file = File::create(&partial).map_err(io)?;
    file.write_all(&bytes).map_err(io)?;
    file.sync_all().map_err(io)?;
    std::fs::rename(&partial, path).map_err(io)
}

fn append_values(out: &mut Vec<u8>, tensor: &TensorData<'_>) {
    match tensor.dtype {
        Dtype::F32 => tensor
            .data
            .iter()
            .for_each(|v| out.extend_from_slice(&v.to_le_bytes())),
        Dtype::F16 => {
            tensor
                .data
                .iter()
                .for_each(|v| out.extend_from_slice(&f16::from_f32(*v).to_le_bytes()));
        }
        Dtype::Bf16 => {
            tensor
                .data
                .iter()
                .for_each(|v| out.extend_from_slice(&bf16::from_f32(*v).to_le_bytes()));
        }
    }
}
