//! One command a file: its flags, what it reads and writes, and what it prints.
//!
//! Imports everything below: `output`, `kubernetes`, `decisions`, `args` and `token_args`. A command never imports another
//! command, and never decides: what can be judged without a cluster is in `decisions`.

pub(crate) mod audit;
pub(crate) mod can;
pub(crate) mod completion;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod grant;
pub(crate) mod mint;
pub(crate) mod renew;
pub(crate) mod try_target;
