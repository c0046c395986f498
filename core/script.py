"""The edit script: what to edit, with which model, and the turns of the edit, as frozen typed data.

`load` reads a script's file and `parse` its text; both report every problem at once, each with its line and
column. Once parsed, all paths are absolute and every turn knows which result it starts from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from core import strict_yaml
from core.errors import Problem, ScriptError
from core.script_problems import Explainer, Origin, said

MAX_TURNS = 100
MAX_PROMPT = 4_000
MAX_SEED = 2**63 - 1
MAX_STEPS = 1_000
MAX_GUIDANCE = 100
MAX_REFRESH = 100

RESULT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_OTHER_SUFFIXES = (".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic", ".jxl")

MAGIC = re.compile(r"[*?[]")
"""What makes a glob of a path that does not exist as it is written."""

# The script tells each turn its number under a key that no file can hold: strict_yaml lets no NUL through.
_NUMBER: Final = "\0number"

_NUMBERS = {
    "seed": f"a whole number from 0 to {MAX_SEED}",
    "steps": f"a whole number from 1 to {MAX_STEPS}",
    "guidance": f"a number from 0 to {MAX_GUIDANCE}",
    "context_refresh": f"a whole number from 1 (exact) to {MAX_REFRESH}",
}
_TURN_KEYS = {
    "prompt": f"text of 1 to {MAX_PROMPT:,} characters",
    **_NUMBERS,
    "from": "the number of an earlier turn, or 0 for the input",
}
_SCRIPT_KEYS = {
    "input": "a file, a folder, a glob or a list of them",
    "output": "a folder, or a file name such as {stem}.png",
    "model": "the name of a model or the path of a diffusers folder",
    "precision": "auto, bf16, fp8, fp4 or fp4-svd",
    "runtime": "auto, torch, onnx or tensorrt",
    **_NUMBERS,
    "output_size": "input or model",
    "turns": f"a list of 1 to {MAX_TURNS} turns, each a prompt on a line that starts with `- `",
}


def _text(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("blank, or not text")
    return text


def _path(text: str) -> str:
    os.fsencode(text)  # a ValueError where no file can have this name
    return _text(text)


def _absolute(text: str, info: ValidationInfo) -> str:
    """Paths count from the script's folder, or from the current one when the command line gave them."""
    match info.context:
        case Origin() as origin if info.field_name not in origin.options:
            folder = origin.folder
        case _:
            folder = Path.cwd()
    # pathlib drops a final slash, and raises at a `~` whose user there is not
    return os.path.join(folder, os.path.expanduser(text))  # noqa: PTH111, PTH118


def _template(text: str) -> str:
    """Check what an output says before its folder joins it: the folder's own name may hold braces."""
    suffix = Path(text).suffix.lower()
    if wrong := next((part for part in re.findall(r"\{[^{}]*\}", text) if part != "{stem}"), None):
        raise said(f"cannot hold {wrong}: the only placeholder is {{stem}}")
    if text.endswith(os.sep) or suffix not in (*RESULT_SUFFIXES, *_OTHER_SUFFIXES):
        if "{stem}" in text:
            raise said(f"with {{stem}} is a file name: end it in one of {', '.join(RESULT_SUFFIXES)}")
    elif suffix in _OTHER_SUFFIXES:
        raise said(f"cannot be a {suffix} file: results are written as {', '.join(RESULT_SUFFIXES)}")
    return text


def _model(text: str, info: ValidationInfo) -> str:
    is_path = os.sep in text or text.startswith("~") or text in {".", ".."}
    return _absolute(text, info) if is_path else text


def _listed(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value if isinstance(value, tuple) else (value,)


def _numbered(turns: object) -> object:
    """Give a plain string the shape of a turn, and every turn its number and what it starts from."""
    if not isinstance(turns, list | tuple):
        return turns
    return tuple(_numbered_turn(turn, number) for number, turn in enumerate(turns, 1))


def _numbered_turn(turn: object, number: int) -> object:
    if isinstance(turn, Turn):
        turn = turn.model_dump(by_alias=True, exclude_unset=True)
    if isinstance(turn, str):
        turn = {"prompt": turn}
    return {"from": number - 1, **turn, _NUMBER: number} if isinstance(turn, Mapping) else turn


# InstanceOf, because pydantic's own str refuses the surrogates that stand for undecodable file names.
PathText = Annotated[
    InstanceOf[str],
    BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value),
    AfterValidator(_path),
]
Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT), AfterValidator(_text), AfterValidator(str.strip)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)]
Refresh = Annotated[int, Field(ge=1, le=MAX_REFRESH)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Turn(_Model):
    """One prompt applied to one picture: the previous turn's result, or the one that `from` names."""

    number: int = Field(default=1, alias=_NUMBER, exclude=True)
    """The turn's place in the script, counting from 1. Given by the script, never written."""
    prompt: Prompt
    """What to change, in a sentence or a few."""
    seed: Seed | None = None
    """The seed of this turn. Absent: the script's."""
    steps: Steps | None = None
    """Denoising steps of this turn. Absent: the script's."""
    guidance: Guidance | None = None
    """How strongly this turn follows its prompt. Absent: the script's."""
    context_refresh: Refresh | None = None
    """One step in so many of this turn looks at the picture it starts from anew. Absent: the script's."""
    from_turn: int = Field(default=0, alias="from")
    """The turn whose result to start from, 0 for the input. Absent: the previous turn."""

    @field_validator("from_turn")
    @classmethod
    def _earlier(cls, value: int, info: ValidationInfo) -> int:
        number = info.data["number"]
        if not 0 <= value < number:
            allowed = f"0 (the input) to {number - 1}" if number > 1 else "0 (the input)"
            raise said(f"must be {allowed}, found {value}")
        return value


class Script(_Model):
    """Edits many pictures with one model: each goes through the same turns."""

    input: Annotated[tuple[PathText, ...], BeforeValidator(_listed), Field(min_length=1)]
    """The pictures: a file, a folder with its subfolders, a glob or a list of them. Relative to this file."""
    output: Annotated[
        PathText, AfterValidator(_template), AfterValidator(_absolute), Field(validate_default=True)
    ] = "edited"
    """Where results go: a folder, or a file name that ends in .png, .jpg, .jpeg or .webp and in which {stem}
    stands for the input's name. Relative to this file."""
    model: Annotated[PathText, AfterValidator(_model)] = "kontext-dev"
    """The model: kontext-dev, kontext-tiny, or the path of a diffusers folder, relative to this file."""
    precision: Literal["auto", "bf16", "fp8", "fp4", "fp4-svd"] = "auto"
    """How small the weights are made. auto takes the fastest that the GPU and the artifacts allow."""
    runtime: Literal["auto", "torch", "onnx", "tensorrt"] = "auto"
    """What runs the model. auto takes the fastest that can."""
    seed: Seed | None = None
    """The seed that each picture's own seed is derived from. Absent: one is drawn when the edit is queued."""
    steps: Steps | None = None
    """Denoising steps of each turn. Absent: the model's default."""
    guidance: Guidance | None = None
    """How strongly a turn follows its prompt. Absent: the model's default."""
    context_refresh: Refresh | None = None
    """One step in so many looks at the picture that is edited anew; for the others what was kept of it serves.
    Absent: 1, which is exact. Larger is faster and nearly the same."""
    output_size: Literal["input", "model"] = "input"
    """The size of results: the input's own, or the one the model works at."""
    turns: Annotated[tuple[Turn, ...], BeforeValidator(_numbered), Field(min_length=1, max_length=MAX_TURNS)]
    """The edits, in order; each starts from the previous one's result. A plain string is a turn's prompt."""

    _origin: Origin = PrivateAttr(default=Origin())

    def model_post_init(self, context: Any) -> None:
        if isinstance(context, Origin):
            self._origin = context

    @field_validator("input")
    @classmethod
    def _absolute_input(cls, paths: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        return tuple(_absolute(path, info) for path in paths)

    def refresh_of(self, turn: Turn) -> int:
        """The `context_refresh` that holds for a turn; 1 is exact."""
        return turn.context_refresh or self.context_refresh or 1

    @property
    def most_refresh(self) -> int:
        """The largest `context_refresh` of the turns: above 1 only some runtimes serve."""
        return max(map(self.refresh_of, self.turns))

    @property
    def folder(self) -> Path:
        """The folder of the script's file, resolved."""
        return self._origin.folder

    @property
    def file(self) -> Path | None:
        """The script's own file, None where it was not read from one."""
        path = self.folder / Path(self._origin.file).name
        return path if self._origin.places and path.is_file() else None

    @property
    def output_folder(self) -> Path:
        """The folder that all results lie in or below."""
        return self._output_parts()[0]

    @property
    def output_name(self) -> str:
        """What a result is called in that folder; `{stem}` stands for the input's name without suffix."""
        return self._output_parts()[1]

    def _output_parts(self) -> tuple[Path, str]:
        path = Path(self.output)
        if self.output.endswith(os.sep) or path.suffix.lower() not in RESULT_SUFFIXES:
            return path, "{stem}.png"
        first = next((i for i, part in enumerate(path.parts) if "{stem}" in part), len(path.parts) - 1)
        return Path(*path.parts[:first]), str(Path(*path.parts[first:]))

    def problem(self, message: str, *path: str | int) -> Problem:
        """A problem with the value at `path`, such as `"input", 0`, in the file or on the command line."""
        return self._origin.problem(message, *path)

    def dump(self) -> dict[str, Any]:
        """The script as data for JSON, paths absolute and `from` written out; `Script(**dumped)` reads it."""
        dumped = self.model_dump(by_alias=True, exclude_none=True)
        return {**dumped, "input": list(self.input), "turns": list(dumped["turns"])}


def load(path: Path, overrides: Mapping[str, object] | None = None) -> Script:
    """Read a script from its file; `overrides` are values from the command line, see `parse`."""
    try:
        if path.is_fifo() and not path.is_relative_to("/dev"):  # a shell's <(...) lies there, and has its writer
            raise ScriptError([Problem(str(path), 0, 0, "a named pipe, not a script's file: give another path")])
        with path.open("rb") as stream:
            text = stream.read(strict_yaml.MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (isinstance(error, OSError) and error.strerror) or "not a file name"
        raise ScriptError([Problem(str(path), 0, 0, f"cannot be read: {reason}")]) from None
    return parse(text, file=str(path), folder=path.parent, overrides=overrides, look=True)


def parse(
    text: str | bytes,
    *,
    file: str,
    folder: Path,
    overrides: Mapping[str, object] | None = None,
    look: bool = False,
) -> Script:
    """Check a script's text; raise a ScriptError with all of its problems, in the name of `file`.

    look: with problems, tell of inputs that do not exist too. Without any, `find_inputs` does.

    `overrides` replace the values of the same keys, except None, which means not given. Their problems are
    located as `--output-size` rather than in the file, and their paths count from the current folder.
    """
    document = strict_yaml.load(text, file)
    options = {key: value for key, value in (overrides or {}).items() if value is not None}
    origin = Origin(file, folder.resolve(), document.places, frozenset(options))
    explainer = Explainer(document, origin, _SCRIPT_KEYS, _TURN_KEYS)
    try:
        script = Script.model_validate({**document.data, **options}, context=origin)
    except ValidationError as error:
        problems = list(explainer.problems(error.errors(include_url=False)))
        if look:
            problems += _missing_inputs({**document.data, **options}.get("input"), error, origin)
        raise ScriptError(problems) from None
    if problems := list(explainer.problems([])):
        raise ScriptError(problems)
    return script


def _missing_inputs(given: object, error: ValidationError, origin: Origin) -> Iterator[Problem]:
    if any(each["loc"][:1] == ("input",) for each in error.errors(include_url=False)):
        return
    entries = given if isinstance(given, list | tuple) else (given,) if given is not None else ()
    folder = Path.cwd() if "input" in origin.options else origin.folder
    for index, entry in enumerate(entries):
        path = os.path.join(folder, os.path.expanduser(os.fspath(entry)))  # noqa: PTH111, PTH118
        if not MAGIC.search(path) and not os.path.lexists(path):
            yield origin.problem(f"{path} does not exist: check the name", "input", index)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a script's file, for editors: it accepts whatever `parse` accepts, and little more.

    What a schema cannot say is left to `parse`: a turn's own number bounds its `from`, and the like.
    """
    schema = Script.model_json_schema()
    turn = schema["$defs"]["Turn"]
    del turn["properties"][_NUMBER]
    script = schema["properties"]
    for properties in (script, turn["properties"]):
        for key, value in properties.items():
            properties[key] = _plain_schema(value)
    text = {"type": "string", "minLength": 1, "pattern": r"\S"}
    for key in ("output", "model"):
        script[key] |= text
    many = {"type": "array", "items": text, "minItems": 1}
    script["input"] = {"description": script["input"]["description"], "anyOf": [text, many]}
    prompt = turn["properties"]["prompt"]
    prompt["pattern"] = r"\S"
    turn["properties"]["from"] |= {"minimum": 0, "maximum": MAX_TURNS - 1}
    script["turns"] = {
        "description": script["turns"]["description"],
        "type": "array",
        "items": {"anyOf": [prompt, {"$ref": "#/$defs/Turn"}]},
        "minItems": 1,
        "maxItems": MAX_TURNS,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "kontext-tui edit script",
    }


def _plain_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A key's schema as its file has it: a key without a value is left out, never null."""
    given, *_null = schema.get("anyOf", [{}])
    described = {**schema, **given, "description": " ".join(schema["description"].split())}
    return {
        key: value
        for key, value in described.items()
        if key not in {"title", "anyOf"} and (key, value) != ("default", None)
    }
