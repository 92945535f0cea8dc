//! The shipped programs in the kernel, over tables filled by the real publisher.

mod attach;
mod packet;
mod verdicts;
mod world;
