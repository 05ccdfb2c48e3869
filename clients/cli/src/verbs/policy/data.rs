//! A batch from a safetensors file.
//!
//! Per datum `i`, counted from 0: `datum{i}.tokens` (or `seq{i}.tokens`) with `T + 1` integers,
//! `datum{i}.weights`, `.logprobs` and `.advantages` with `T` floats each.

use std::path::Path;

use volley_engine::safetensors::SafetensorsFile;
use volley_engine::train::Datum;
use volley_protocol::{ErrorCode, Fault};

use super::unreadable;

pub(super) fn read(path: &Path) -> Result<Vec<Datum>, Fault> {
    let file = SafetensorsFile::open(path).map_err(|error| unreadable(&error))?;
    let has = |name: &String| file.names().any(|known| known == name);
    let mut data = Vec::new();
    loop {
        let i = data.len();
        let named = [format!("datum{i}.tokens"), format!("seq{i}.tokens")]
            .into_iter()
            .find(has);
        match named.filter(|_| has(&format!("datum{i}.weights"))) {
            Some(tokens) => data.push(datum(&file, i, &tokens)?),
            None if i == 0 => {
                let message = format!("{} holds no datum0.tokens with weights", path.display());
                return Err(Fault::new(ErrorCode::InvalidRequest, message));
            }
            None => return Ok(data),
        }
    }
}

fn datum(file: &SafetensorsFile, i: usize, tokens: &str) -> Result<Datum, Fault> {
    let floats = |field: &str| {
        let tensor = file.tensor(&format!("datum{i}.{field}"));
        tensor
            .map(|tensor| tensor.to_f32())
            .map_err(|error| unreadable(&error))
    };
    let ids = file.integers(tokens).map_err(|error| unreadable(&error))?;
    let tokens = ids.iter().map(|id| {
        u32::try_from(*id).map_err(|_| {
            Fault::new(
                ErrorCode::InvalidRequest,
                format!("datum {i}: {id} is no token"),
            )
        })
    });
    Ok(Datum {
        tokens: tokens.collect::<Result<_, _>>()?,
        sampled_logprobs: floats("logprobs")?,
        advantages: floats("advantages")?,
        weights: floats("weights")?,
    })
}
