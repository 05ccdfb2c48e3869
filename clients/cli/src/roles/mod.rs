//! The verbs that are processes: the three roles, and the two launchers that start all of them.

pub(crate) mod coordinator;
mod duration;
pub(crate) mod launch;
pub(crate) mod learner;
pub(crate) mod serve;
pub(crate) mod train;
pub(crate) mod up;
pub(crate) mod worker;

pub(crate) use coordinator::CoordinatorArgs;
pub(crate) use learner::LearnerArgs;
pub(crate) use train::TrainArgs;
pub(crate) use up::UpArgs;
pub(crate) use worker::WorkerArgs;
