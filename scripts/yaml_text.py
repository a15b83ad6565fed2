"""Change values in a YAML file, and leave everything else in it unchanged, byte for byte.

ruamel.yaml alone would move a comment in front of the next section above a new section, drop comments after a list that
it replaces, and normalize spacing and nulls.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from ruamel.yaml import YAML


def edit(document: str, changes: Iterable[tuple[Sequence[str], Any]]) -> str:
    """Return ``document`` with new values, strings, numbers, lists or sections, at the given paths of keys.

    A value replaces the old one. Only a section may be new; it becomes the last of its siblings. Only their lines
    change. If sections are in flow style or have aliases, ruamel.yaml writes the whole file, with the same content.
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
            text = None if text is None else _edit_value(text, path, value)
        except ValueError:
            text = None
    if text is not None and YAML(typ="safe").load(text) == _to_plain(expected):
        return text
    writer, stream = YAML(), io.StringIO()
    writer.preserve_quotes, writer.width = True, 4_096
    writer.dump(expected, stream)
    return stream.getvalue()


def _to_plain(document: Any) -> Any:
    stream = io.StringIO()
    YAML().dump(document, stream)
    return YAML(typ="safe").load(stream.getvalue())


def _edit_value(document: str, path: Sequence[str], value: Any) -> str:
    *sections, name = path
    parent, newline = _find_section(document, sections), _newline(document)
    pairs = [pair for pair in parent.value if pair[0].value == name]
    if not pairs and isinstance(value, Mapping):
        indent = parent.value[0][0].start_mark.column
        end = _end(parent)
        if line_end := re.search(r"\r?\n|$", document[end:]):  # after a comment in the last line
            end += line_end.start()
        return document[:end] + _format({name: value}, indent - 2, newline) + document[end:]
    [(key, old)] = pairs
    if isinstance(old, yaml.ScalarNode) and not isinstance(value, list | Mapping):
        return document[: old.start_mark.index] + _format_inline(value) + document[old.end_mark.index :]
    after_colon = key.end_mark.index + 1
    return document[:after_colon] + _format(value, key.start_mark.column, newline) + document[_end(old) :]


def _find_section(document: str, path: Sequence[str]) -> yaml.MappingNode:
    node = yaml.compose(document, Loader=yaml.SafeLoader)
    for name in path:
        children = {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
        node = children.get(name)
    if not isinstance(node, yaml.MappingNode) or node.flow_style or not node.value:
        raise ValueError(f"not a section in block style: {'.'.join(path)}")
    return node


def _end(node: yaml.Node) -> int:
    """Return the index after ``node``, without the comments after it, which PyYAML counts as part of a block."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index


def _format(value: Any, indent: int, newline: str) -> str:
    """Format ``value`` as the text after a key and its colon; the key has ``indent`` spaces before it."""
    if isinstance(value, Mapping) and value:
        inner = indent + 2
        lines = [f"{_format_inline(key)}:{_format(item, inner, newline)}" for key, item in value.items()]
        return "".join(f"{newline}{' ' * inner}{line}" for line in lines)
    if isinstance(value, list) and value:
        return "".join(f"{newline}{' ' * indent}- {item}" for item in value)
    return f" {_format_inline(value)}"


def _format_inline(value: Any) -> str:
    if isinstance(value, str):
        is_plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", value) and value.lower() not in ("true", "false", "null")
        return (
            value if is_plain else "'" + value.replace("'", "''") + "'"
        )  # 1e3, 0x10 and 012 are numbers in YAML 1.1, in 1.2 or in both
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return "[]" if isinstance(value, list) else "{}" if isinstance(value, Mapping) else str(value)


def _newline(document: str) -> str:
    return "\r\n" if "\r\n" in document else "\n"
