"""How XLA is told to compile tiny models quickly, in the tests' own process and in those that they start."""

from importlib.metadata import version

# Programs are small, and both cores have a test to run: one thread compiles each.
# The older code generator compiles in half the time. XLA dropped it after 0.11.0, and aborts on flags unknown to it.
QUICK = "--xla_cpu_parallel_codegen_split_count=1" + (
    " --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""
)
