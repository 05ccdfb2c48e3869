//! `metrics.jsonl`: one line for each step, the fields of a step's report, the digest in hex.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use volley_protocol::run::StepReport;
use volley_protocol::{ErrorCode, Fault};

use crate::faults;

/// The line of a step, newline included.
#[must_use]
pub fn metrics_line(report: &StepReport) -> String {
    let mut line = json!(report);
    if let Some(fields) = line.as_object_mut() {
        fields.insert("digest".into(), json!(report.digest.to_string()));
    }
    format!("{line}\n")
}

/// Reads the steps of a file, ascending; of a step that was made twice, the later line counts. A
/// torn last line is left out, and no file is no steps.
///
/// # Errors
/// `CHECKPOINT_INVALID` with the line that is damaged, `IO_FAILED`.
pub fn read_metrics(path: &Path) -> Result<Vec<StepReport>, Fault> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(faults::io("read", path, &error)),
    };
    let mut steps = BTreeMap::new();
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    for (at, line) in lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
    {
        match parse(line) {
            Ok(report) => drop(steps.insert(report.step, report)),
            Err(_) if at + 1 == lines.len() => {}
            Err(error) => {
                let message = format!("{}:{}: {error}", path.display(), at + 1);
                return Err(Fault::new(ErrorCode::CheckpointInvalid, message));
            }
        }
    }
    Ok(steps.into_values().collect())
}

/// Fields that are missing (an earlier build did not know them) or null (JSON has no NaN) are 0.
fn parse(line: &[u8]) -> Result<StepReport, String> {
    let said: Map<String, Value> = serde_json::from_slice(line).map_err(|e| e.to_string())?;
    if !said.get("step").is_some_and(Value::is_u64) {
        return Err("it has no step".to_owned());
    }
    let mut value = json!(StepReport::default());
    for (name, field) in said.into_iter().filter(|(_, field)| !field.is_null()) {
        value[name] = field;
    }
    if let Some(hex) = value["digest"].as_str() {
        let bytes = unhex(hex).ok_or_else(|| format!("`{hex}` is no digest"))?;
        value["digest"] = json!(bytes);
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn unhex(hex: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| (c as char).to_digit(16).map(|digit| digit as u8);
    let (pairs, []) = hex.as_bytes().as_chunks::<2>() else {
        return None;
    };
    pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use volley_protocol::Digest;

    use super::*;

    fn report(step: u64, reward_mean: f64) -> StepReport {
        let digest = Digest::of(&step.to_le_bytes());
        let metrics = [("exact".to_owned(), 0.25)].into();
        StepReport {
            step,
            digest,
            reward_mean,
            metrics,
            ..StepReport::default()
        }
    }

    #[test]
    fn lines_come_back_and_the_last_word_counts() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(read_metrics(&path), Ok(vec![]));
        let lines = [
            report(1, 0.1),
            report(2, 0.2),
            report(3, 0.3),
            report(2, 0.25),
        ];
        let text: String = lines.iter().map(metrics_line).collect();
        assert!(text.contains(&format!("\"digest\":\"{}\"", lines[0].digest)));
        std::fs::write(&path, format!("{text}{{\"step\":4,")).expect("write");
        let expected = vec![report(1, 0.1), report(2, 0.25), report(3, 0.3)];
        assert_eq!(read_metrics(&path), Ok(expected));
        std::fs::write(&path, text.replacen("\"step\":2", "\"step\":x", 1)).expect("write");
        let fault = read_metrics(&path).expect_err("damaged");
        assert!(fault.message.contains("metrics.jsonl:2: "), "{fault}");
    }
}
