//! Whatever a policy says, an environment answers: no panic, an end in time, a reward in [0, 1].

use proptest::prelude::*;
use volley_env::{Environment, Scenario, Split, Transition, catalog, create};

/// Anything at all, and texts that get past the first checks.
fn reply() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ \n]?[0-9]{1,3}[ \n]?",
        "route: [a-z]{0,9}\nhuman: (yes|no|maybe)",
        "route: (fraud|cards|general)\nhuman: (yes|no)\n?",
    ]
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let split = prop_oneof![Just(Split::Train), Just(Split::Eval)];
    (split, any::<u64>()).prop_map(|(split, instance)| Scenario::new(split, instance))
}

/// Every message and reward of an episode that gets these replies, over and over.
fn transcript(env: &mut dyn Environment, replies: &[String], max_turns: u32) -> Vec<String> {
    let mut told = vec![format!("{:?}", env.reset().expect("resets"))];
    for reply in replies.iter().cycle().take(max_turns as usize) {
        match env.step(reply).expect("no error of its own") {
            Transition::Continue {
                messages,
                max_new_tokens,
            } => {
                assert!(max_new_tokens > 0 && !messages.is_empty());
                told.push(format!("{messages:?}"));
            }
            Transition::Done { reward } => {
                let reward = reward.validate().expect("sound");
                assert!((0.0..=1.0).contains(&reward.value()), "{reward:?}");
                told.push(format!("{reward:?}"));
                let late = env.step(reply).expect_err("the episode is over");
                assert_eq!(late.code(), "INTERNAL");
                return told;
            }
        }
    }
    panic!("no end after {max_turns} turns");
}

proptest! {
    #[test]
    fn any_reply_leads_to_a_sound_end(
        scenario in scenario(),
        replies in prop::collection::vec(reply(), 1..6),
    ) {
        for info in catalog().iter().filter(|info| info.name != "faulty") {
            let mut env = create(info.name, &scenario).expect("every number is an instance");
            let early = env.step("").expect_err("not reset yet");
            prop_assert_eq!(early.code(), "INTERNAL");
            let first = transcript(&mut *env, &replies, info.max_turns);
            let again = transcript(&mut *env, &replies, info.max_turns);
            prop_assert_eq!(&first, &again, "reset starts the same episode");
            let mut twin = create(info.name, &scenario).expect("as before");
            prop_assert_eq!(&first, &transcript(&mut *twin, &replies, info.max_turns));
        }
    }

    #[test]
    fn any_name_and_setting_is_answered(name in any::<String>(), key in "[a-z]{0,8}") {
        let scenario = Scenario::new(Split::Train, 1);
        if let Err(error) = create(&name, &scenario) {
            prop_assert_eq!(error.code(), "ENV_UNKNOWN");
        }
        let scenario = scenario.with("mode", "nan").with(&key, "1");
        if let Err(error) = create("faulty", &scenario) {
            prop_assert_eq!(error.code(), "INVALID_REQUEST");
        }
    }
}
