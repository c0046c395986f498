"""How an edit happens: the edit script, the sampler, the queue. Imports neither `quant` nor `kontext_tui`."""

__version__ = "0.1.0"
