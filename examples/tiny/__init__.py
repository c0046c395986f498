"""How kontext-tiny is made: `data` composites pairs, `train` learns from them, `evaluate` measures. See README.md."""
