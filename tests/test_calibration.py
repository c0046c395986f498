"""Calibration pairs: what is read, what is skipped and named, and that the model really edits at real sigmas."""

from __future__ import annotations

import json

import pytest
from conftest import PHOTOS, make_pictures
from PIL import Image

from core.edit import sampling
from core.errors import InputError, UsageError
from quant.calibration import record, thin
from quant.pairs import DEFAULT_PAIRS, read_pairs


@pytest.fixture
def folder(tmp_path):
    make_pictures(tmp_path, 10)
    return tmp_path


def write(folder, lines):
    (folder / "pairs.jsonl").write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return folder


def good(count):
    return [{"image": f"picture-{i}.png", "prompt": f"Make it colour {i}"} for i in range(count)]


class TestThoseThatShip:
    def test_there_are_many_and_they_vary(self):
        found = read_pairs(on_skip=pytest.fail)
        assert len(found.pairs) >= 64
        assert len({pair.prompt for pair in found.pairs}) >= 48
        assert len({pair.image for pair in found.pairs}) >= 16
        assert "CC BY 4.0" in (DEFAULT_PAIRS / "ATTRIBUTION.md").read_text()

    def test_a_limit_is_spread_over_the_list(self):
        all_of_them = [pair.prompt for pair in read_pairs().pairs]
        some = [pair.prompt for pair in read_pairs(limit=9).pairs]
        places = [all_of_them.index(prompt) for prompt in some]
        assert len(some) == 9
        assert places == sorted(places)
        assert places[-1] > len(all_of_them) * 0.8

    def test_what_precisions_are_judged_by_is_not_among_them(self):
        from quant.quality_set import EDITS

        judged = {prompt for name in EDITS for prompt in EDITS[name]}
        names = {name.rpartition(".")[0] for name in EDITS}
        assert not {(p.image.stem, p.prompt) for p in read_pairs().pairs} & {(n, q) for n in names for q in judged}


class TestReading:
    def test_bad_ones_are_named_and_skipped(self, folder):
        (folder / "torn.png").write_bytes((folder / "picture-0.png").read_bytes()[:40])
        lines = [
            *good(8), "no json", {"image": "gone.png", "prompt": "Make it blue"}, {"image": "picture-1.png"},
            {"image": "picture-2.png", "prompt": "  "}, {"image": "torn.png", "prompt": "Make it red"}, "",
        ]  # fmt: skip
        skipped = []
        found = read_pairs(write(folder, lines), on_skip=skipped.append)
        assert len(found.pairs) == 8
        assert [line.split(": ")[0].rpartition(":")[2] for line in skipped] == ["9", "10", "11", "12", "13"]
        assert "gone.png" in skipped[1]
        assert "torn.png" in skipped[4]

    def test_fewer_than_eight_is_an_error(self, folder):
        with pytest.raises(InputError, match="7 usable pairs; at least 8 are needed"):
            read_pairs(write(folder, good(7)))
        with pytest.raises(UsageError, match="at least 8"):
            read_pairs(write(folder, good(10)), limit=7)

    def test_no_list_says_what_a_list_is(self, tmp_path):
        with pytest.raises(UsageError, match=r'pairs.jsonl: no readable pair list.*"prompt"'):
            read_pairs(tmp_path)

    def test_the_digest_is_of_pictures_and_prompts(self, folder):
        before = read_pairs(write(folder, good(8))).digest
        assert read_pairs(folder).digest == before
        Image.new("RGB", (24, 16), "red").save(folder / "picture-3.png")
        assert read_pairs(folder).digest != before
        assert read_pairs(write(folder, [*good(7), {"image": "picture-7.png", "prompt": "else"}])).digest != before


def test_every_step_of_every_edit_is_kept_at_its_real_sigma(tiny):
    pairs = read_pairs(limit=8).pairs[:2]
    told = []
    samples = record(tiny, pairs, steps=3, on_progress=lambda *each: told.append(each))
    assert len(samples) == 6
    sigmas = sampling.schedule(tiny.scheduler, 3, image_tokens=samples[0].latents.shape[1])
    for sample, sigma in zip(samples, [*sigmas[:3], *sigmas[:3]], strict=True):
        assert float(sample.timestep) == pytest.approx(float(sigma) * 1000, rel=1e-5)
    first, last = samples[0].inputs(), samples[2].inputs()
    assert first["hidden_states"].shape[1] == 2 * samples[0].latents.shape[1]  # noise and context
    assert not first["hidden_states"].equal(last["hidden_states"])
    assert told[-1] == ("editing the calibration pairs", 6, 6)


@pytest.mark.parametrize(("pairs", "steps", "count"), [(72, 8, 128), (8, 2, 128), (9, 28, 20), (36, 8, 96)])
def test_thinning_keeps_every_pair_and_every_step(pairs, steps, count):
    from collections import Counter

    samples = [(pair, step) for pair in range(pairs) for step in range(steps)]
    found = thin(samples, pairs, count)  # type: ignore[arg-type]
    by_pair, by_step = Counter(p for p, _ in found), Counter(s for _, s in found)
    assert len(found) <= max(2 * count, pairs)
    assert set(by_pair) == set(range(pairs))
    assert max(by_step.values()) - min(by_step[s] for s in range(steps)) <= max(2, max(by_step.values()) // 2)


def test_the_pictures_are_photographs_that_are_not_ours_to_change():
    assert not any(pair.image.is_relative_to(PHOTOS) for pair in read_pairs().pairs)
