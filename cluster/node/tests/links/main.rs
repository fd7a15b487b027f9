//! Links between real processes over real sockets: what happens to them when peers hang, connections are cut and nodes restart, and, as a control,
//! what happens to ractor_cluster's own.

mod cases;
mod fleet;
mod node;
mod proxy;

use libtest_mimic::{Arguments, Trial};

fn main() {
    if let Some(setup) = std::env::var_os(fleet::NODE) {
        return node::run(&setup.into_string().expect("a setup is JSON"));
    }
    let trials = cases::ALL.iter().map(|(name, case)| {
        Trial::test(*name, move || {
            case();
            Ok(())
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}
