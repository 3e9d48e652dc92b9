"""One YAML document as plain data, with the line of each of its parts, so that errors can name it."""

from __future__ import annotations

from typing import Any

import yaml

from penstock.lab.errors import LabSpecError

Lines = dict[tuple[str | int, ...], int]


def parse(text: str, file: str) -> tuple[Any, Lines]:
    """The document and the line (from 1) of each mapping, list item and field. Raises LabSpecError."""
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise LabSpecError(f"{file}:1: the file is empty")
        lines: Lines = {}
        _note_lines(root, (), file, lines)
        return loader.construct_document(root), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise LabSpecError(f"{file}:{mark.line + 1 if mark else 1}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise LabSpecError(f"{file}:1: {error}") from None


def _note_lines(node: yaml.Node, path: tuple[str | int, ...], file: str, lines: Lines) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            if inner in lines:
                raise LabSpecError(f"{file}:{key.start_mark.line + 1}: {key.value} is there twice")
            lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, file, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*path, index), file, lines)
