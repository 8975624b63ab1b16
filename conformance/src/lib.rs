//! What the operator and the emulator take for Google's protocol: assertions, each with its source, that run against the emulator and against
//! Google itself. The README has the modules.

mod assertion;
mod aws;
mod cli;
mod emulated;
mod engine;
pub mod google;
mod hosts;
mod normal;
mod page;
mod source;
mod workload;
mod world;

pub use assertion::{Answer, Assertion, Behaviour, Request, Service, all, behaviours};
pub use cli::{ConformanceArgs, main, main_with};
pub use emulated::{Checked, Emulated};
pub use page::{NOT_RUN, with_assertions, with_behaviours};
pub use source::Source;
