"""What `fastgrad profile`, `profile_model`, `gpu_benchmark` and the benchmarks in bench/ measure with."""
