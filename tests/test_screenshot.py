"""Screens as SVG: every word where it was, and photographs to the pixel."""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ET

from PIL import Image
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from watching import toasts, until

from core.jobs.database import connect
from kontext_tui.app import KontextApp
from kontext_tui.screenshot import HEIGHT, WIDTH, draw
from kontext_tui.settings import Settings
from kontext_tui.widgets.picture import half_blocks

SVG = "{http://www.w3.org/2000/svg}"


def pixels(root: ET.Element) -> Image.Image:
    href = root.find(f".//{SVG}image").attrib["href"]
    return Image.open(io.BytesIO(base64.b64decode(href.partition(",")[2])))


def test_a_photograph_of_half_blocks_comes_out_to_the_pixel():
    photo = Image.linear_gradient("L").resize((30, 20)).convert("RGB")
    root = ET.fromstring(draw(half_blocks(photo), "title & <more>"))
    assert pixels(root).tobytes() == photo.tobytes()
    assert [text.text for text in root.iter(f"{SVG}text")] == ["title & <more>"]


def test_words_lines_and_bars_stand_in_their_cells():
    style = Style.parse("bold #ff0000 on #0000ff")
    strip = Strip([Segment("a  写真 ─▂", style), Segment("x", Style.parse("reverse #112233 on #445566"))])
    root = ET.fromstring(draw([strip], ""))
    words = {each.text: each.attrib for each in root.iter(f"{SVG}text") if each.text}
    assert set(words) == {"a", "写真", "x"}
    assert float(words["写真"]["x"]) == round(3 * WIDTH, 1)
    assert float(words["写真"]["textLength"]) == round(4 * WIDTH, 1)
    assert (words["a"]["fill"], words["a"]["font-weight"], words["x"]["fill"]) == ("#ff0000", "bold", "#445566")
    bar = next(each.attrib for each in root.iter(f"{SVG}rect") if each.attrib.get("fill") == "#ff0000")
    assert (float(bar["x"]), float(bar["y"])) == (round(9 * WIDTH, 2), round(6 * HEIGHT / 8, 2))
    assert len(list(root.iter(f"{SVG}path"))) == 1
    assert pixels(root).getpixel((10, 0)) == (0x11, 0x22, 0x33)


async def test_the_palette_saves_the_screen_it_was_called_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    connect(tmp_path / "jobs.db").close()
    app = KontextApp(tmp_path / "jobs.db", Settings(theme="kontext"))
    async with app.run_test(notifications=True) as pilot:
        await pilot.press("ctrl+p", *"screenshot")
        await pilot.pause(0.5)
        await pilot.press("enter")
        await until(pilot, lambda: any(toast.startswith("saved") for toast in toasts(app)))
    (path,) = tmp_path.glob("*.svg")
    texts = [each.text for each in ET.fromstring(path.read_text()).iter(f"{SVG}text")]
    assert any("The queue is empty" in text for text in texts if text)
