//! Losses by name, as on the Tinker interface, with their constants as JSON.

use serde::Deserialize;
use volley_engine::train::Loss;
use volley_protocol::{ErrorCode, Fault};

use crate::text;

const NAMES: [&str; 6] = [
    "cross_entropy",
    "importance_sampling",
    "ppo",
    "cispo",
    "gspo",
    "dro",
];

/// Constants; a loss takes those that it has.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    clip_low_threshold: Option<f32>,
    clip_high_threshold: Option<f32>,
    beta: Option<f32>,
}

pub(super) fn parse(name: &str, config: Option<&str>) -> Result<Loss, Fault> {
    let bad = |message: String| Fault::new(ErrorCode::InvalidRequest, message);
    let config: Config = config
        .map_or_else(|| Ok(Config::default()), serde_json::from_str)
        .map_err(|error| bad(format!("--loss-config: {error}")))?;
    let clips = config.clip_low_threshold.is_some() || config.clip_high_threshold.is_some();
    let clip = |low: f32, high: f32| {
        (
            config.clip_low_threshold.unwrap_or(low),
            config.clip_high_threshold.unwrap_or(high),
        )
    };
    let (takes_clips, takes_beta, loss) = match name {
        "cross_entropy" => (false, false, Loss::CrossEntropy),
        "importance_sampling" => (false, false, Loss::ImportanceSampling),
        "ppo" => {
            let (clip_low_threshold, clip_high_threshold) = clip(0.8, 1.2);
            (
                true,
                false,
                Loss::Ppo {
                    clip_low_threshold,
                    clip_high_threshold,
                },
            )
        }
        "cispo" => {
            let (clip_low_threshold, clip_high_threshold) = clip(0.0, 4.0);
            (
                true,
                false,
                Loss::Cispo {
                    clip_low_threshold,
                    clip_high_threshold,
                },
            )
        }
        "gspo" => {
            let (clip_low_threshold, clip_high_threshold) = clip(1.0 - 3e-4, 1.0 + 4e-4);
            (
                true,
                false,
                Loss::Gspo {
                    clip_low_threshold,
                    clip_high_threshold,
                },
            )
        }
        "dro" => (
            false,
            true,
            Loss::Dro {
                beta: config.beta.unwrap_or(0.05),
            },
        ),
        other => {
            let hint = text::nearest(other, NAMES.into_iter()).map_or_else(
                || format!("known: {}", NAMES.join(", ")),
                |near| format!("did you mean {near}?"),
            );
            return Err(bad(format!("there is no loss `{other}`")).with_hint(hint));
        }
    };
    if (clips && !takes_clips) || (config.beta.is_some() && !takes_beta) {
        return Err(bad(format!("--loss-config: {name} takes no such constant")));
    }
    Ok(loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_have_names_and_constants() {
        let low = parse("ppo", Some(r#"{"clip_low_threshold": 0.5}"#));
        let expected = Loss::Ppo {
            clip_low_threshold: 0.5,
            clip_high_threshold: 1.2,
        };
        assert_eq!(low, Ok(expected));
        for name in NAMES {
            assert!(parse(name, Some("{}")).is_ok(), "{name}");
        }
        assert_eq!(
            parse("dro", Some(r#"{"beta": 1}"#)),
            Ok(Loss::Dro { beta: 1.0 })
        );
    }

    #[test]
    fn what_a_loss_does_not_take_is_refused() {
        for (name, config) in [
            ("cross_entropy", r#"{"beta": 1}"#),
            ("dro", r#"{"clip_low_threshold": 1}"#),
            ("ppo", r#"{"clip_low": 1}"#),
            ("ppo", "nonsense"),
        ] {
            let fault = parse(name, Some(config)).expect_err(config);
            assert_eq!(fault.code, ErrorCode::InvalidRequest);
        }
        assert_eq!(
            parse("cisp", None).expect_err("a slip").hint,
            "did you mean cispo?"
        );
    }
}
