"""The queue's bench at its smallest: what it measures is there, and nothing is handed out twice or lost."""

from __future__ import annotations

import json
import subprocess
import sys

from conftest import ROOT


def test_the_small_bench_measures_and_loses_nothing(tmp_path):
    words = [sys.executable, str(ROOT / "tests" / "bench_queue.py"), "--small", "--json", "--folder", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    drained = report["drain by 8 processes"]
    assert (drained["done"], drained["duplicates"], sum(drained["shares"])) == (drained["jobs"], 0, drained["jobs"])
    assert not any("TEMP B-TREE" in line for line in report["plan of a claim"])
    assert report["a worker killed in the middle"].startswith("0 lost")
    # Ten times the target: this finds a scan of the table, not a busy machine.
    assert report["claims at 20,000"]["p50_ms"] < 10
