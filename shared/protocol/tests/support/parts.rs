//! The second writer's half for values that consist of others.

use std::fmt;

use serde::ser::{self, Serialize};

use super::fields::{Field, Trace};

/// A value with parts.
pub(crate) struct Parts<'a> {
    trace: &'a mut Trace,
    /// Label of the whole.
    label: String,
    /// Fields there were before it.
    begin: usize,
    /// Parts so far.
    count: usize,
}

impl<'a> Parts<'a> {
    pub(super) fn of(trace: &'a mut Trace) -> Self {
        let label = trace.label.clone();
        let begin = trace.fields.len();
        Self {
            trace,
            label,
            begin,
            count: 0,
        }
    }

    fn part<T: Serialize + ?Sized>(&mut self, suffix: &str, value: &T) -> fmt::Result {
        self.count += 1;
        let label = format!("{}{suffix}", self.label);
        self.trace.element(label, value)
    }

    fn named<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> fmt::Result {
        self.trace.element(name.to_owned(), value)
    }

    /// Bytes of an array are shown as one field: a digest, an address.
    fn join_bytes(self) {
        let fields = &mut self.trace.fields;
        let whole = &fields[self.begin..];
        let single = whole.len() == self.count && whole.iter().all(|field| field.bytes.len() == 1);
        if single && self.count > 0 {
            let bytes: Vec<u8> = whole.iter().flat_map(|field| field.bytes.clone()).collect();
            fields.truncate(self.begin);
            fields.push(Field::new(&self.label, &bytes));
        }
    }
}

impl ser::SerializeSeq for Parts<'_> {
    type Ok = ();
    type Error = fmt::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> fmt::Result {
        self.part("", value)
    }

    fn end(self) -> fmt::Result {
        Ok(())
    }
}

impl ser::SerializeTuple for Parts<'_> {
    type Ok = ();
    type Error = fmt::Error;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> fmt::Result {
        self.part(&format!(".{}", self.count), value)
    }

    fn end(self) -> fmt::Result {
        self.join_bytes();
        Ok(())
    }
}

impl ser::SerializeMap for Parts<'_> {
    type Ok = ();
    type Error = fmt::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> fmt::Result {
        self.part(".key", key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> fmt::Result {
        self.part(".value", value)
    }

    fn end(self) -> fmt::Result {
        Ok(())
    }
}

impl ser::SerializeStruct for Parts<'_> {
    type Ok = ();
    type Error = fmt::Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> fmt::Result {
        self.named(name, value)
    }

    fn end(self) -> fmt::Result {
        Ok(())
    }
}

impl ser::SerializeStructVariant for Parts<'_> {
    type Ok = ();
    type Error = fmt::Error;

    fn serialize_field<T: Serialize + ?Sized>(
        &mut self,
        name: &'static str,
        value: &T,
    ) -> fmt::Result {
        self.named(name, value)
    }

    fn end(self) -> fmt::Result {
        Ok(())
    }
}
