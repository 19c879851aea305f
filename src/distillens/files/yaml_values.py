"""Read and write YAML with the numbers of YAML 1.2.

PyYAML follows YAML 1.1, in which ``1e-5`` is a string, ``010`` is eight, ``12:30`` is 750 and
``2024-01-01`` is a date. Here they are a number, ten, and two strings. ``yes``, ``no``, ``on`` and
``off`` stay truth values, and ``1_000`` a number, as in PyYAML.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import ScalarNode

INT, FLOAT, TIME = (f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))

INTEGER = re.compile(r"[-+]?(?:0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$")
REAL = re.compile(
    r"""(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


class Loader(yaml.SafeLoader):
    """Load plain values only."""

    def construct_yaml_int(self, node: ScalarNode) -> int:
        """Return the value of `INTEGER`."""
        text = str(self.construct_scalar(node)).replace("_", "")
        return int(text, 0 if re.match("[-+]?0[box]", text) else 10)


class Dumper(yaml.SafeDumper):
    """Write plain values, in quotes where `Loader` would read something else."""


def _resolve_as_in_1_2(kind: type[Loader] | type[Dumper]) -> None:
    kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in (INT, FLOAT, TIME)]
        for first, known in kind.yaml_implicit_resolvers.items()
    }
    kind.add_implicit_resolver(INT, INTEGER, list("-+0123456789"))
    kind.add_implicit_resolver(FLOAT, REAL, list("-+.0123456789"))


_resolve_as_in_1_2(Loader)
_resolve_as_in_1_2(Dumper)
Loader.add_constructor(INT, Loader.construct_yaml_int)


def load_yaml(text: str, loader: type[Loader] = Loader) -> Any:
    """Return the plain values that a text holds.

    Raises
    ------
    yaml.YAMLError, ValueError, TypeError, RecursionError
        The text is no YAML, or names an object that is no plain value.

    Examples
    --------
    >>> load_yaml("{eps: 1e-5, sizes: [.5, 1E3], seed: 010, time: 12:30, bias: no}")
    {'eps': 1e-05, 'sizes': [0.5, 1000.0], 'seed': 10, 'time': '12:30', 'bias': False}
    """
    return yaml.load(text, loader)


def dump_yaml(values: Any) -> str:
    """Return plain values as text that `load_yaml` reads back equal."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True)
