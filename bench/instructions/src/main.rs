//! The pure phases of a reconcile, one by one, for callgrind to count. `cargo xtask instructions` builds this program like the released
//! operator and runs each case in a process of its own. Without an argument it lists the cases.

mod cases;
mod inputs;

use std::error::Error;
use std::hint::black_box;

use cases::CASES;
use inputs::Inputs;

/// Calls before the counted one, so that work that happens once in a process does not count, and the allocator has its pages.
const WARM_UP: usize = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let Some(name) = std::env::args().nth(1) else {
        for case in CASES {
            println!("{}\t{}", case.name, case.what);
        }
        return Ok(());
    };
    let case = CASES
        .iter()
        .find(|case| case.name == name)
        .ok_or_else(|| format!("there is no case {name}"))?;
    let inputs = Inputs::new()?;
    for _ in 0..WARM_UP {
        (case.run)(&inputs);
    }
    counted_part(case.run, &inputs);
    Ok(())
}

/// Callgrind counts from the entry of this function to its return. It finds the function by its name.
#[inline(never)]
fn counted_part(run: fn(&Inputs), inputs: &Inputs) {
    black_box(run)(black_box(inputs));
}
