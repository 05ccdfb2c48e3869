//! Adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! A configuration has some forty keys, most of them about how training began. Those that change
//! what the adapter computes are refused by name; unknown ones are ignored.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::bytes::Settings;
use super::{Adapter, Target, mismatch};
use crate::config::ModelConfig;
use crate::error::EngineError;
use crate::safetensors::{SafetensorsFile, write};

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";

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
    /// Loads an adapter that PEFT (or [`Self::save_peft`]) wrote.
    ///
    /// # Errors
    ///
    /// A file is missing or broken, a setting changes the mathematics, or a tensor does not fit.
    pub fn load_peft(model: &ModelConfig, dir: &Path) -> Result<Self, EngineError> {
        let path = dir.join(CONFIG_FILE);
        let bytes = std::fs::read(&path).map_err(|error| EngineError::io(&path, error))?;
        let config: Value = serde_json::from_slice(&bytes).map_err(|error| {
            let reason = error.to_string();
            EngineError::ConfigInvalid {
                file: path.clone(),
                reason,
            }
        })?;
        let settings = settings(&config)?;
        let file = SafetensorsFile::open(&dir.join(WEIGHTS_FILE))?;
        let adapter = settings.read(model, &file)?;
        adapter.refuse_missing_targets(&config)?;
        Ok(adapter)
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
        let targets = &self.config.targets;
        let layers = 0..self.num_layers();
        let adapted = |layer: usize, target: Target| self.pair(layer, target).is_some();
        if layers
            .clone()
            .all(|layer| targets.iter().all(|t| adapted(layer, *t)))
        {
            return targets
                .iter()
                .map(|target| target.name().to_owned())
                .collect();
        }
        let paths = layers.flat_map(|layer| {
            let present = targets
                .iter()
                .filter(move |target| adapted(layer, **target));
            present.map(move |target| format!("model.layers.{layer}.{}", target.path()))
        });
        paths.collect()
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
        let targets = names
            .iter()
            .filter_map(|name| Target::from_name(name.as_str()?));
        for target in targets {
            for layer in 0..self.num_layers() {
                if self.pair(layer, target).is_none() {
                    let path = target.path();
                    return Err(mismatch(format!("tensor=layers.{layer}.{path} is missing")));
                }
            }
        }
        Ok(())
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

/// Null, false, and containers without elements say nothing.
fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}
