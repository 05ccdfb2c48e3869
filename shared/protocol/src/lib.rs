//! The words of the system: ids, plain data types, messages and their codec
