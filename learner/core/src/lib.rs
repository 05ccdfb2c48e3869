//! The learner decides here: intake, groups, staleness, schedule, publish; no IO
