//! The coordinator's shell: sessions, store, relay sink, provisioners
