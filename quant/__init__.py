"""How a model gets small: recipes, calibration, export and engines. Imports `core`, never `kontext_tui`."""

import core.edit  # noqa: F401 - before any module here imports torch: threads wait without spinning
