//! Text: token ids, chat templates, and the tokens at which a model stops.
//!
//! A conversation only ever grows: ids that were sampled are never tokenised again, and what comes
//! after them is rendered as an increment ([`ChatTemplate::continuation_ids`]).

mod chat;
mod files;
mod jinja;
mod stream;
mod tokenizer;

pub use chat::{ChatMessage, ChatTemplate};
pub use files::stop_tokens;
pub use stream::{StopStrings, TextStream};
pub use tokenizer::Tokenizer;
