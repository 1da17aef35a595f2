"""What tests compile under: half the time or less, and what this suite checks does not depend on it.

XLA runs its usual passes, LLVM none of its slow ones, and fusions are emitted the older way. The slow test of the whole
way from own videos to samples compiles as its users do.
"""

FAST_COMPILATION = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
