"""How a model gets small: recipes, calibration, export and engines. Imports `core`, never `kontext_tui`."""
