"""Models of other libraries: ``timm:NAME`` and ``transformers:NAME_OR_FOLDER``.

Both are optional and imported when a recipe first names one. Neither runs code that comes with the
weights, so they need no ``--trust-code``: Hugging Face weights are read from safetensors alone, and
whatever timm unpickles is held to tensors.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distillens.errors import ModelError, RecipeError, nearest, one_line
from distillens.forward.sequences import SequenceModel as SequenceModel
from distillens.models.architectures.feedforward import image_shape
from distillens.models.architectures.transformer import text_shape
from distillens.models.registry import EXTRAS, is_external

FROM_DATA = {
    "timm": ("num_classes", "in_chans"),
    "transformers": ("num_labels", "id2label", "label2id"),
}
UNSUPPORTED = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "trust_remote_code")


def external_builder(name: str) -> Callable[..., nn.Module]:
    """Return the builder of ``timm:NAME`` or ``transformers:NAME_OR_FOLDER``.

    ``timm:NAME`` takes the arguments of ``timm.create_model``; weights are fresh unless
    ``pretrained: true``. ``transformers:NAME_OR_FOLDER`` takes ``pretrained`` (by default
    true), ``revision`` and any key of the model's own configuration; with ``pretrained: false``
    a folder with a ``config.json`` is enough, and the channels and side of the pictures are filled
    in where the configuration has such keys. On text it is a classifier of sequences, which sees the
    tokens of the data's tokenizer number ``tokenizer`` (0 by default), and a fresh one
    gets that tokenizer's vocabulary. The number of classes always comes from the data.

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
    # A model of the hub or a folder ("hf-hub:…", "local-dir:…") is looked up when it is built.
    if library == "timm" and ":" not in inner and not module.is_model(inner):
        hint = nearest(inner, module.list_models())
        if len(hint) > 100:
            hint = "; timm.list_models() lists what there is"
        raise RecipeError(f"timm has no model {inner!r}{hint}")

    def build(
        input_shape: tuple[int, ...],
        outputs: int,
        vocabularies: tuple[int, ...] = (),
        normalisation: object = None,
        **arguments: Any,
    ) -> nn.Module:
        del normalisation  # Inputs are normalised by `pretrained_normalisation`.
        for key in arguments:
            if key in FROM_DATA[library]:
                raise RecipeError(f"model {name!r}: {key} is set from the data; leave it out")
            if key in UNSUPPORTED:
                raise RecipeError(
                    f"model {name!r} takes no {key}; weights of your own go into teacher.checkpoint"
                )
        with _tensors_only():
            if library == "timm":
                channels, _, _ = image_shape(name, input_shape)
                return module.create_model(
                    inner, num_classes=outputs, in_chans=channels, **arguments
                )
            with _quiet(module):
                return _transformers(module, name, input_shape, outputs, vocabularies, arguments)

    return build


def pretrained_normalisation(
    name: str, arguments: Mapping[str, Any], build: Callable[[], nn.Module]
) -> tuple[tuple[float, ...], tuple[float, ...], str] | None:
    """Return the normalisation of images in [0, 1] in a pretrained model's own library.

    Parameters
    ----------
    name, arguments
        Name of the model, as in a recipe.
    build
        Builds it; called for models of timm, which carry their ``pretrained_cfg``. Models of Hugging
        Face have a ``preprocessor_config.json`` in the folder of their weights.

    Returns
    -------
    Mean and standard deviation of each channel, and the name of the file or attribute that has them;
    None for weights that are not pretrained and for models without such numbers.

    Raises
    ------
    ModelError
        The model cannot be built, or its ``preprocessor_config.json`` is damaged.
    """
    library, _, inner = name.partition(":")
    if not is_external(name) or not arguments.get("pretrained", library == "transformers"):
        return None
    if library == "timm":
        found = getattr(build(), "pretrained_cfg", None) or {}
        mean, std = found.get("mean"), found.get("std")
        where = f"pretrained_cfg of {name}"
    else:
        mean, std = _preprocessing(_import(library, name), name, inner, arguments.get("revision"))
        where = f"preprocessor_config.json of {name}"
    if mean is None or std is None:
        return None
    numbers = np.atleast_1d(mean), np.atleast_1d(std)
    if numbers[0].shape != numbers[1].shape or not (numbers[1] > 0).all():
        raise ModelError(f"{where} has the mean {mean} and the deviation {std}; set normalisation")
    return tuple(numbers[0].tolist()), tuple(numbers[1].tolist()), where


def _preprocessing(
    transformers: Any, name: str, inner: str, revision: str | None
) -> tuple[Any, Any]:
    """Return the mean and the deviation, in units of [0, 1], of an image processor's configuration."""
    where = {} if revision is None else {"revision": revision}
    try:
        with _quiet(transformers):
            read = transformers.ImageProcessingMixin.get_image_processor_dict
            config, _ = read(inner, **where)
    except OSError as error:
        if "valid JSON" in str(error):
            raise ModelError(f"model {name!r}: {one_line(error)[:240]}") from None
        # Most models of text, and some of images, have none.
        return None, None
    mean, std = config.get("image_mean"), config.get("image_std")
    if not config.get("do_normalize", True):
        mean, std = [0.0], [1.0]
    if mean is None or std is None:
        return None, None
    # Processors rescale bytes first: byte * factor - offset is what they normalise.
    rescaled = config.get("do_rescale", True)
    unit = 255 * (config.get("rescale_factor", 1 / 255) if rescaled else 1.0)
    offset = 1.0 if rescaled and config.get("rescale_offset", False) else 0.0
    return (np.atleast_1d(mean) + offset) / unit, np.atleast_1d(std) / unit


class Classifier(nn.Module):
    """A Hugging Face image classifier that returns its logits, (N, classes), and nothing else."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).logits


def _import(library: str, name: str) -> Any:
    package = f"'distillens[{EXTRAS[library]}]'"
    try:
        return importlib.import_module(library)
    # An installation whose parts do not fit each other fails in any way.
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == library:
            raise ModelError(f"model {name!r} needs {library}: pip install {package}") from None
        raise ModelError(
            f"model {name!r}: {library} is installed but cannot be imported: {one_line(error)[:160]}; "
            f"pip install --upgrade {package}"
        ) from None


def _transformers(
    transformers: Any,
    name: str,
    input_shape: tuple[int, ...],
    outputs: int,
    vocabularies: tuple[int, ...],
    changes: dict[str, Any],
) -> nn.Module:
    """Build a classifier of transformers; on text one of sequences, otherwise one of images."""
    inner = name.partition(":")[2]
    pretrained = changes.pop("pretrained", True)
    where = {"revision": changes.pop("revision")} if "revision" in changes else {}
    config = transformers.AutoConfig.from_pretrained(inner, trust_remote_code=False, **where)
    tokenizer = changes.pop("tokenizer", 0) if vocabularies else 0
    if not isinstance(tokenizer, int):
        raise RecipeError(f"model {name!r}: tokenizer must be a number, got {tokenizer!r}")
    if vocabularies:
        length, vocabulary = text_shape(name, input_shape, vocabularies, tokenizer)
        # Special tokens have other numbers here, and padding is never looked up.
        none = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
        fitting = {"vocab_size": vocabulary, **none}
        limits = {
            "tokens": ("vocab_size", vocabulary),
            "positions": ("max_position_embeddings", length),
        }
        family = transformers.AutoModelForSequenceClassification
    else:
        channels, height, width = image_shape(name, input_shape)
        side = height if height == width else (height, width)
        fitting, limits = {"num_channels": channels, "image_size": side}, {}
        family = transformers.AutoModelForImageClassification
    _configure(config, name, changes, {} if pretrained else fitting)
    for what, (key, wanted) in limits.items():
        has = getattr(config, key, None)
        # Some configurations without a limit have -1.
        if has is not None and 0 <= has < wanted:
            raise ModelError(
                f"model {name!r} knows {has} {what}, the data's tokenizer {tokenizer} makes {wanted}; "
                "name the model's own tokenizer, or a shorter length"
            )
    if config.num_labels != outputs:
        config.num_labels = outputs
    if pretrained:
        network, loaded = family.from_pretrained(
            inner,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **where,
        )
        _check_loaded(name, network, loaded, outputs)
    else:
        network = family.from_config(config, trust_remote_code=False)
    network = network.float()
    if not vocabularies:
        return Classifier(network)
    if not pretrained:
        _check_special_tokens(name, network)
    return SequenceModel(network, tokenizer)


def _check_special_tokens(name: str, network: Any) -> None:
    """Refuse a fresh network that needs special tokens which the data's tokenizer does not name."""
    needed = ["pad_token_id"]
    if network.config.is_encoder_decoder:
        needed += ["eos_token_id", "decoder_start_token_id"]
    missing = [key for key in needed if getattr(network.config, key, None) is None]
    end = network.config.eos_token_id if network.config.is_encoder_decoder else None
    try:
        with torch.no_grad():
            network(input_ids=torch.tensor([[0, end if isinstance(end, int) else 0]]))
    # Whatever comes of computing with None.
    except (TypeError, ValueError, AttributeError) as error:
        if not missing:
            raise
        raise ModelError(
            f"model {name!r} cannot be run without {' and '.join(missing)} ({one_line(error)[:100]}); "
            "give the number of a token of the data's tokenizer as an argument of the model"
        ) from None


def _configure(config: Any, name: str, changes: dict[str, Any], fitting: dict[str, Any]) -> None:
    known = config.to_dict()
    for key in changes:
        if key not in known:
            raise RecipeError(f"model {name!r} has no argument {key!r}{nearest(key, known)}")
    for key, value in {**{k: v for k, v in fitting.items() if k in known}, **changes}.items():
        setattr(config, key, value)


def _check_loaded(name: str, network: Any, loaded: dict[str, Any], outputs: int) -> None:
    """Refuse weights that would be initialised at random outside the last layer."""
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
        del os.environ[key]
        if before is not None:
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
