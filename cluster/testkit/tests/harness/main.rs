//! The harness on stand-ins for nodes, which are processes of this very program: every fault is done and seen, a sound cluster passes, and
//! one with a bug does not.

mod cases;
mod node;
mod store;

use libtest_mimic::{Arguments, Trial};

fn main() {
    if std::env::args().nth(1).as_deref() == Some("up") {
        return node::run();
    }
    let trials = cases::ALL.iter().map(|(name, case)| {
        Trial::test(*name, move || {
            case();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
