"""Models of other libraries: ``timm:NAME`` and ``transformers:NAME_OR_FOLDER``.

Both are optional and imported when a recipe first names one. Neither runs code that comes with the
weights, so they need no ``--trust-code``: Hugging Face weights are read from safetensors alone, and
whatever timm unpickles is held to tensors.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from distillens.errors import ModelError, RecipeError, nearest
from distillens.models.lenet import image_shape

EXTRAS = {"timm": "timm", "transformers": "text"}
"""The extra of distillens that each library comes with."""

FROM_DATA = {
    "timm": ("num_classes", "in_chans"),
    "transformers": ("num_labels", "id2label", "label2id"),
}
ELSEWHERE = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "trust_remote_code")


def is_external(name: str) -> bool:
    """Say whether a model's name is one of another library's."""
    return name.partition(":")[0] in EXTRAS and ":" in name


def external_builder(name: str) -> Callable[..., nn.Module]:
    """Return the builder of ``timm:NAME`` or ``transformers:NAME_OR_FOLDER``.

    ``timm:NAME`` takes the arguments of ``timm.create_model``; weights are fresh unless
    ``pretrained: true``. ``transformers:NAME_OR_FOLDER`` takes ``pretrained`` (true unless said
    otherwise), ``revision`` and any key of the model's own configuration; with ``pretrained: false``
    a folder with a ``config.json`` is enough, and the channels and side of the pictures are filled
    in where the configuration has such keys. The number of classes always comes from the data.

    Raises
    ------
    ModelError
        The library is not installed or cannot be imported, or what was asked for cannot be read.
    RecipeError
        It knows no such model or argument.
    """
    library, _, inner = name.partition(":")
    if not inner:
        raise RecipeError(f"model {name!r} names nothing after the colon; give {library}:NAME")
    module = _import(library, name)
    make = _timm if library == "timm" else _transformers
    if library == "timm":
        _check_timm_name(module, inner)

    def build(input_shape: tuple[int, ...], outputs: int, **arguments: Any) -> nn.Module:
        channels, height, width = image_shape(name, input_shape)
        for key in arguments:
            if key in FROM_DATA[library]:
                raise RecipeError(f"model {name!r}: {key} is set from the data; leave it out")
            if key in ELSEWHERE:
                raise RecipeError(
                    f"model {name!r} takes no {key}; weights of your own go into teacher.checkpoint"
                )
        try:
            with _tensors_only():
                return make(module, inner, (channels, height, width), outputs, arguments)
        except (RecipeError, ModelError, TypeError):
            raise
        # Both libraries raise many kinds for a name, a hub out of reach or a bad file.
        except Exception as error:
            text = " ".join(str(error).split())[:240] or type(error).__name__
            raise ModelError(f"model {name!r} cannot be built: {text}") from None

    return build


class Classifier(nn.Module):
    """A Hugging Face image classifier that returns its logits, (N, classes), and nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).logits


def _import(library: str, name: str) -> Any:
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        if error.name == library:
            raise ModelError(
                f"model {name!r} needs {library}: pip install 'distillens[{EXTRAS[library]}]'"
            ) from None
        raise _broken(library, name, error) from None
    # An installation whose parts do not fit each other fails in any way.
    except Exception as error:
        raise _broken(library, name, error) from None


def _broken(library: str, name: str, error: Exception) -> ModelError:
    text = " ".join(str(error).split())[:160]
    return ModelError(
        f"model {name!r}: {library} is installed but cannot be imported: {text}; "
        f"pip install --upgrade 'distillens[{EXTRAS[library]}]'"
    )


def _check_timm_name(timm: Any, name: str) -> None:
    # A model of the hub or a folder ("hf-hub:…", "local-dir:…") is looked up when it is built.
    if ":" in name or timm.is_model(name):
        return
    hint = nearest(name, timm.list_models())
    if len(hint) > 100:
        hint = "; timm.list_models() lists what there is"
    raise RecipeError(f"timm has no model {name!r}{hint}")


def _timm(
    timm: Any, name: str, shape: tuple[int, int, int], outputs: int, arguments: dict[str, Any]
) -> nn.Module:
    return timm.create_model(name, num_classes=outputs, in_chans=shape[0], **arguments)


def _transformers(
    transformers: Any,
    name: str,
    shape: tuple[int, int, int],
    outputs: int,
    arguments: dict[str, Any],
) -> nn.Module:
    changes = dict(arguments)
    pretrained = changes.pop("pretrained", True)
    where = {"revision": changes.pop("revision")} if "revision" in changes else {}
    with _quiet(transformers):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **where)
        _configure(config, f"transformers:{name}", changes, {} if pretrained else _fitting(shape))
        if config.num_labels != outputs:
            config.num_labels = outputs
        family = transformers.AutoModelForImageClassification
        if not pretrained:
            return Classifier(family.from_config(config, trust_remote_code=False).float())
        network, loaded = family.from_pretrained(
            name,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **where,
        )
    _check_loaded(f"transformers:{name}", network, loaded, outputs)
    return Classifier(network.float())


def _fitting(shape: tuple[int, int, int]) -> dict[str, Any]:
    channels, height, width = shape
    return {"num_channels": channels, "image_size": height if height == width else (height, width)}


def _configure(config: Any, name: str, changes: dict[str, Any], fitting: dict[str, Any]) -> None:
    known = config.to_dict()
    for key in changes:
        if key not in known:
            raise RecipeError(f"model {name!r} has no argument {key!r}{nearest(key, known)}")
    for key, value in {**{k: v for k, v in fitting.items() if k in known}, **changes}.items():
        setattr(config, key, value)


def _check_loaded(name: str, network: Any, loaded: dict[str, Any], outputs: int) -> None:
    """Refuse weights that would be drawn at random anywhere but in the last layer."""
    fresh = dict.fromkeys(loaded["missing_keys"])
    fresh |= {key: tuple(stored) for key, stored, _ in loaded["mismatched_keys"]}
    state = network.state_dict()
    for key, stored in sorted(fresh.items()):
        wanted = tuple(state[key].shape) if key in state else ()
        is_head = wanted[:1] == (outputs,) and stored in (None, (*(stored or ())[:1], *wanted[1:]))
        if is_head or key.endswith("num_batches_tracked"):
            continue
        has = f"has it with shape {stored}" if stored else "lacks it"
        raise ModelError(
            f"model {name!r}: the network needs {key!r} with shape {wanted}, the checkpoint {has}; "
            "leave out the arguments that change it, or set pretrained: false"
        )


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Hold every torch.load inside to tensors: versions of timm differ in what they ask for."""
    key = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep reports about new heads and bars off the terminal; what matters is checked after."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
