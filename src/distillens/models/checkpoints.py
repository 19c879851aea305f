"""Find the weights of a network in a checkpoint that another program wrote.

Training programs nest the state dict (``{"state_dict": …, "epoch": …}``), and wrappers put a prefix
before every name (``module.`` of DistributedDataParallel). Whether a state dict fits is decided by the
network's own strict ``load_state_dict``, with the copies recorded instead of made.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from distillens.errors import CheckpointError, nearest
from distillens.files.paths import user_path
from distillens.models.weights import load_state, read_checkpoint

PREFIXES = ("module", "model", "_orig_mod", "student", "teacher")
"""Parts of a prefix that is removed even where other entries do not have it."""

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that wrappers of submodules put inside names."""

COUNTER = "num_batches_tracked"
"""The buffer of BatchNorm that old checkpoints lack and that no inference reads."""

Named = Mapping[str, Any]
"""A mapping of a checkpoint, from names to tensors and other values."""


@dataclass
class Candidate:
    """A state dict of a checkpoint under the names that it might have in the network.

    The fields without a comment are the outcome of its strict ``load_state_dict``; see `try_state`.
    """

    key: str
    """Dotted path in the checkpoint; empty for the checkpoint itself."""
    prefix: str
    """Removed from the names; entries without it are left out."""
    state: OrderedDict[str, Any]
    left_out: tuple[str, ...]
    plain: bool
    """Whether the prefix may be removed without being asked for."""
    unwrapped: bool = False
    """Whether parts of `WRAPPERS` were removed inside the names."""
    added: str = ""
    """Put before the names."""
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Destination in the network and source in the checkpoint."""

    @property
    def described(self) -> str:
        """The arguments that choose it; empty for the checkpoint itself."""
        parts = [f"key: {self.key}"] if self.key else []
        parts += [f"strip: {self.prefix}"] if self.prefix else []
        return "{" + ", ".join(parts) + "}" if parts else ""

    @property
    def filled(self) -> set[int]:
        """Identities of the network's tensors that get a value."""
        return {id(target) for target, _ in self.copies}

    def try_state(self, model: nn.Module, own: Mapping[str, Any]) -> bool:
        """Return whether a strict load succeeds; the network keeps its weights.

        ``own`` is the network's state dict with its own tensors (``keep_vars=True``). Missing counters
        of BatchNorm, and missing names of tensors that exist under another name, count as found.
        """

        def take(module: nn.Module, incompatible: Any) -> None:
            self.missing += incompatible.missing_keys
            self.unexpected += incompatible.unexpected_keys
            # What is left to be raised are problems with the values.
            incompatible.missing_keys.clear()
            incompatible.unexpected_keys.clear()

        handle = model.register_load_state_dict_post_hook(take)
        try:
            with _Recorded(self.copies):
                model.load_state_dict(self.state)
        # A network may override the loading of its state.
        except Exception as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self.problems = lines[1:] or lines or [type(error).__name__]
        finally:
            handle.remove()
        filled = self.filled
        self.missing = [
            name
            for name in self.missing
            if not name.endswith(COUNTER) and id(own.get(name)) not in filled
        ]
        return not (self.missing or self.unexpected or self.problems)


class _Recorded(TorchFunctionMode):
    """Record the copies that loading makes, and make none."""

    def __init__(self, copies: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.copies = copies

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.copy_:
            self.copies.append((args[0], args[1]))
            return args[0]
        return func(*args, **(kwargs or {}))


def load_weights(
    path: str | Path, model: nn.Module, *, key: str | None = None, strip: str | None = None
) -> str:
    """Load a checkpoint into a model, whichever program wrote it.

    The state dict may be nested (``state_dict``, ``model``, ``net``, …), its names may have a prefix
    of a wrapper (``module.``, ``_orig_mod.``, …) or lack one, and its values may have another
    floating-point type. Whatever the model's strict ``load_state_dict`` accepts is accepted.

    Parameters
    ----------
    path
        A file of safetensors, the ``.index.json`` of its shards, or a file of ``torch.save``.
    model
        The model; unchanged if an error is raised.
    key
        Dotted path of the state dict, such as ``"state_dict_ema"``; by default it
        is searched for.
    strip
        A prefix to remove from the names, such as ``"teacher."``; entries without it are left out.
        By default it is found out.

    Returns
    -------
    str
        Note on steps beyond ``load_state_dict``, in one line; empty if there were none.

    Raises
    ------
    CheckpointError
        The file cannot be read, no part of it fits the model, several different parts do, or a value
        is not finite or has no equal in the model's type.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "resnet.pt"
    >>> wrapped = {f"module.{name}": t for name, t in nn.Linear(3, 2).state_dict().items()}
    >>> torch.save({"state_dict": wrapped, "epoch": 7}, path)
    >>> load_weights(path, nn.Linear(3, 2))
    "read 'state_dict'; removed the prefix 'module.'"
    """
    path = user_path(path)
    content = read_checkpoint(path)
    where, found = str(path), list(find_mappings(content))
    if not found:
        # Raises an error; an empty state dict belongs to a model without weights.
        load_state(path)
    own = model.state_dict(keep_vars=True)
    tried = [
        candidate
        for place, mapping in _chosen(found, where, key)
        for candidate in _candidates(place, mapping, own, where, strip)
    ]
    fitting = [candidate for candidate in tried if candidate.try_state(model, own)]
    if not fitting:
        raise CheckpointError(_explain(tried, own, where))
    candidate = _only(fitting, where)
    if not candidate.plain:
        raise CheckpointError(
            f"{where} fits the model only in part: its names under {candidate.prefix!r} match, "
            f"{_some(candidate.left_out)} belong to something else; if that is the network, choose "
            f"it by teacher.checkpoint: {{path: …, strip: {candidate.prefix}}}"
        )
    converted = _check_values(candidate, own, where)
    # What is missing was found to be counters and tied weights, which need no value.
    model.load_state_dict(candidate.state, strict=False)
    return _report(candidate, own, converted)


def find_mappings(content: Any, place: str = "", depth: int = 4) -> Iterator[tuple[str, Named]]:
    """Yield every mapping from names to tensors inside a checkpoint, with its dotted place."""
    if isinstance(content, (list, tuple)) and not place:
        # Such as (state dict, epoch).
        content = {str(number): part for number, part in enumerate(content)}
    if not isinstance(content, Mapping):
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    if any(isinstance(value, Tensor) for value in named.values()):
        yield place, content
    for name, value in named.items():
        # An optimizer's state has numbers or many names for keys, and never a network's names.
        if depth and isinstance(value, Mapping) and not name.startswith("optim"):
            yield from find_mappings(value, f"{place}.{name}" if place else name, depth - 1)


def _chosen(found: list[tuple[str, Named]], where: str, key: str | None) -> list[tuple[str, Named]]:
    if key is None:
        # Those of an optimizer that are left have fewer names.
        return sorted(found, key=lambda each: -len(each[1]))[:16]
    chosen = [each for each in found if each[0] == key]
    if not chosen:
        there = [place for place, _ in found if place]
        raise CheckpointError(f"{where} has no state dict under {key!r}{nearest(key, there)}")
    return chosen


def _candidates(
    place: str, mapping: Named, own: Mapping[str, Any], where: str, strip: str | None
) -> Iterator[Candidate]:
    names = [
        name
        for name, value in mapping.items()
        if isinstance(name, str)
        and (isinstance(value, Tensor) or name.rpartition(".")[2] == "_extra_state")
    ]
    metadata = getattr(mapping, "_metadata", None) or {}
    if strip is None:
        prefixes = _prefixes(names, own)
    else:
        if strip and not strip.endswith(".") and any(n.startswith(f"{strip}.") for n in names):
            strip = f"{strip}."
        if not any(name.startswith(strip) for name in names):
            raise CheckpointError(
                f"{where}{f' under {place!r}' if place else ''} has no names with the prefix "
                f"{strip!r}; its names are {_some(names)}"
            )
        prefixes = {strip: True}
    first = next(iter(own), "").split(".")[:-1]
    shared = [each for each in _beginnings(first) if all(name.startswith(each) for name in own)]
    for prefix, plain in prefixes.items():
        inside = [name for name in names if name.startswith(prefix)]
        kept = set(inside)
        left_out = tuple(str(name) for name in mapping if name not in kept)
        short = [name[len(prefix) :] for name in inside]
        whole = [re.sub(rf"(?<=\.)(?:(?:{'|'.join(WRAPPERS)})\.)+", "", name) for name in short]
        for unwrapped, renamed in ((False, short), (True, whole)):
            if unwrapped and (whole == short or len(set(whole)) < len(whole)):
                continue
            for head in ("", *shared):
                # What is removed is not put back: that candidate comes with the shorter prefix.
                if head and prefix.endswith(head):
                    continue
                state = OrderedDict(
                    (head + new, _dense(mapping[old]))
                    for new, old in zip(renamed, inside, strict=True)
                )
                if not (unwrapped or head):
                    # Versions of the modules, from which they know older layouts.
                    state._metadata = {  # type: ignore[attr-defined]
                        name[len(prefix) :]: value
                        for name, value in metadata.items()
                        if f"{name}.".startswith(prefix)
                    }
                yield Candidate(place, prefix, state, left_out, plain, unwrapped, head)


def _dense(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_quantized:
        return value.dequantize()
    return value if value.layout == torch.strided else value.to_dense()


def _prefixes(names: Sequence[str], own: Mapping[str, Any]) -> dict[str, bool]:
    """Return the prefixes to try, and whether each may be removed without being asked for."""
    counts = Counter(prefix for name in names for prefix in _beginnings(name.split(".")[:-1]))
    needed = len({id(value) for name, value in own.items() if not name.endswith(COUNTER)})
    found = {"": True}
    for prefix, count in counts.items():
        plain = count == len(names) or all(part in PREFIXES for part in prefix[:-1].split("."))
        if plain or count >= max(needed, 1):
            found[prefix] = plain
    return found


def _beginnings(parts: Sequence[str]) -> list[str]:
    return [".".join(parts[:end]) + "." for end in range(1, len(parts) + 1)]


def _only(fitting: list[Candidate], where: str) -> Candidate:
    first, *others = fitting
    different = [each for each in others if not _equal(each, first)]
    if not different:
        return first
    choices = [first, *different]
    raise CheckpointError(
        f"{where} holds {len(choices)} different state dicts that fit the model: "
        f"{' and '.join(each.described or 'the checkpoint itself' for each in choices)}; choose one by "
        f"teacher.checkpoint: {{path: …, {'key' if choices[1].key != choices[0].key else 'strip'}: …}}"
    )


def _equal(one: Candidate, other: Candidate) -> bool:
    sources = {id(target): source for target, source in other.copies}
    return all(
        id(target) in sources
        and sources[id(target)].dtype == source.dtype
        and torch.equal(sources[id(target)], source)
        for target, source in one.copies
    )


def _check_values(candidate: Candidate, own: Mapping[str, Any], where: str) -> Counter[str]:
    """Refuse values that the network's types cannot hold; count the conversions, in words."""
    names = {id(value): name for name, value in own.items()}
    converted: Counter[str] = Counter()
    before: dict[int, Tensor] = {}
    for target, source in candidate.copies:
        name = names.get(id(target), "a weight")
        if problem := value_problem(target.detach(), source):
            raise CheckpointError(f"{where}: {name!r} {problem}")
        if id(target) in before and not torch.equal(before[id(target)], source):
            raise CheckpointError(
                f"{where} gives two values to {name!r}, which the model uses in several places; "
                "another architecture?"
            )
        before[id(target)] = source
        if source.dtype != target.dtype:
            converted[f"{_name(source.dtype)} to {_name(target.dtype)}"] += 1
    return converted


def value_problem(target: Tensor, source: Tensor) -> str | None:
    """Return why a stored tensor has no equal in the type of its destination, or None."""
    stored, wanted = _name(source.dtype), _name(target.dtype)
    if source.is_meta:
        return "has a shape but no values; it was saved from a model on the meta device"
    if source.is_complex() and not target.is_complex():
        return f"is {stored}, the model needs {wanted}; the imaginary part would be lost"
    numbers = target.is_floating_point() or target.is_complex()
    if numbers and not (source.is_floating_point() or source.is_complex()):
        return (
            f"is {stored}, the model needs {wanted}: the weights are quantised or packed; save "
            "them as floating-point numbers"
        )
    try:
        values = source.to(target.dtype)
        if not numbers:
            same = bool((values == source).all())
            return None if same else f"is {stored} and has values that {wanted} cannot hold"
        # A type of one byte has few operations of its own.
        values = values if values.element_size() > 1 else values.float()
        bad = ~torch.isfinite(values)
        if not bool(bad.any()):
            return None
        # A mask may hold infinities by design: then a new network has them at the same places.
        if target.shape == values.shape and bool((values == target.cpu())[bad].all()):
            return None
        given = source if source.element_size() > 1 else source.float()
        if bool(torch.isfinite(given).all()):
            return f"is {stored} and has values too large for {wanted}"
    except (RuntimeError, TypeError):
        return f"is {stored}, which cannot be converted to {wanted}; save the weights as {wanted}"
    return "holds a NaN or an infinity"


def _report(candidate: Candidate, own: Mapping[str, Any], converted: Counter[str]) -> str:
    done = [f"read {candidate.key!r}"] if candidate.key else []
    if candidate.prefix:
        done.append(f"removed the prefix {candidate.prefix!r}")
    if candidate.unwrapped:
        done.append("removed the names of wrappers inside names")
    if candidate.added:
        done.append(f"added the prefix {candidate.added!r}")
    stored, filled = set(candidate.state), candidate.filled
    counters = [name for name in own if name.endswith(COUNTER)]
    if renamed := [name for name in candidate.state if name not in own]:
        done.append(f"translated {_some(renamed)} to the model's names")
    tied = [n for n in own if id(own[n]) in filled and n not in stored and n not in counters]
    if tied and not renamed:
        done.append(f"took {_some(tied)} from the weights tied to it")
    if counters and not any(name.endswith(COUNTER) for name in stored):
        done.append(f"found no value for {_some(counters)}, which inference does not use")
    done += [f"converted {count} tensors from {kinds}" for kinds, count in converted.items()]
    if candidate.left_out:
        done.append(f"left out {_some(candidate.left_out)}")
    return "; ".join(done)


MISMATCH = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch.Size\(\[(.*?)\]\) from checkpoint, "
    r"the shape in current model is torch.Size\(\[(.*?)\]\)"
)


def _explain(tried: list[Candidate], own: Mapping[str, Any], where: str) -> str:
    """Return why no candidate fits, by the one that comes closest."""

    def closeness(each: Candidate) -> tuple[int, int]:
        mismatched = sum("size mismatch" in problem for problem in each.problems)
        return len(each.copies) + mismatched, -len(each.unexpected)

    closest = max(tried, key=closeness)
    filled = closest.filled
    tensors = [value for value in own.values() if isinstance(value, Tensor)]
    matching, total = sum(id(value) in filled for value in tensors), len(tensors)
    place = f", with {closest.described}" if closest.described else ""
    problems = [f"{where} does not fit the model: {matching} of {total} weights match{place}"]
    found = [match for problem in closest.problems if (match := MISMATCH.search(problem))]
    other = [problem for problem in closest.problems if not MISMATCH.search(problem)]
    if found:
        name, stored, wanted = found[0].groups()
        problems.append(f"{name!r} has shape ({stored}), the model needs ({wanted})")
    if closest.missing:
        problems.append(f"it has no weight {_some(closest.missing)}")
    if closest.unexpected:
        problems.append(f"the model has no {_some(closest.unexpected)}")
    sizes = [(_size(match[2]), _size(match[3])) for match in found]
    return "; ".join([*problems, *other[:1], _cause(closest, sizes, bool(other))])


def _cause(
    closest: Candidate, sizes: list[tuple[tuple[int, ...], tuple[int, ...]]], explained: bool
) -> str:
    quantised = re.compile(r"scale|zeros?|zero_point|absmax|SCB|qweight")
    if any(map(quantised.search, closest.unexpected)):
        return "the checkpoint looks quantised; save its weights as floating-point numbers"
    if explained:
        return "see the message before"
    if not sizes:
        return "is it another architecture, or does it name its layers otherwise?"
    heads = {(stored[:1], wanted[:1]) for stored, wanted in sizes}
    named_alike = not closest.missing and not closest.unexpected
    if named_alike and len(heads) == 1 and all(a and b and a[1:] == b[1:] for a, b in sizes):
        (stored,), (wanted,) = heads.pop()
        return f"the sizes {stored} and {wanted} suggest another class count; " + (
            "the built-in models have one output for two classes, so name a builder "
            "(module:function) of a network with two"
            if (stored, wanted) == (2, 1)
            else "a teacher needs one output for every class of the data"
        )
    return "another class count, width or architecture?"


def _size(shape: str) -> tuple[int, ...]:
    return tuple(int(part) for part in shape.split(", ") if part)


def _some(names: Sequence[str]) -> str:
    if len(names) == 1:
        return repr(names[0])
    return f"{names[0]!r} and {len(names) - 1} more"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
