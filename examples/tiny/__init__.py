"""How kontext-tiny is made: `data` composites pairs, `train` learns from them, `evaluate` measures. See README.md."""

import core.edit  # noqa: F401  (before torch: how its threads wait)
