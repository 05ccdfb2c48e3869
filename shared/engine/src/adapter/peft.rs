//! Adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A configuration has some forty keys, most of them about how training began. Those that change
//! what the adapter computes are refused by name; unknown ones are ignored.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::bytes::Settings;
use super::{Adapter, Site, mismatch, shape_mismatch};
use crate::config::ModelConfig;
use crate::error::EngineError;
use crate::model::Model;
use crate::safetensors::{SafetensorsFile, TensorView, write};
use crate::small_file;

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Under this name PEFT saves the base's own output matrix beside a pair on it.
const BASE_COPY: &str = "base_model.model.lm_head.base_layer.weight";

/// How far a copy of a weight may lie from it, relative and absolute: either may have been rounded
/// to 16 bits, bfloat16 by 2^-9 at most, f16 by that much only near its smallest numbers.
const COPY_RELATIVE_MAX: f32 = 1.0 / 256.0;
const COPY_ABSOLUTE_MAX: f32 = 1e-6;

/// Keys that change the mathematics unless they are null, false or empty.
const REFUSED_UNLESS_EMPTY: [&str; 16] = [
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// Initialisations that leave the base weights as they are. The others (`pissa`, `olora`, `corda`,
/// `loftq`, …) move a part of the base into the adapter, which then fits no published base.
const PLAIN_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

impl Adapter {
    /// Loads an adapter that PEFT (or [`Self::save_peft`]) wrote. PEFT saves a copy of the output
    /// matrix beside a pair on it; this looks at the copy's shape alone, [`Self::load_peft_for`]
    /// at its values, too.
    ///
    /// # Errors
    ///
    /// A file is missing or broken, a setting changes the mathematics, or a tensor does not fit.
    pub fn load_peft(model: &ModelConfig, dir: &Path) -> Result<Self, EngineError> {
        Self::with_file(model, dir).map(|(adapter, _)| adapter)
    }

    /// The same for a model that is there. A copy of another output matrix than the model's is
    /// refused: the adapter was trained on another base.
    ///
    /// # Errors
    ///
    /// Those of [`Self::load_peft`], and [`EngineError::AdapterMismatch`] for such a copy.
    pub fn load_peft_for(model: &Model, dir: &Path) -> Result<Self, EngineError> {
        let (adapter, file) = Self::with_file(model.config(), dir)?;
        if let Some(copy) = base_copy(&file)? {
            refuse_other_output(model, &copy)?;
        }
        Ok(adapter)
    }

    /// An adapter and the file of its tensors.
    fn with_file(model: &ModelConfig, dir: &Path) -> Result<(Self, SafetensorsFile), EngineError> {
        let path = dir.join(CONFIG_FILE);
        let bytes = small_file::read(&path)?;
        let config: Value = serde_json::from_slice(&bytes).map_err(|error| {
            let reason = error.to_string();
            EngineError::ConfigInvalid {
                file: path.clone(),
                reason,
            }
        })?;
        let settings = settings(&config)?;
        let file = SafetensorsFile::open(&dir.join(WEIGHTS_FILE))?;
        let names = file.names().filter(|name| *name != BASE_COPY);
        let adapter = settings.read(model, &file, names)?;
        adapter.refuse_missing_targets(&config)?;
        if let Some(copy) = base_copy(&file)? {
            let (rows, columns) = Site::LmHead.shape(model);
            if copy.shape() != [rows, columns] {
                return Err(shape_mismatch(BASE_COPY, [rows, columns], copy.shape()));
            }
            if !adapter.config.lm_head {
                let what = format!("tensor={BASE_COPY} belongs to no pair");
                return Err(mismatch(what));
            }
        }
        Ok((adapter, file))
    }

    /// Writes the adapter so that PEFT loads it. `base_model` is what PEFT shows as the base.
    ///
    /// # Errors
    ///
    /// The operating system refuses.
    pub fn save_peft(&self, dir: &Path, base_model: &str) -> Result<(), EngineError> {
        std::fs::create_dir_all(dir).map_err(|error| EngineError::io(dir, error))?;
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        write(&dir.join(WEIGHTS_FILE), &self.file_tensors(), &metadata)?;
        let path = dir.join(CONFIG_FILE);
        let text = format!("{:#}\n", self.peft_config(base_model));
        std::fs::write(&path, text).map_err(|error| EngineError::io(&path, error))
    }

    fn peft_config(&self, base_model: &str) -> Value {
        json!({
            "alpha_pattern": {},
            "base_model_name_or_path": base_model,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": self.config.alpha,
            "lora_bias": false,
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.config.rank,
            "rank_pattern": {},
            "revision": null,
            "target_modules": self.target_modules(),
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.config.rslora,
        })
    }

    /// Module names where every layer has all targets, whole paths otherwise.
    fn target_modules(&self) -> Vec<String> {
        let sites = || Site::all(self.num_layers());
        if sites().all(|site| self.pair(site).is_some() == self.config.adapts(site)) {
            let targets = self.config.targets.iter().map(|target| target.name());
            let lm_head = self.config.lm_head.then_some(Site::LM_HEAD);
            return targets.chain(lm_head).map(str::to_owned).collect();
        }
        let present = sites().filter(|site| self.pair(*site).is_some());
        present.map(Site::path).collect()
    }

    /// An adapter of whole targets must have them in every layer: otherwise its file is incomplete.
    fn refuse_missing_targets(&self, config: &Value) -> Result<(), EngineError> {
        let partial = ["layers_to_transform", "layers_pattern", "exclude_modules"];
        let Some(Value::Array(names)) = config.get("target_modules") else {
            return Ok(());
        };
        if partial.iter().any(|key| !is_empty(config.get(*key))) {
            return Ok(());
        }
        let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
        let told = |site: &Site| match site {
            Site::Layer(_, target) => names.contains(&target.name()),
            Site::LmHead => names.contains(&Site::LM_HEAD),
        };
        let missing = |site: &Site| self.pair(*site).is_none();
        match Site::all(self.num_layers()).filter(told).find(missing) {
            None => Ok(()),
            Some(site) => Err(mismatch(format!("tensor={} is missing", site.path()))),
        }
    }
}

fn settings(config: &Value) -> Result<Settings, EngineError> {
    let peft_type = config.get("peft_type").and_then(Value::as_str);
    if peft_type != Some("LORA") {
        return Err(mismatch(format!(
            "peft_type expected=LORA got={peft_type:?}"
        )));
    }
    for key in REFUSED_UNLESS_EMPTY {
        if !is_empty(config.get(key)) {
            return Err(mismatch(format!("{key}={} is not supported", config[key])));
        }
    }
    match config.get("bias") {
        None | Some(Value::Null) => {}
        Some(Value::String(bias)) if bias == "none" => {}
        Some(bias) => return Err(mismatch(format!("bias={bias} is not supported"))),
    }
    match config.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(_)) => {}
        Some(Value::String(init)) if PLAIN_INITS.contains(&init.as_str()) => {}
        Some(init) => {
            return Err(mismatch(format!(
                "init_lora_weights={init} is not supported"
            )));
        }
    }
    let rank = config.get("r").and_then(Value::as_u64);
    let alpha = config.get("lora_alpha").and_then(Value::as_f64);
    let (Some(rank), Some(alpha)) = (rank, alpha) else {
        return Err(mismatch("r or lora_alpha is missing".to_owned()));
    };
    Ok(Settings {
        rank: usize::try_from(rank).map_err(|_| mismatch(format!("r={rank}")))?,
        alpha: alpha as f32,
        rslora: config.get("use_rslora").and_then(Value::as_bool) == Some(true),
    })
}

/// The copy of the base's output matrix, if the file has one.
fn base_copy(file: &SafetensorsFile) -> Result<Option<TensorView<'_>>, EngineError> {
    let present = file.names().any(|name| name == BASE_COPY);
    present.then(|| file.tensor(BASE_COPY)).transpose()
}

fn refuse_other_output(model: &Model, copy: &TensorView<'_>) -> Result<(), EngineError> {
    let hidden = model.config().hidden_size;
    let mut own = vec![0.0; hidden];
    for (token, copied) in copy.to_f32().chunks_exact(hidden).enumerate() {
        model.output().copy_row(token, &mut own);
        let near = |(own, copied): (&f32, &f32)| {
            (own - copied).abs() <= COPY_ABSOLUTE_MAX + COPY_RELATIVE_MAX * own.abs()
        };
        if !own.iter().zip(copied).all(near) {
            let what = format!("tensor={BASE_COPY} is not this model's, first in row {token}");
            return Err(mismatch(what));
        }
    }
    Ok(())
}

/// Null, false, and containers without elements say nothing.
fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}
