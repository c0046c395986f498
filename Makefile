# Everything runs in .venv; the only thing needed beforehand is Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test lint soak bench-queue bench-tui bench-pause pictures screenshots clean

install: $(STAMP)

# constraints.txt holds the versions the tests ran with, torch's CPU build among them; for a GPU see the README.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("kontext-tui needs Python 3.11 or newer: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: install
	$(BIN)/kontext-tui run examples/demo.yaml
	@echo "Look at examples/edited/"

# Files of tests side by side, as many as there are processors; four at most, each with its own copy of the model.
test: install
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: install
	$(BIN)/python -m pytest -m soak

# How fast the queue is and what it loses, beside huey and litequeue; some minutes.
bench-queue: install
	$(BIN)/python tests/bench_queue.py

# How quick the app is over 100,000 jobs; two minutes.
bench-tui: install
	$(BIN)/python tests/bench_tui.py

# How long it is from one denoise loop to the next, but for the model; two minutes.
bench-pause: install
	$(BIN)/python tests/bench_pause.py

# The screenshots of the README, of the real app at work; some minutes.
screenshots: install
	$(BIN)/python examples/screenshots.py docs/images

# The pictures of the README and of the model card, made again.
pictures: install
	$(BIN)/python examples/pictures.py docs/images/strip.jpg docs/images/kontext-tiny.jpg

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache
