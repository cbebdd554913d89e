//! The role against the real session store and scripted peers, over socketpairs.

mod crash;
mod hands;
mod model;
mod peers;
mod recovery;
mod secrets;
mod turns;
mod world;
