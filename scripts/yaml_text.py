"""Change values in a YAML file and leave everything else in it as it is, byte for byte."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from ruamel.yaml import YAML


def changed(document: str, changes: Iterable[tuple[Sequence[str], Any]]) -> str:
    """Return ``document`` with new values for the keys that paths lead to: text, numbers, lists of numbers, sections.

    Sections are new, and the last of their siblings; everything else replaces a value. Only the lines of these change,
    but where sections are not in block style or have aliases: then all is written anew, with the same content.
    """
    expected = YAML().load(document)
    text: str | None = document
    for path, value in changes:
        *sections, name = path
        node = expected
        for section in sections:
            node = node[section]
        node[name] = value
        try:
            text = None if text is None else _changed(text, path, value)
        except ValueError:
            text = None
    if text is not None and YAML(typ="safe").load(text) == _plain(expected):
        return text
    writer, stream = YAML(), io.StringIO()
    writer.preserve_quotes, writer.width = True, 4_096
    writer.dump(expected, stream)
    return stream.getvalue()


def _plain(document: Any) -> Any:
    stream = io.StringIO()
    YAML().dump(document, stream)
    return YAML(typ="safe").load(stream.getvalue())


def _changed(document: str, path: Sequence[str], value: Any) -> str:
    *sections, name = path
    parent, newline = _section(document, sections), _newline(document)
    if isinstance(value, Mapping):
        outer = parent.value[0][0].start_mark.column
        lines = [f"{' ' * outer}{_inline(name)}:"]
        lines += [f"{' ' * (outer + 2)}{key}:{_behind(each, outer + 2, newline)}" for key, each in value.items()]
        rest = re.search(r"\r?\n|$", document[_end(parent) :])  # of the last line: a comment
        end = _end(parent) + (rest.start() if rest else 0)
        return document[:end] + newline + newline.join(lines) + document[end:]
    [(key, old)] = [pair for pair in parent.value if pair[0].value == name]
    if isinstance(old, yaml.ScalarNode) and not isinstance(value, list):
        return document[: old.start_mark.index] + _inline(value) + document[old.end_mark.index :]
    after = key.end_mark.index + 1  # the colon
    return document[:after] + _behind(value, key.start_mark.column, newline) + document[_end(old) :]


def _section(document: str, path: Sequence[str]) -> yaml.MappingNode:
    node = yaml.compose(document, Loader=yaml.SafeLoader)
    for name in path:
        children = {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
        node = children.get(name)
    if not isinstance(node, yaml.MappingNode) or node.flow_style or not node.value:
        raise ValueError(f"{'.'.join(path)} is no section in block style")
    return node


def _end(node: yaml.Node) -> int:
    """Return where ``node`` ends; a block's own end is behind the comments that follow it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index


def _behind(value: Any, indent: int, newline: str) -> str:
    """Return what follows a key and its colon."""
    if isinstance(value, list) and value:
        return "".join(f"{newline}{' ' * indent}- {item}" for item in value)
    return f" {_inline(value)}"


def _inline(value: Any) -> str:
    if isinstance(value, str):
        is_plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", value) and value.lower() not in ("true", "false", "null")
        return value if is_plain else f"'{value}'"  # 1e3, 0x10 and 012 are numbers in YAML 1.1, in 1.2 or in both
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return "[]" if isinstance(value, list) else str(value)


def _newline(document: str) -> str:
    return "\r\n" if "\r\n" in document else "\n"
