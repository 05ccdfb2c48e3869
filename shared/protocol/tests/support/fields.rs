//! A second writer of the wire format, made from `docs/protocol.md` and not from the codec.
//!
//! It writes a value field by field and remembers the name of each, so that a golden can say what
//! its bytes are, and so that what the page claims about the format is proved: its bytes must be
//! the codec's.

use std::collections::BTreeSet;
use std::fmt;

use serde::ser::{self, Impossible, Serialize};

use super::parts::Parts;

/// Some bytes and what they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) label: String,
    pub(crate) bytes: Vec<u8>,
}

impl Field {
    pub(crate) fn new(label: &str, bytes: &[u8]) -> Self {
        let (label, bytes) = (label.to_owned(), bytes.to_vec());
        Self { label, bytes }
    }
}

/// A variant that was written: enum, number on the wire, name.
pub(crate) type Variant = (&'static str, u32, &'static str);

/// A value taken apart.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    pub(crate) fields: Vec<Field>,
    pub(crate) variants: BTreeSet<Variant>,
    pub(super) label: String,
}

impl Trace {
    /// Takes `value` apart.
    pub(crate) fn of<T: Serialize>(value: &T) -> Self {
        let mut trace = Self::default();
        value.serialize(&mut trace).expect("no writer fails");
        trace
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), fmt::Error> {
        let label = if self.label.is_empty() {
            "value"
        } else {
            &self.label
        };
        // An empty text has a length and nothing to show.
        if !bytes.is_empty() {
            self.fields.push(Field::new(label, bytes));
        }
        Ok(())
    }

    /// Writes with a longer label.
    fn put_as(&mut self, suffix: &str, bytes: &[u8]) -> Result<(), fmt::Error> {
        let label = format!("{}{suffix}", self.label);
        let outer = std::mem::replace(&mut self.label, label);
        self.put(bytes)?;
        self.label = outer;
        Ok(())
    }

    fn len(&mut self, len: Option<usize>) -> Result<(), fmt::Error> {
        let len = len.expect("every sequence knows its length") as u64;
        self.put_as(".len", &len.to_le_bytes())
    }

    fn variant(&mut self, variant: Variant) -> Result<(), fmt::Error> {
        let (_, number, name) = variant;
        let shown = if self.label.is_empty() { "" } else { "=" };
        self.variants.insert(variant);
        self.put_as(&format!("{shown}{name}"), &number.to_le_bytes())
    }

    pub(super) fn element<T: Serialize + ?Sized>(
        &mut self,
        label: String,
        value: &T,
    ) -> fmt::Result {
        let outer = std::mem::replace(&mut self.label, label);
        value.serialize(&mut *self)?;
        self.label = outer;
        Ok(())
    }
}

/// Numbers have a fixed width, little end first.
macro_rules! numbers {
    ($($method:ident: $type:ty),*) => {$(
        fn $method(self, number: $type) -> fmt::Result {
            self.put(&number.to_le_bytes())
        }
    )*};
}

/// What no message has so far. Who needs one writes it here and in `docs/protocol.md`.
macro_rules! unused {
    ($($method:ident($($type:ty),*) -> $out:ty),* $(,)?) => {$(
        fn $method(self, $(_: $type),*) -> Result<$out, fmt::Error> {
            panic!("{} has no rule in docs/protocol.md", stringify!($method))
        }
    )*};
}

type Nothing = Impossible<(), fmt::Error>;

impl<'a> ser::Serializer for &'a mut Trace {
    type Ok = ();
    type Error = fmt::Error;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Nothing;
    type SerializeTupleVariant = Nothing;
    type SerializeMap = Parts<'a>;
    type SerializeStruct = Parts<'a>;
    type SerializeStructVariant = Parts<'a>;

    numbers!(serialize_i8: i8, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
             serialize_u128: u128, serialize_f32: f32, serialize_f64: f64);

    unused!(
        serialize_i16(i16) -> (),
        serialize_i32(i32) -> (),
        serialize_i64(i64) -> (),
        serialize_char(char) -> (),
        serialize_unit() -> (),
        serialize_unit_struct(&'static str) -> (),
        serialize_tuple_struct(&'static str, usize) -> Nothing,
        serialize_tuple_variant(&'static str, u32, &'static str, usize) -> Nothing,
    );

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_bool(self, value: bool) -> fmt::Result {
        self.put(&[u8::from(value)])
    }

    fn serialize_str(self, text: &str) -> fmt::Result {
        self.serialize_bytes(text.as_bytes())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> fmt::Result {
        self.len(Some(bytes.len()))?;
        self.put(bytes)
    }

    fn serialize_none(self) -> fmt::Result {
        self.put_as("?", &[0])
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> fmt::Result {
        self.put_as("?", &[1])?;
        value.serialize(self)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> fmt::Result {
        value.serialize(self)
    }

    fn serialize_unit_variant(
        self,
        name: &'static str,
        number: u32,
        variant: &'static str,
    ) -> fmt::Result {
        self.variant((name, number, variant))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        number: u32,
        variant: &'static str,
        value: &T,
    ) -> fmt::Result {
        self.variant((name, number, variant))?;
        self.element(variant.to_owned(), value)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        number: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, fmt::Error> {
        self.variant((name, number, variant))?;
        Ok(Parts::of(self))
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Parts<'a>, fmt::Error> {
        self.len(len)?;
        Ok(Parts::of(self))
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Parts<'a>, fmt::Error> {
        self.len(len)?;
        Ok(Parts::of(self))
    }

    fn serialize_tuple(self, _: usize) -> Result<Parts<'a>, fmt::Error> {
        Ok(Parts::of(self))
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>, fmt::Error> {
        Ok(Parts::of(self))
    }
}
