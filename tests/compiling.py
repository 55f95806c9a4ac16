"""How XLA is told to compile tiny models quickly, in the tests' own process and in those that they start."""

QUICK = "--xla_cpu_use_fusion_emitters=false"
