"""The XLA flags that tests compile under: none of LLVM's slow passes, and fusions emitted the older way."""

FAST_COMPILATION = ['--xla_backend_optimization_level=0', '--xla_cpu_use_fusion_emitters=false']
