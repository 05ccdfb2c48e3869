//! What a policy is pulled towards.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer, ser::Error as _};

/// What `train.kl_penalty` pulls towards.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum KlReference {
    /// The base model.
    #[default]
    Base,
    /// A version of the run itself; the base model, as long as it has not been made.
    Step(u64),
    /// A folder with an adapter in PEFT's layout.
    Adapter(PathBuf),
}

/// What the name of a version begins with.
const STEP: &str = "step:";

impl FromStr for KlReference {
    type Err = Infallible;

    /// `base`, `step:N`, or a folder.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        let step = text.strip_prefix(STEP).and_then(|step| step.parse().ok());
        Ok(match (text, step) {
            ("base", _) => Self::Base,
            (_, Some(step)) => Self::Step(step),
            (folder, None) => Self::Adapter(PathBuf::from(folder)),
        })
    }
}

impl KlReference {
    /// Whether it looks like a version without being one, which no recipe may name: a folder of
    /// such a name is `./step:x`.
    pub(super) fn is_misspelt(&self) -> bool {
        let folder = match self {
            Self::Adapter(folder) => folder.to_str(),
            Self::Base | Self::Step(_) => None,
        };
        folder.is_some_and(|folder| folder.starts_with(STEP))
    }
}

impl From<String> for KlReference {
    fn from(text: String) -> Self {
        let Ok(reference) = text.parse();
        reference
    }
}

impl fmt::Display for KlReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("base"),
            Self::Step(step) => write!(f, "{STEP}{step}"),
            Self::Adapter(folder) => folder.display().fmt(f),
        }
    }
}

impl Serialize for KlReference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Adapter(folder) if folder.to_str().is_none() => {
                Err(S::Error::custom("the folder of kl_reference is not UTF-8"))
            }
            other => serializer.collect_str(other),
        }
    }
}
