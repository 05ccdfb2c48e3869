//! The places of a model where an adapter can have a pair: the linear layers of every transformer
//! layer, and the output matrix.

use std::ops::{Index, IndexMut};

use super::Target;
use crate::config::ModelConfig;

/// A matrix that can be adapted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Site {
    /// A linear layer of the transformer layer of that number.
    Layer(usize, Target),
    /// The output matrix. Where it is the embedding too, looking a token up stays as it is: only
    /// the product with it has the low-rank term.
    LmHead,
}

impl Site {
    /// The name of [`Self::LmHead`] in checkpoints, as a target and as a whole path.
    pub const LM_HEAD: &'static str = "lm_head";

    /// All sites of a model with that many layers, in the order of files and the optimiser.
    pub fn all(num_layers: usize) -> impl Iterator<Item = Self> {
        let layers =
            (0..num_layers).flat_map(|layer| Target::ALL.map(|target| Self::Layer(layer, target)));
        layers.chain([Self::LmHead])
    }

    /// The module's path in a checkpoint: `model.layers.0.self_attn.q_proj`, `lm_head`.
    #[must_use]
    pub fn path(self) -> String {
        match self {
            Self::Layer(layer, target) => format!("model.layers.{layer}.{}", target.path()),
            Self::LmHead => Self::LM_HEAD.to_owned(),
        }
    }

    /// The site of that path, if it is spelled as [`Self::path`] spells it.
    #[must_use]
    pub fn from_path(path: &str) -> Option<Self> {
        if path == Self::LM_HEAD {
            return Some(Self::LmHead);
        }
        let (layer, rest) = path.strip_prefix("model.layers.")?.split_once('.')?;
        let mut targets = Target::ALL.into_iter();
        let target = targets.find(|target| target.path() == rest)?;
        // `+1` and `01` are numbers, too, but other names.
        let number: usize = layer.parse().ok()?;
        (number.to_string() == layer).then_some(Self::Layer(number, target))
    }

    /// Outputs and inputs of the matrix in a model.
    #[must_use]
    pub const fn shape(self, model: &ModelConfig) -> (usize, usize) {
        match self {
            Self::Layer(_, target) => target.shape(model),
            Self::LmHead => (model.vocab_size, model.hidden_size),
        }
    }
}

/// One value for every site of a model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PerSite<T> {
    layers: Vec<[T; Target::ALL.len()]>,
    lm_head: T,
}

impl<T> PerSite<T> {
    /// Asks for the values in the order of [`Site::all`].
    pub(crate) fn from_fn(num_layers: usize, mut value: impl FnMut(Site) -> T) -> Self {
        let layers = (0..num_layers)
            .map(|layer| Target::ALL.map(|target| value(Site::Layer(layer, target))))
            .collect();
        let lm_head = value(Site::LmHead);
        Self { layers, lm_head }
    }

    pub(crate) const fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// The value of a site; none where the model has no such layer.
    pub(crate) fn get(&self, site: Site) -> Option<&T> {
        match site {
            Site::Layer(layer, target) => Some(&self.layers.get(layer)?[target.index()]),
            Site::LmHead => Some(&self.lm_head),
        }
    }

    /// Sites and values in the order of [`Site::all`].
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Site, &T)> {
        let values = self.layers.iter().flatten().chain([&self.lm_head]);
        Site::all(self.num_layers()).zip(values)
    }

    /// The values in the order of [`Site::all`].
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let layers = self.layers.iter_mut().flatten();
        layers.chain([&mut self.lm_head])
    }
}

impl<T> Index<Site> for PerSite<T> {
    type Output = T;

    fn index(&self, site: Site) -> &T {
        match site {
            Site::Layer(layer, target) => &self.layers[layer][target.index()],
            Site::LmHead => &self.lm_head,
        }
    }
}

impl<T> IndexMut<Site> for PerSite<T> {
    fn index_mut(&mut self, site: Site) -> &mut T {
        match site {
            Site::Layer(layer, target) => &mut self.layers[layer][target.index()],
            Site::LmHead => &mut self.lm_head,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_they_are_written_and_no_other_spelling() {
        for site in Site::all(12) {
            assert_eq!(Site::from_path(&site.path()), Some(site));
        }
        for path in [
            "",
            "lm_head.",
            "model.lm_head",
            "model.embed_tokens",
            "model.layers.01.self_attn.q_proj",
            "model.layers.+1.self_attn.q_proj",
            "model.layers.1.q_proj",
            "model.layers.1",
        ] {
            assert_eq!(Site::from_path(path), None, "{path}");
        }
    }

    #[test]
    fn values_stand_in_the_order_of_the_sites() {
        let mut next = 0;
        let numbered = |_| {
            next += 1;
            next
        };
        let mut sites = PerSite::from_fn(3, numbered);
        for (number, (site, value)) in sites.iter().enumerate() {
            assert_eq!((*value, sites[site]), (number + 1, number + 1));
            assert_eq!(sites.get(site), Some(value));
        }
        assert_eq!(sites.iter().count(), 3 * Target::ALL.len() + 1);
        assert_eq!(sites.get(Site::Layer(3, Target::Q)), None);
        sites[Site::LmHead] = 0;
        assert_eq!(sites.values_mut().last(), Some(&mut 0));
    }
}
