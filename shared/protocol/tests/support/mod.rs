//! Samples of everything that travels, and the files that hold their bytes.

// Each test binary uses its own part of this.
#![allow(dead_code)]

pub(crate) mod bulk;
pub(crate) mod client;
pub(crate) mod control;
pub(crate) mod data;
pub(crate) mod fields;
pub(crate) mod file;
pub(crate) mod names;
mod parts;
pub(crate) mod plain;

use std::collections::BTreeSet;
use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};
use volley_protocol::codec::{self, CodecError};

use fields::{Field, Trace, Variant};

/// Decodes bytes and tells whether they are the sample's value.
type Decode = Box<dyn Fn(&[u8]) -> Result<bool, CodecError>>;

/// A value, its bytes and what they are.
pub(crate) struct Sample {
    /// Its name in the file.
    pub(crate) name: String,
    /// What the codec writes.
    pub(crate) bytes: Vec<u8>,
    /// What the second writer writes, with names.
    pub(crate) fields: Vec<Field>,
    /// Variants in it.
    pub(crate) variants: BTreeSet<Variant>,
    /// Reads it back.
    pub(crate) decode: Decode,
}

impl Sample {
    /// A value that travels in the codec's format.
    pub(crate) fn of<T>(name: impl Into<String>, value: T) -> Self
    where
        T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
    {
        let trace = Trace::of(&value);
        Self {
            name: name.into(),
            bytes: codec::encode(&value),
            fields: trace.fields,
            variants: trace.variants,
            decode: Box::new(move |bytes| Ok(codec::decode::<T>(bytes)? == value)),
        }
    }
}

/// A golden file and what it must hold.
pub(crate) struct Page {
    pub(crate) file: &'static str,
    pub(crate) samples: Vec<Sample>,
}

/// All golden files of bytes.
pub(crate) fn pages() -> Vec<Page> {
    let page = |file, samples| Page { file, samples };
    vec![
        page("handshake.txt", client::handshake()),
        page("client.txt", client::conversation()),
        page("worker.txt", control::worker()),
        page("learner.txt", control::learner()),
        page("delivery.txt", control::delivery()),
        page("bulk.txt", bulk::all()),
        page("data.txt", plain::all()),
    ]
}

/// All samples.
pub(crate) fn samples() -> impl Iterator<Item = Sample> {
    pages().into_iter().flat_map(|page| page.samples)
}
