//! What ./x runs: demo, checks of the tree, benchmarks
