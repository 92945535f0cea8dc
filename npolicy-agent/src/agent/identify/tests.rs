//! Every rule, with facts made by hand.

mod replays;
mod rules;
mod world;
