"""Downloaded benchmarks made ready to train on."""
