//! Every case by the clock: `cargo bench -p claviger-benches --bench time [-- FILTER]`.

#![allow(missing_docs)] // criterion_group! makes an undocumented function.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn all(criterion: &mut Criterion) {
    for case in claviger_benches::cases() {
        let (group, what) = case.name.split_once('/').unwrap_or((case.name, ""));
        let mut group = criterion.benchmark_group(group);
        if let Some(bytes) = case.bytes {
            group.throughput(Throughput::Bytes(bytes));
        }
        group.bench_function(what, |bencher| {
            let mut run = (case.prepare)();
            bencher.iter(&mut run);
        });
        group.finish();
    }
}

criterion_group!(benches, all);
criterion_main!(benches);
