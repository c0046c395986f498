"""What a result says about itself, written into PNG, JPEG and WebP files and read back from any file at all.

The whole record is one JSON object: in PNG the text chunk called "kontext-tui", in JPEG and WebP under that key in
the EXIF UserComment.
Beside it, for other programs: the prompt and its settings by name, the software, and in XMP the IPTC's word for
pictures made with a trained model (https://cv.iptc.org/newscodes/digitalsourcetype/).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import ExifTags, Image

from core.edit.images import open_regular, quiet_decoders

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

KEY = "kontext-tui"
PLAIN_KEYS = ("prompt", "seed", "steps", "guidance", "context_refresh", "model", "precision")
"""Entries of the record that a PNG also carries by name, as text."""

MAX_BLOCKS, MAX_BYTES = 256, 4 << 20
"""How far a file is searched for a record, and the largest one taken for real."""

JPEG_ROOM = 60_000
"""Bytes of a record: a JPEG segment holds 65,533, and the rest of the EXIF data needs some."""
CUT_LENGTH = 200
"""Characters that a text is cut to in a record that has no room."""

COMMENT_CODE = b"ASCII\0\0\0"  # how an EXIF UserComment says what it is written in
PNG, JPEG, RIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"
FIRST_BLOCK = {PNG: 8, JPEG: 2, RIFF: 12}  # bytes from the start of the file
APP1, START_OF_SCAN = b"\xff\xe1", b"\xff\xda"  # JPEG markers

XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/"
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmp:CreatorTool="kontext-tui"
    Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def png_chunks(record: Mapping[str, Any]) -> PngInfo:
    """The record as PNG chunks, with the one that says sRGB."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add(b"sRGB", b"\0")  # rendering intent: perceptual
    chunks.add_itxt(KEY, _json(record))
    for key in PLAIN_KEYS:
        if key in record:
            chunks.add_itxt(key, _text(record[key]))
    chunks.add_itxt("Software", _text(record.get("software", KEY)))
    chunks.add_itxt("XML:com.adobe.xmp", XMP)
    return chunks


def exif(record: Mapping[str, Any], room: int = MAX_BYTES) -> bytes:
    """The record as EXIF data. Where it takes more than `room` bytes, texts are cut, then the turns are left out."""
    cut = {**_cut(record), "shortened": True}
    last = {key: value for key, value in cut.items() if key != "turns"}
    comment = next((text for each in (record, cut, last) if len(text := _json({KEY: each})) <= room), "")
    data = Image.Exif()
    data[ExifTags.Base.ImageDescription] = _text(record.get("prompt", ""))[:CUT_LENGTH].encode()
    data[ExifTags.Base.Software] = _text(record.get("software", KEY)).encode()
    details = data.get_ifd(ExifTags.IFD.Exif)
    details[ExifTags.Base.UserComment] = COMMENT_CODE + comment.encode("ascii")
    details[ExifTags.Base.ColorSpace] = 1  # sRGB
    return data.tobytes()


@cache
def srgb_profile() -> bytes:
    """The sRGB profile (ICC), without the time of its making: the same picture must give the same bytes."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    return bytes(profile)


def read_metadata(path: Path) -> dict[str, Any] | None:
    """The record in a file, or None: not a picture, not ours, broken, unreadable. Never waits, reads little.

    What comes back is foreign text: anybody can write such a record.
    """
    try:
        with open_regular(path) as file, quiet_decoders():
            record = _find(file)
    except Exception:  # of the EXIF and JSON parsers, whatever the bytes are
        return None
    return record if isinstance(record, dict) else None


def is_result(path: Path) -> bool:
    """Whether a file is a result of this program, by its header; for keeping results out of a folder's scan."""
    return read_metadata(path) is not None


def _json(record: Mapping[str, Any]) -> str:
    """ASCII, so that lone surrogates of odd file names survive."""
    return json.dumps(record, ensure_ascii=True, sort_keys=True)


def _text(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _cut(value: Any) -> Any:
    """The same data with every text cut to CUT_LENGTH."""
    if isinstance(value, str):
        return value[:CUT_LENGTH]
    if isinstance(value, Mapping):
        return {key: _cut(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(each) for each in value]
    return value


def _find(file: BinaryIO) -> Any:
    """The record in the header of a PNG, JPEG or WebP file; an exception when there is none."""
    for kind, size in _blocks(file):
        if kind not in (b"iTXt", APP1, b"EXIF") or size > MAX_BYTES:
            continue
        block = file.read(size)
        if kind == b"iTXt":
            if block.startswith(KEY.encode() + b"\0"):
                return json.loads(block.split(b"\0", 5)[-1])  # behind keyword, two flags, language, translation
        elif KEY.encode() in block and (kind == b"EXIF" or block.startswith(b"Exif\0\0")):
            data = Image.Exif()
            data.load(block)
            comment: bytes = data.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
            return json.loads(comment.removeprefix(COMMENT_CODE))[KEY]
    raise ValueError("no record")


def _blocks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """(kind, bytes) of each block before a picture's pixels, of WebP also behind; the file stands at its content.

    Ends with struct.error at the end of the file.
    """
    magic = file.read(12)
    container = next((start for start in FIRST_BLOCK if magic.startswith(start)), None)
    if container is None:
        return
    at = FIRST_BLOCK[container]
    for _ in range(MAX_BLOCKS):
        file.seek(at)
        if container == PNG:
            size, kind = struct.unpack(">I4s", file.read(8))
            at += 8 + size + 4
        elif container == JPEG:
            kind, size = struct.unpack(">2sH", file.read(4))
            at, size = at + 2 + size, size - 2
        else:
            kind, size = struct.unpack("<4sI", file.read(8))
            at += 8 + size + size % 2
        if kind in (b"IDAT", START_OF_SCAN):
            return
        yield kind, size
