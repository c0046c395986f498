"""Add views of panoramas to a bank: `python -m examples.tiny.add_views BANK.zip NEW.zip PANORAMAS ...`.

PANORAMAS are folders of Poly Haven's equirectangular pictures, CC0, 1024 x 512: `package/hdri` of npm's
@pmndrs/assets 0.0.0 (`*.js`) and Blender's `datafiles/studiolights/world` (`*.exr`; in Debian's blender-data), which
PyPI's OpenEXR and opencv-python-headless read. This was run once, without the sunset that both have; `bank.zip` is
its result. Each panorama becomes eight photographs, 45 degrees apart and 85 wide: the detail of a picture of 256.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE, FIELD = 320, 85.0  # pixels; degrees
YAWS = range(0, 360, 45)
PITCHES = (4, -6, 10, 0)
"""Degrees upwards, by turns."""
MEAN = 0.16
"""The geometric mean that a view is brought to, of 1: an exposure by the whole scene."""


def view(panorama: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """What a camera sees of an equirectangular panorama [H, W, 3], [SIZE, SIZE, 3]; angles in degrees."""
    from scipy.ndimage import map_coordinates

    height, width, _ = panorama.shape
    depth = 0.5 / np.tan(np.radians(FIELD) / 2)
    down, across = (np.mgrid[0:SIZE, 0:SIZE] + 0.5) / SIZE - 0.5
    ray = np.stack([across, -down, np.full_like(across, depth)], -1)
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    x, y, z = np.moveaxis(ray, -1, 0)
    angle = np.radians(pitch)
    y, z = y * np.cos(angle) + z * np.sin(angle), z * np.cos(angle) - y * np.sin(angle)
    column = (np.arctan2(x, z) + np.radians(yaw)) / (2 * np.pi) % 1 * width - 0.5
    row = (0.5 - np.arcsin(np.clip(y, -1, 1)) / np.pi) * height - 0.5
    around = np.concatenate([panorama[:, -4:], panorama, panorama[:, :4]], 1)
    logs = np.log1p(around)  # lamps and suns are thousands of times as bright as what is beside them
    return np.expm1(np.stack([map_coordinates(logs[..., c], [row, column + 4], order=3, mode="nearest")
                              for c in range(3)], -1))  # fmt: skip


def develop(light: np.ndarray) -> Image.Image:
    """Linear light [H, W, 3] as an sRGB picture: exposed for its mean, highlights rolled off (Reinhard's curve)."""
    light = light.clip(0)
    luminance = light @ np.array([0.2126, 0.7152, 0.0722])
    light = light * (MEAN / np.exp(np.log(luminance + 1e-3).mean()))
    light = light * (1 + light / 9) / (1 + light)
    levels = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light.clip(1e-9) ** (1 / 2.4) - 0.055)
    return Image.fromarray((levels.clip(0, 1) * 255).round().astype(np.uint8))


def read(file: Path) -> np.ndarray:
    """A panorama's linear light, [H, W, 3] float32."""
    if file.suffix == ".exr":
        import OpenEXR

        return np.asarray(OpenEXR.File(str(file)).channels()["RGB"].pixels, np.float32)
    import cv2

    data = base64.b64decode(file.read_bytes().partition(b"base64,")[2].partition(b"'")[0])  # of a data: URL
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1], np.float32)


def main(bank: Path, result: Path, *folders: Path) -> None:
    with zipfile.ZipFile(bank) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as new:
        meta: dict[str, Any] = json.loads(old.read("meta.json"))
        for name in old.namelist():
            if name != "meta.json":
                new.writestr(zipfile.ZipInfo(name), old.read(name))
        for file in [
            file for folder in folders for file in sorted(folder.iterdir()) if file.suffix in (".exr", ".js")
        ]:
            panorama, place = read(file), file.stem + ("2" if file.suffix == ".js" else "")
            for number, yaw in enumerate(YAWS):
                buffer = io.BytesIO()
                develop(view(panorama, yaw, PITCHES[number % len(PITCHES)])).save(buffer, "JPEG", quality=88)
                name = f"bg/train_view-{place}_{number}.jpg"
                new.writestr(zipfile.ZipInfo(name), buffer.getvalue())
                about = {"file": name, "split": "train", "kind": "photo", "src": file.name, "licence": "CC0"}
                meta["bgs"].append(about)
        new.writestr(zipfile.ZipInfo("meta.json"), json.dumps(meta, ensure_ascii=False))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
