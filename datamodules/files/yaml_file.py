"""Reads YAML for all rooms: safely, and refusing what would be lost (a key twice), never end (a node in itself) or grow without
bounds (aliases of aliases).

libyaml tells the events, six times as fast as PyYAML's own parser, where PyYAML was built with it. Nodes are made of them here in
either case: libyaml's composer calls itself in C, where a text that is nested too deeply ends the process, not the reading. What
libyaml refuses is read again by PyYAML, so that a mistake has one message and one place wherever it is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from datamodules.errors import InputError
from datamodules.files.text import read_text

_MOST = 1_000_000  # nodes, with those that aliases stand for


def read_yaml(path: Path, expected: str = "a YAML file") -> Any:
    """The content of a YAML file.

    Raises:
        InputError: the file is missing, empty, no text, or not YAML; it has a key twice, a node in itself, too many aliases, is
            nested too deeply, or has a number of thousands of digits.
    """
    return parse_yaml(read_text(path, expected), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The content of a YAML text; `where` it is from, for errors.

    Raises:
        InputError: as `read_yaml`.
    """
    try:
        try:
            return yaml.load(text, Loader=_Fast)
        except yaml.YAMLError:
            return yaml.load(text, Loader=_Strict)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise InputError(f"{where}{place}: not YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML: {' '.join(str(error).split())}.") from None
    except RecursionError:
        raise InputError(f"{where}: not YAML: it is nested too deeply.") from None
    except (ValueError, TypeError, OverflowError) as error:  # of what a value is made of
        raise InputError(f"{where}: not YAML: a value cannot be read ({' '.join(str(error).split())}).") from None


if TYPE_CHECKING:
    _Loader = yaml.SafeLoader  # both loaders below have its methods
else:
    _Loader = object


class _Rules(_Loader):
    """A name that is there twice is a mistake, not the last of the two. What `<<` brings may be overridden."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":  # others are refused, or unequal
                continue
            name = self.construct_object(key)  # 1 and 0x1, yes and true are one key
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is there twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Strict(_Rules, yaml.SafeLoader):
    """By PyYAML alone."""


if TYPE_CHECKING or not yaml.__with_libyaml__:
    _Fast = _Strict
else:
    from yaml.cyaml import CParser

    class _Fast(_Rules, Composer, CParser, SafeConstructor, Resolver):
        """As `_Strict`, of libyaml's events: the composer comes first, so that its way of making nodes is taken."""

        def __init__(self, stream: str) -> None:
            CParser.__init__(self, stream)
            Composer.__init__(self)
            SafeConstructor.__init__(self)
            Resolver.__init__(self)


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Nodes below one, each alias counted as what it stands for; 0 in `counts` while a node is being counted."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    known = counts.get(id(node))
    if known == 0:
        raise yaml.constructor.ConstructorError(None, None, "an alias contains itself", node.start_mark)
    if known is None:
        counts[id(node)] = 0
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known = counts[id(node)] = 1 + sum(_count(part, counts) for part in below)
        if known > _MOST:
            raise yaml.constructor.ConstructorError(None, None, f"aliases make more than {_MOST:,} values", node.start_mark)
    return known
