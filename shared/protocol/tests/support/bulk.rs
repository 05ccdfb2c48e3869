//! What travels outside of control frames: trajectories, batches, records of result pages. The
//! layouts are written out here by hand, next to the crate's own writers.

use std::collections::{BTreeMap, BTreeSet};

use volley_protocol::client::ResultRecord;
use volley_protocol::codec::CodecError;
use volley_protocol::ids::PeerId;
use volley_protocol::trajectory::{self, Trajectory, TrajectoryHeader, decode_batch, encode_batch};

use super::Sample;
use super::data;
use super::fields::{Field, Trace};

/// All of them.
pub(crate) fn all() -> Vec<Sample> {
    vec![
        Sample::of("TrajectoryHeader", adapted().header),
        Sample::of("TrajectoryHeader.base", base().header),
        trajectory("Trajectory", adapted()),
        trajectory("Trajectory.empty", base()),
        batch("Batch", vec![adapted(), base()]),
        batch("Batch.empty", Vec::new()),
        result("ResultRecord.Finished", finished()),
        result("ResultRecord.Failed", failed()),
    ]
}

/// A rollout that failed for good.
pub(crate) fn failed() -> ResultRecord {
    ResultRecord::Failed {
        index: 8,
        fault: data::fault(),
    }
}

fn finished() -> ResultRecord {
    ResultRecord::Finished(Box::new(adapted()))
}

/// Two given tokens, one drawn by an adapter.
fn adapted() -> Trajectory {
    let header = TrajectoryHeader {
        attempt: data::attempt(),
        worker: data::PEER,
        instance: 101,
        version: Some(data::version()),
        numerics: "cpu-f32-1".into(),
        reward: 0.5,
        metrics: BTreeMap::from([("format_ok".into(), 1.0), ("length".into(), 3.0)]),
        turns: 1,
        truncated: true,
        transcript: vec![("user".into(), "1+1=".into())],
        episode_ms: 12,
    };
    Trajectory {
        header,
        tokens: vec![11, 12, 13],
        logprobs: vec![0.0, 0.0, -0.5],
        sampled: vec![0, 0, 1],
    }
}

/// No tokens, the base model.
fn base() -> Trajectory {
    let header = TrajectoryHeader {
        attempt: data::attempt(),
        worker: PeerId(1),
        instance: 102,
        version: None,
        numerics: String::new(),
        reward: -1.0,
        metrics: BTreeMap::new(),
        turns: 0,
        truncated: false,
        transcript: Vec::new(),
        episode_ms: 0,
    };
    Trajectory {
        header,
        tokens: Vec::new(),
        logprobs: Vec::new(),
        sampled: Vec::new(),
    }
}

fn trajectory(name: &str, value: Trajectory) -> Sample {
    Sample {
        name: name.to_owned(),
        bytes: value.encode(),
        fields: record_fields(&value),
        variants: BTreeSet::new(),
        decode: Box::new(move |bytes| {
            let (decoded, used) = Trajectory::decode(bytes)?;
            whole(used, bytes)?;
            Ok(decoded == value)
        }),
    }
}

fn batch(name: &str, records: Vec<Trajectory>) -> Sample {
    let encoded: Vec<_> = records.iter().map(Trajectory::encode).collect();
    let mut fields = vec![
        Field::new("kind=Trajectories", &[1]),
        Field::new("first_seq", &77u64.to_le_bytes()),
        Field::new("count", &(records.len() as u32).to_le_bytes()),
    ];
    fields.extend(records.iter().flat_map(record_fields));
    Sample {
        name: name.to_owned(),
        bytes: encode_batch(77, &encoded),
        fields,
        variants: BTreeSet::new(),
        decode: Box::new(move |bytes| {
            let trajectory::Batch {
                first_seq,
                records: decoded,
            } = decode_batch(bytes)?;
            let pieces = decoded.iter().map(|view| view.bytes);
            let same_pieces = pieces.eq(encoded.iter().map(Vec::as_slice));
            let values = decoded.into_iter().map(|view| view.into_trajectory());
            let same = values.eq(records.iter().cloned());
            Ok(first_seq == 77 && same && same_pieces)
        }),
    }
}

fn result(name: &str, value: ResultRecord) -> Sample {
    let fields = match &value {
        ResultRecord::Finished(trajectory) => {
            let mut fields = vec![Field::new("tag=Finished", &[0])];
            fields.extend(record_fields(trajectory));
            fields
        }
        ResultRecord::Failed { index, fault } => {
            let mut fields = vec![
                Field::new("tag=Failed", &[1]),
                Field::new("index", &index.to_le_bytes()),
            ];
            fields.extend(Trace::of(fault).fields);
            fields
        }
    };
    Sample {
        name: name.to_owned(),
        bytes: value.encode(),
        fields,
        variants: BTreeSet::new(),
        decode: Box::new(move |bytes| Ok(ResultRecord::decode(bytes)? == value)),
    }
}

/// `[u32 header length][header][u32 n][n × u32 token][n × f32 log-prob][n × u8 sampled]`
fn record_fields(value: &Trajectory) -> Vec<Field> {
    let header = Trace::of(&value.header).fields;
    let header_len: usize = header.iter().map(|field| field.bytes.len()).sum();
    let mut fields = vec![Field::new("header_len", &(header_len as u32).to_le_bytes())];
    fields.extend(header);
    fields.push(Field::new("n", &(value.tokens.len() as u32).to_le_bytes()));
    let tokens = value.tokens.iter().map(|token| token.to_le_bytes());
    fields.extend(tokens.map(|bytes| Field::new("token", &bytes)));
    let logprobs = value.logprobs.iter().map(|logprob| logprob.to_le_bytes());
    fields.extend(logprobs.map(|bytes| Field::new("logprob", &bytes)));
    if !value.sampled.is_empty() {
        fields.push(Field::new("sampled", &value.sampled));
    }
    fields
}

/// A record in the middle of a batch may be followed by others; a lone one may not.
fn whole(used: usize, bytes: &[u8]) -> Result<(), CodecError> {
    if used == bytes.len() {
        return Ok(());
    }
    Err(CodecError::Trailing {
        what: "trajectory",
        used,
        len: bytes.len(),
    })
}
