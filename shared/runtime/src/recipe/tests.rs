use super::*;

const SMALL: &str = "name = \"routing\"\nmodel = \"../models/tiny\"\nenvironment = \"routing\"\n";

fn loaded(text: &str) -> Result<Recipe, Fault> {
    let dir = tempfile::tempdir().expect("temporary directory");
    std::fs::create_dir_all(dir.path().join("recipes")).expect("directory");
    let path = dir.path().join("recipes/r.toml");
    std::fs::write(&path, text).expect("write");
    let mut recipe = Recipe::load(&path)?;
    recipe.model = recipe
        .model
        .strip_prefix(dir.path())
        .expect("beside the recipe")
        .to_owned();
    Ok(recipe)
}

fn complaint(text: &str) -> String {
    let fault = loaded(text).expect_err(text);
    assert_eq!(fault.code, ErrorCode::ConfigInvalid);
    let (_, told) = fault
        .message
        .split_once("r.toml")
        .expect("the file is named");
    told.to_owned()
}

fn told_of(lines: &str, expected: &str) {
    let told = complaint(&format!("{SMALL}{lines}"));
    assert!(told.contains(expected), "{told}");
}

#[test]
fn three_keys_are_enough() {
    let recipe = loaded(SMALL).expect("valid");
    assert_eq!(recipe.model, Path::new("models/tiny"));
    assert_eq!(recipe.train, Train::default());
    let names: Vec<&str> = recipe.lora.targets.iter().map(|t| t.name()).collect();
    assert_eq!(names, ["q", "k", "v", "o", "gate", "up", "down"]);
    assert_eq!(
        (recipe.workers.count, recipe.evaluation.instances),
        (2, 300)
    );
}

#[test]
fn recipes_of_the_examples_are_valid() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(examples).expect("examples") {
        let path = entry.expect("entry").path().join("recipe.toml");
        if path.exists() {
            let recipe = Recipe::load(&path).expect("valid");
            assert!(
                recipe.model.join("config.json").exists(),
                "{}",
                recipe.model.display()
            );
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen} recipes");
}

#[test]
fn what_is_written_is_read_back() {
    let text = format!(
        "{SMALL}[environment_options]\nlevel = \"3\"\n[train]\nloss = \"ppo\"\nclip_high = 1.3\n\
         advantage = \"leave_one_out\"\nmemory_mb = 300\nschedule = \"async\"\nlr_schedule = \"linear\"\n\
         [lora]\nrank = 256\ntargets = [\"q\", \"v\", \"lm_head\"]\n[sampling]\ntemperature = 0.8"
    );
    let recipe = loaded(&text).expect("valid");
    assert_eq!(recipe.train.clip(), Some((0.8, 1.3)));
    let targets = [LoraTarget::Q, LoraTarget::V, LoraTarget::LmHead];
    assert_eq!(recipe.lora.targets, targets);
    let written = recipe.to_toml().expect("TOML");
    let again: Recipe = toml::from_str(&written).expect("its own text");
    assert_eq!(again, recipe);
    assert!(written.contains("learning_rate = 0.0007"), "{written}");
}

#[test]
fn references_are_the_base_a_version_or_a_folder_beside_the_recipe() {
    let of = |value: &str| {
        let text = format!("{SMALL}[train]\nkl_penalty = 0.1\nkl_reference = {value:?}");
        let recipe = loaded(&text).expect(value);
        let written = recipe.to_toml().expect("TOML");
        let again: Recipe = toml::from_str(&written).expect("its own text");
        assert_eq!(again, recipe);
        recipe.train.kl_reference
    };
    assert_eq!(of("base"), KlReference::Base);
    assert_eq!(of("step:12"), KlReference::Step(12));
    let KlReference::Adapter(folder) = of("../runs/a/adapters/step-000012") else {
        panic!("a folder is due");
    };
    assert!(folder.is_absolute());
    assert!(
        folder.ends_with("runs/a/adapters/step-000012"),
        "{folder:?}"
    );
    let named_like_a_version = of("./step:3");
    assert!(matches!(named_like_a_version, KlReference::Adapter(_)));
}

#[test]
fn every_bad_value_of_training_is_told_with_place_and_range() {
    for (lines, expected) in [
        (
            "[train]\nsteps = 0",
            ":5:9: `train.steps` is 0; allowed is 1 to 1000000",
        ),
        (
            "[train]\ngroup_size = 1",
            ":5:14: `train.group_size` is 1; allowed is 2 to 1024",
        ),
        (
            "[train]\nlearning_rate = 0.0",
            ":5:17: `train.learning_rate` is 0; allowed is more than 0, at most 1",
        ),
        (
            "[train]\nlearning_rate = nan",
            ":5:17: `train.learning_rate` is NaN;",
        ),
        (
            "[train]\nbeta2 = 1.0",
            ":5:9: `train.beta2` is 1; allowed is 0 to less than 1",
        ),
        (
            "[train]\nkl_reference = \"step:3\"",
            ":5:16: `train.kl_reference` has no meaning with kl_penalty = 0",
        ),
        (
            "[train]\nkl_penalty = 0.1\nkl_reference = \"step:60\"",
            ":6:16: `train.kl_reference` is \"step:60\"; allowed are \"base\", \"step:1\" to \"step:59\"",
        ),
        (
            "[train]\nkl_penalty = 0.1\nkl_reference = \"step:last\"",
            "`train.kl_reference` is \"step:last\"; allowed are \"base\", \"step:1\" to",
        ),
        (
            "[train]\nmemory_mb = 0",
            ":5:13: `train.memory_mb` is 0; allowed is 1 to 1073741824",
        ),
        (
            "[train]\nclip_low = 0.5",
            "`train.clip_low` has no meaning with loss",
        ),
        (
            "[train]\nloss = \"ppo\"\nclip_high = 0.5",
            "`train.clip_high` is 0.5; allowed is 1 to",
        ),
        (
            "[train]\ngroups_per_step = 4000\ngroup_size = 64",
            "256000 rollouts open at once",
        ),
        (
            "[train]\nschedule=\"async\"\ngroups_per_step = 2000\nmax_staleness = 9",
            "makes 160000 rollouts open at once (groups_per_step × group_size × (max_staleness",
        ),
    ] {
        told_of(lines, expected);
    }
}

#[test]
fn every_bad_value_of_the_other_sections_too() {
    for (lines, expected) in [
        ("[train]\ncheckpoint_every = 0", "allowed is 1 to 1000000"),
        ("[lora]\ntargets = []", ":5:11: `lora.targets` is empty"),
        (
            "[lora]\ntargets = [\"q\", \"q\"]",
            "`lora.targets` names `q` twice",
        ),
        (
            "[lora]\ntargets = [\"lm_head\", \"v\", \"lm_head\"]",
            "`lora.targets` names `lm_head` twice",
        ),
        (
            "[lora]\ntargets = [\"embed_tokens\"]",
            "`lora.targets` is `embed_tokens`, which is unknown",
        ),
        (
            "[lora]\ntargets = [\"q_proj\"]",
            "`lora.targets` is `q_proj`, which is unknown",
        ),
        ("[lora]\nrank = 0", "`lora.rank` is 0; allowed is 1 to 512"),
        (
            "[sampling]\ntemperature = -1",
            "`sampling.temperature` is -1; allowed is more than 0, at most 100",
        ),
        (
            "[sampling]\ntop_p = 0",
            "`sampling.top_p` is 0; allowed is more than 0, at most 1",
        ),
        (
            "[sampling]\nmin_p = 2",
            "`sampling.min_p` is 2; allowed is 0 to 1",
        ),
        (
            "[sampling]\nstop = [\"a\", \"\"]",
            ":5:8: `sampling.stop` has a string of 0 bytes; allowed are 1 to 256",
        ),
        (
            "[retry]\nretries = 2\nnever = [\"ENV_PANIK\"]",
            ":6:9: `retry.never` names `ENV_PANIK`, which is no failure; did you mean `ENV_PANIC`?",
        ),
        (
            "[retry]\nheartbeat = \"1s\"",
            "`retry` is refused: heartbeat_ms = 1000",
        ),
        ("[retry]\nheartbeat = 5", "has no unit"),
        (
            "[workers]\ncount = 0",
            "`workers.count` is 0; allowed is 1 to 1024",
        ),
        ("[train]\nstep = 3", ":5:1: unknown key `step` in [train]"),
        (
            "[evaluation]\nfirst_instance = 5000100",
            "overlap with those of training, 5000000 to 5001439",
        ),
    ] {
        told_of(lines, expected);
    }
    let told = complaint(&SMALL.replace("\"routing\"\nmodel", "\"../etc\"\nmodel"));
    assert!(told.starts_with(":1:8: `name` is \"../etc\""), "{told}");
}

#[test]
fn the_page_about_recipes_knows_every_key_and_every_choice() {
    let page = include_str!("../../../../docs/recipe.md");
    let mut recipe = loaded(SMALL).expect("valid");
    let train = &mut recipe.train;
    // What is left out of a file unless it is set.
    (train.clip_low, train.clip_high) = (Some(0.8), Some(1.2));
    (train.dro_beta, train.memory_mb) = (Some(0.1), Some(9));
    (recipe.environment_options).insert("level".to_owned(), "3".to_owned());
    let value = toml::Value::try_from(&recipe).expect("it can be written");
    let sections = [
        "train",
        "lora",
        "sampling",
        "retry",
        "workers",
        "learner",
        "evaluation",
    ];
    for (key, value) in value.as_table().expect("a table") {
        let is_section = sections.contains(&key.as_str());
        let named = if is_section {
            format!("## `[{key}]`")
        } else {
            format!("| `{key}` |")
        };
        assert!(page.contains(&named), "{named}");
        for key in value
            .as_table()
            .filter(|_| is_section)
            .into_iter()
            .flatten()
        {
            let named = format!("| `{}` |", key.0);
            assert!(page.contains(&named), "{named}");
        }
    }
    for choice in [
        "gspo",
        "leave_one_out",
        "async",
        "linear",
        "bf16",
        "lm_head",
    ] {
        assert!(page.contains(&format!("`{choice}`")), "{choice}");
    }
}

#[test]
fn flags_are_checked_too() {
    let mut recipe = loaded(SMALL).expect("valid");
    assert_eq!(recipe.validate(), Ok(()));
    recipe.workers.count = 0;
    let fault = recipe.validate().expect_err("no workers");
    assert!(
        fault.message.starts_with("recipe: `workers.count` is 0"),
        "{fault}"
    );
}

#[test]
fn the_learning_rate_falls_as_told() {
    let mut train = Train {
        steps: 4,
        learning_rate: 1.0,
        ..Train::default()
    };
    let rates = |train: &Train| [1, 2, 4, 5].map(|step| train.learning_rate_at(step));
    assert_eq!(rates(&train), [1.0; 4]);
    train.lr_schedule = LearningRateSchedule::Linear;
    assert_eq!(rates(&train), [1.0, 0.75, 0.25, 0.0]);
    assert_eq!(train.staleness_max(), 0);
    train.schedule = Schedule::Async;
    assert_eq!(train.staleness_max(), 1);
}
