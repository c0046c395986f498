"""What of a model lies on a GPU, planned by bytes: pure functions, the files' sizes, and the lines that say why."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_checkpoints import TINY
from sparse_models import make_dev
from test_choose import stored
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from core.edit import footprint, placement
from core.edit.models import check_folder, find_spec
from core.edit.placement import CONTEXT_BYTES, Memory, Parts, Placement, Transformer, place
from core.edit.runtimes import Room, choose, trt_api
from core.errors import UnavailableError

LADDER = [("stay", False), ("visit", False), ("stream", False), ("stay", True), ("visit", True), ("stream", True)]
some = st.integers(0, 40 * 10**9)


@st.composite
def parts_of(draw):
    encoders, decode = draw(some), draw(some)
    layer, tiled = draw(st.integers(0, encoders)), draw(st.integers(0, decode))
    return Parts(encoders, draw(some), draw(some), layer, decode, tiled)


transformers = st.builds(Transformer, some, some)


def on_gpu(found: Placement, transformer: Transformer, parts: Parts) -> int:
    """The most bytes at once, phase by phase, written down apart from the plan."""
    held = transformer.weights + parts.vae
    guests = {"stay": 0, "visit": parts.encoders, "stream": parts.layer}
    if found.encoders == "stay":
        held += parts.encoders
    before = guests[found.first] + parts.encode
    decode = parts.decode_tiled if found.tiled else parts.decode
    return max(before, held + transformer.step, held + decode, held + guests[found.encoders] + parts.encode)


@given(transformers, parts_of(), st.integers(0, 120 * 10**9), st.none() | st.integers(1, 120 * 10**9))
def test_no_plan_takes_more_than_there_is(transformer, parts, free, limit):
    memory = Memory(free, free, limit)
    found = place(transformer, parts, memory)
    if found is None:
        assert placement.least(transformer, parts) > min(free, limit or free)
    else:
        assert on_gpu(found, transformer, parts) + CONTEXT_BYTES <= min(free, limit or free)


@given(transformers, parts_of(), st.integers(0, 120 * 10**9), st.integers(0, 40 * 10**9))
def test_more_memory_never_gives_up_more(transformer, parts, free, more):
    less, plenty = (place(transformer, parts, Memory(each, each)) for each in (free, free + more))
    if less is not None:
        assert plenty is not None
        assert LADDER.index((plenty.encoders, plenty.tiled)) <= LADDER.index((less.encoders, less.tiled))
    nothing = place(transformer, parts, Memory(10**13, 10**13))
    assert nothing == Placement()


@given(transformers, parts_of(), st.integers(0, 120 * 10**9), st.booleans())
def test_every_remedy_needs_less_at_work_and_is_kept(transformer, parts, free, gpu):
    rungs, current = [], Placement()
    while (smaller := current.smaller(gpu=gpu)) is not None:
        before, after = (on_gpu(each, transformer, parts) for each in (current, smaller))
        if smaller.encoders == current.encoders:
            assert after <= before
        current = smaller
        rungs.append(str(current))
        found = place(transformer, parts, Memory(free, free), floor=current)
        assert found is None or found.tiled >= current.tiled
        assert found is None or found.encoders != "stay" or not gpu
    leave = "text encoders leave the GPU after encoding"
    assert rungs == ([leave, f"{leave}, the VAE works in tiles"] if gpu else ["the VAE works in tiles"])


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    folder = make_dev(tmp_path_factory.mktemp("models") / "dev")
    check_folder(folder, "kontext-dev")
    return folder, find_spec(str(folder))


def test_the_full_size_model_by_its_files(dev):
    folder, spec = dev
    parts = footprint.parts_of(folder, spec)
    bf16 = footprint.unquantized(folder, spec, keep_context=False)
    assert bf16.weights == pytest.approx(23.8e9, rel=0.01)
    assert parts.encoders == pytest.approx(9.77e9, rel=0.01)
    assert parts.vae == pytest.approx(0.168e9, rel=0.01)
    # Measured on an H200: 0.6 GiB beside the weights in a step, 2.9 GB of kept context at 4,096 tokens.
    assert 0.65e9 < bf16.step < 2e9
    kept = footprint.unquantized(folder, spec, keep_context=True).step - bf16.step
    assert kept == pytest.approx(2.9e9, rel=0.05)


@pytest.mark.parametrize(
    ("card", "weights", "encoders"),
    [
        (80, 23.8, "stay"), (40, 23.8, "stay"), (32, 23.8, "stream"), (24, 23.8, None),
        (32, 12.0, "stay"), (24, 12.0, "visit"), (16, 12.0, "stream"), (12, 12.0, None),
        (24, 7.4, "stay"), (16, 7.4, "stream"), (12, 7.4, "stream"), (8, 7.4, None),
    ],
)  # fmt: skip
def test_the_full_size_model_on_cards_as_they_are_sold(dev, card, weights, encoders):
    """A card of so many GiB with a desktop on it; weights in GB."""
    folder, spec = dev
    needs = footprint.quantized(folder, spec, int(weights * 1e9), keep_context=False, native=True)
    free = int(card * 2**30 * 0.96)
    found = place(needs, footprint.parts_of(folder, spec), Memory(free, card * 2**30))
    assert (found and found.encoders) == encoders
    if encoders == "stream":
        assert found.first == "visit"  # what waits is encoded before the transformer takes the room
        assert not found.tiled


def refused(precision, folder, spec, memory):
    with pytest.raises(UnavailableError) as error:
        choose("auto", precision, "kontext-dev", folder, room=Room(memory, spec))
    return str(error.value)


def test_a_precision_that_cannot_fit_is_refused_before_anything_is_read(dev, monkeypatch):
    monkeypatch.setattr(trt_api, "current_gpu", lambda: trt_api.Gpu("a GPU", "sm89", "580"))
    line = refused("bf16", *dev, Memory(15_600_000_000, 17_000_000_000))
    assert line == (
        "kontext-dev in bf16 needs 26.1 GB of GPU memory, 23.8 GB of BF16 weights with 2.3 GB to work in, and there"
        " are 15.6 GB free: take `--precision auto`, or close what else uses the GPU"
    )
    limited = refused("bf16", *dev, Memory(80_000_000_000, 85_000_000_000, limit=12_000_000_000))
    assert "12.0 GB allowed: take `--precision auto`, or raise --max-vram" in limited


@pytest.fixture
def tiny_card(monkeypatch):
    """A GPU with room for kontext-tiny's surroundings and a transformer of so many bytes."""
    monkeypatch.setattr(trt_api, "current_gpu", lambda: trt_api.Gpu("a GPU", "sm89", "580"))
    spec = find_spec("kontext-tiny")
    parts = footprint.parts_of(TINY.parent, spec)

    def room(weights: int, *, encoders: str = "stay", limit: int | None = None) -> Room:
        step = footprint.unquantized(TINY.parent, spec, keep_context=False).step
        free = placement.peak(Transformer(weights, step), parts, encoders, tiled=False) + CONTEXT_BYTES
        return Room(Memory(free, 2 * free, limit), spec)

    return room


def chosen(room, runtime="auto", precision="auto"):
    return choose(runtime, precision, "kontext-tiny", TINY.parent, room=room)


def test_auto_takes_what_fits_and_says_so(tiny_card):
    whole = footprint.unquantized(TINY.parent, find_spec("kontext-tiny"), keep_context=False).weights
    everything = chosen(tiny_card(whole))
    assert (everything.precision, everything.reason) == ("bf16", "the unquantized weights")
    assert everything.placement == Placement()
    less = chosen(tiny_card(whole, encoders="visit"))
    assert less.placement.encoders == "visit"
    assert less.reason == "the unquantized weights; text encoders leave the GPU after encoding"
    with pytest.raises(UnavailableError, match="kontext-tui quantize --model kontext-tiny --precision fp4"):
        chosen(tiny_card(10_000_000))
    made = stored("checkpoint", "fp4")
    small = chosen(tiny_card(10_000_000))
    assert (small.runtime, small.precision) == ("torch", "fp4")
    assert small.reason.startswith("28 MB of BF16 weights with ")
    assert small.reason.endswith(" free: taking fp4 (0 MB)")
    assert made.size < 100_000
    assert chosen(tiny_card(whole)).precision == "bf16"  # FP4 by torch saves memory and costs time
    with pytest.raises(UnavailableError, match="close what else uses the GPU") as error:
        chosen(Room(Memory(CONTEXT_BYTES, 10**9), find_spec("kontext-tiny")))
    assert "quantize" not in str(error.value)  # there is nothing smaller


def test_a_named_precision_is_placed_or_refused_and_no_other_taken(tiny_card):
    stored("checkpoint", "fp4")
    assert "take `--precision auto`" in str(_refusal(tiny_card(10_000_000), precision="bf16"))
    assert chosen(tiny_card(10_000_000), precision="fp4").reason == "the checkpoint made here"
    stored("onnx", "bf16")
    assert chosen(tiny_card(10_000_000), "onnx", "bf16").runtime == "onnx"  # computes in main memory


def _refusal(room, **asked):
    with pytest.raises(UnavailableError) as error:
        chosen(room, **asked)
    return error.value


def test_emulation_writes_attention_down_and_is_counted_so(dev):
    folder, spec = dev
    native, emulated = (
        footprint.quantized(folder, spec, 12 * 10**9, keep_context=False, native=each).step for each in (True, False)
    )
    assert emulated - native > 4 * 24 * 8704**2  # float32 products of every head


class Live(TorchDispatchMode):
    """The most bytes of tensors that are alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage()
            self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.held = {key: each for key, each in self.held.items() if not each[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.held.values()))
        return result


def test_the_full_size_vae_holds_no_more_than_is_counted():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), latent_channels=16, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip
    unit = 128 * 128 * 128 * 4  # pixels, channels, float32
    for call, shape in ((vae.decode, (1, 16, 16, 16)), (vae.encode, (1, 3, 128, 128))):
        with torch.no_grad(), Live() as live:
            call(torch.randn(shape))
        assert 4 * unit < live.most < 0.85 * footprint.VAE_FACTOR * unit


def test_what_is_counted_is_what_is_loaded(tmp_path):
    from core.edit import loading
    from quant.random_folder import write
    from quant.random_weights import Size

    write(tmp_path / "slice", Size(1, 1, 2, 128))
    spec = find_spec(str(tmp_path / "slice"))
    check_folder(tmp_path / "slice", "a slice")
    model = loading.load(spec, tmp_path / "slice", torch.device("cpu"))  # in float32: twice BF16
    parts = footprint.parts_of(tmp_path / "slice", spec)
    transformer = footprint.unquantized(tmp_path / "slice", spec, keep_context=False)

    def weights(*modules):
        return sum(p.numel() * 2 for module in modules for p in module.parameters())

    assert parts.encoders == weights(model.text_encoder, model.text_encoder_2)
    assert parts.vae == weights(model.vae)
    assert transformer.weights == weights(model.transformer)
    assert parts.layer == max(2 * p.numel() for p in model.text_encoder_2.parameters())
