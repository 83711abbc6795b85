"""multipart/form-data as a stream of events, so that an upload of any size is never held or spooled.

``Form.feed`` takes the body in pieces of any size and returns what they completed: a part's beginning, pieces of its
content, its end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from wrenn_sandbox.core.errors import Invalid

_PARAMETER = re.compile(r';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))', re.ASCII)
_ESCAPED = re.compile(r'\\(["\\])')


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part starts. ``filename`` is None when the part is a plain field."""

    name: str
    filename: str | None


@dataclass(frozen=True, slots=True)
class PartData:
    """A piece of the current part's content."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The current part is complete."""


FormEvent = PartBegin | PartData | PartEnd


class Form:
    """One form on its way in."""

    def __init__(self, boundary: str) -> None:
        if not boundary:
            raise Invalid("The multipart Content-Type names no boundary.", slug="invalid_form")
        self.complete = False
        self._events: list[FormEvent] = []
        self._field = bytearray()
        self._value = bytearray()
        self._disposition = b""
        try:
            self._parser = MultipartParser(
                boundary.encode("latin-1"),
                {
                    "on_part_begin": self._part_begin,
                    "on_part_data": self._part_data,
                    "on_part_end": self._part_end,
                    "on_header_field": self._header_field,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._headers_finished,
                    "on_end": self._end,
                },
                max_header_size=16 << 10,
            )
        except FormParserError as error:
            raise Invalid(f"The form cannot be read: {error}", slug="invalid_form") from error

    def feed(self, data: bytes) -> list[FormEvent]:
        """The events that ``data`` completes; raises Invalid when it is not a form."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Invalid(f"The form cannot be read: {error}", slug="invalid_form") from error
        events, self._events = self._events, []
        return events

    def _part_begin(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, parameters = parse_parameters(self._disposition)
        self._events.append(PartBegin(parameters.get("name", ""), parameters.get("filename")))

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(PartData(data[start:end]))

    def _part_end(self) -> None:
        self._events.append(PartEnd())

    def _end(self) -> None:
        self.complete = True


def parse_parameters(header: bytes) -> tuple[str, dict[str, str]]:
    """A header value and its parameters, names in lower case.

    File names are bytes: UTF-8 where they can be, surrogateescape where not. ``name*=charset'language'value``
    (RFC 5987) counts before ``name=``.
    """
    text = header.decode("utf-8", "surrogateescape")
    value, separator, _ = text.partition(";")
    parameters: dict[str, str] = {}
    extended: dict[str, str] = {}
    for match in _PARAMETER.finditer(text[len(value) :] if separator else ""):
        name = match[1].lower()
        if name.endswith("*"):
            _, _, encoded = (match[3] or "").split("'", 2) if (match[3] or "").count("'") >= 2 else ("", "", "")
            if encoded:
                extended[name[:-1]] = unquote(encoded, errors="surrogateescape")
        else:
            parameters[name] = match[3] if match[2] is None else _ESCAPED.sub(r"\1", match[2])
    return value.strip().lower(), parameters | extended
