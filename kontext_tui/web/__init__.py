"""The app in a browser on this machine: `kontext-tui web`."""
