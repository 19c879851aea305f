"""Distil with the Trainer of Hugging Face transformers, under the supervisions of distillens.

Shapes: B examples, T positions, C classes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from distillens.data import PADDING, Batch
from distillens.data.labels import IGNORED, class_labels
from distillens.data.loaders import stable_indices
from distillens.data.outputs import tensor_or_parts
from distillens.errors import CheckpointError, ModelError, SupervisionError
from distillens.forward.sequences import (
    MASK_IS_NOT_ENOUGH,
    SequenceModel,
    filled,
    is_text_model,
    order_of,
    reordered,
    vocabulary_size,
)
from distillens.models import load_safely
from distillens.supervision import OneHot, Supervision, Teacher
from distillens.supervision.protocol import (
    Composite,
    checked_supervision,
    is_across_examples,
    loss_of,
    separate_from,
)
from distillens.training.trajectory import write_state

try:
    from transformers import Trainer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise ModelError(
        f"DistillationTrainer needs transformers ({' '.join(str(error).split())[:120]}): "
        "pip install 'distillens[text]'"
    ) from None

STATE = "supervision.pt"
"""The supervision's state, in each of the Trainer's checkpoints."""


class DistillationTrainer(Trainer):
    """A Trainer whose students fit a supervision; everything else is the Trainer's.

    The loss is the supervision's mean over the global batch of an optimiser step: over all its
    micro-batches and processes, by examples, or by tokens that count. ``advance`` is called once a
    step with the whole batch of this process. The supervision's state is written into each checkpoint
    and loaded when training is resumed. Evaluation measures the loss to the labels.

    A dataset has the columns that its collator makes tensors of: ``input_ids``, ``attention_mask``,
    ``labels`` and, for supervisions that look examples up, ``index``, each example's stable number. A
    model that reads no ``input_ids`` gets its main input instead, for example ``pixel_values``.

    A teacher's module gets the main input, ``input_ids`` with -1 where nothing is attended to, and
    those of the batch's other inputs that its ``forward`` takes, for example ``token_type_ids``, also
    where the student does not take them. A network of transformers can be given as it is. Its logits,
    like the student's, are those of each sentence alone: padding is filled with the network's own
    ``pad_token_id``, and sentences that are padded on the left are moved to the first position. A
    teacher with another tokenizer is given by its logits, as `RecordedTeacher`: they belong to the
    index, whatever the tokens.

    Labels are integers: a class for each example, (B,), or for each position of the logits, (B, T).
    Those equal to -100 do not count. Labels of a causal language model are moved by one here, as
    transformers do. A model with one output is a binary classifier with labels 0 and 1.

    Parameters
    ----------
    supervision
        Supervision that the model fits.
    index_column
        The dataset's column with the stable numbers.
    same_tokenizer
        Accept a teacher whose vocabulary has another size than the model's, because both networks
        read the tokens of one tokenizer; embeddings are often rounded up to different sizes.
    *args, **kwargs
        As of `transformers.Trainer`.

    Raises
    ------
    SupervisionError
        Another loss or label smoothing is asked for as well, several GPUs share one process, the
        supervision's loss may compare the examples of a batch that is computed in parts, the task is
        regression or has several labels an example, or the sizes of the vocabularies differ.
    """

    def __init__(
        self,
        *args: Any,
        supervision: Supervision,
        index_column: str = "index",
        same_tokenizer: bool = False,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("compute_loss_func") is not None:
            raise SupervisionError("a supervision is the loss; leave compute_loss_func out")
        checked_supervision(supervision)
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor:
            raise SupervisionError(
                f"label_smoothing_factor is {self.args.label_smoothing_factor}, which a supervision "
                "would not see; use OneHot(smoothing=...)"
            )
        if self.args.n_gpu > 1:
            raise SupervisionError(
                f"{self.args.n_gpu} GPUs share this process, which splits batches unseen; "
                "launch a process a GPU with accelerate or torchrun"
            )
        parts = self.args.gradient_accumulation_steps * self.args.world_size
        if is_across_examples(supervision) and parts > 1:
            raise SupervisionError(
                f"the loss may compare the examples of a batch, which is computed in {parts} parts "
                "(micro-batches × processes); use one of each, or, if it is a mean over examples, set "
                "across_examples = False on your loss function or supervision"
            )
        # A teacher that shares weights with the model remains what it is now.
        separate_from(supervision, cast(nn.Module, self.model))
        self.supervision = supervision
        self._index_column = index_column
        self._labels = OneHot()
        # Losses are shares of the whole batch's already: the Trainer must not divide them again.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = False
        self._network = _inner(self.accelerator.unwrap_model(self.model))
        _check_task(self._network)
        self._same_tokenizer = same_tokenizer
        self._check_vocabularies()
        self._causal = _predicts_next(self._network)
        self._teacher_columns = _teacher_columns(supervision)
        self._whole: Tensor | None = None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], None]:
        """Collect the micro-batches of a step and let the supervision prepare for it."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, *args, **kwargs)
        if not samples:
            return samples, None
        parts = [self._batch(sample) for sample in samples]
        local = torch.stack([_counting(part) for part in parts]).sum().to(self.args.device)
        summed = cast(Tensor, self.accelerator.reduce(local.clone(), "sum"))
        # The mean over processes of their sums is to be the mean over the global batch.
        self._whole = summed.clamp_min(1) / self.accelerator.num_processes
        batch = _joined(parts, float(local / self._whole))
        self._check_binary(batch)
        self.supervision.advance(batch.to(self.args.device), self.state.global_step)
        # A teacher may have loaded its next checkpoint.
        self._check_vocabularies()
        return samples, None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return this micro-batch's share of the supervision's loss; in evaluation, that of labels."""
        batch = self._batch(inputs)
        outputs = self._outputs(model, inputs)
        logits = _logits_in(outputs)
        if logits.ndim == 2 and batch.labels.shape == (len(logits), 1) and batch.mask is not None:
            batch = replace(batch, labels=batch.labels[:, 0], mask=batch.mask[:, 0])
        logits = self._fitting(logits, batch)
        if not model.training:
            loss = self._labels.loss(logits, batch, self.state.global_step)
        else:
            loss = loss_of(self.supervision, logits, batch, self.state.global_step)
            if self._whole is not None:
                loss = loss * (_counting(batch).to(self._whole) / self._whole)
        return (loss, outputs) if return_outputs else loss

    def _outputs(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        """Run the student so that the logits of a sentence do not depend on its padding."""
        takes = inspect.signature(self._network.forward).parameters
        left_out = {"labels", self._index_column, *self._teacher_columns.difference(takes)}
        given = {name: each for name, each in inputs.items() if name not in left_out}
        tokens, mask = given.get("input_ids"), given.get("attention_mask")
        # Inputs (B, choices, T) of multiple choice go to the model as they are.
        padded = tokens is not None and mask is not None and tokens.ndim == 2
        if not padded or not is_text_model(self._network):
            return model(**given)
        order = None
        if cast(Any, self._network).config.model_type not in MASK_IS_NOT_ENOUGH:
            order = order_of(mask != 0)
            for name, each in given.items():
                if isinstance(each, Tensor) and not name.startswith("decoder_"):
                    given[name] = reordered(each, order)
        marked = given["input_ids"].masked_fill(given["attention_mask"] == 0, PADDING)
        with filled(self._network, marked) as ids:
            outputs = model(**{**given, "input_ids": ids})
        return outputs if order is None else _restored(outputs, order)

    def _fitting(self, logits: Tensor, batch: Batch) -> Tensor:
        logits = logits[:, :-1] if self._causal and batch.labels.ndim == 2 else logits
        if logits.shape[:-1] != batch.labels.shape:
            raise SupervisionError(
                f"the model gives logits of shape {tuple(logits.shape)} for labels of shape "
                f"{tuple(batch.labels.shape)}; each label needs its row of logits"
            )
        return logits.float()

    def _batch(self, inputs: dict[str, Any]) -> Batch:
        reads = str(getattr(self._network, "main_input_name", "input_ids"))
        reads = "input_ids" if "input_ids" in inputs else reads
        if "labels" not in inputs or reads not in inputs:
            raise SupervisionError(
                f"a batch has {sorted(inputs)}; a supervision needs {reads} and labels"
            )
        labels = class_labels(inputs["labels"])
        mask = labels != IGNORED
        main: Tensor = inputs[reads]
        left_out = {reads, "labels", self._index_column}
        if reads == "input_ids" and "attention_mask" in inputs:
            attended = inputs["attention_mask"]
            if attended.shape != main.shape:
                raise SupervisionError(
                    f"attention_mask has shape {tuple(attended.shape)} for input_ids of shape "
                    f"{tuple(main.shape)}; give one number for each token"
                )
            main = main.masked_fill(attended == 0, PADDING)
            left_out.add("attention_mask")
        further = {
            name: each
            for name, each in inputs.items()
            if isinstance(each, Tensor) and name not in left_out
        }
        if labels.ndim == 2 and self._causal:
            # What follows padding on the left is predicted from no token.
            labels, mask = labels[:, 1:], mask[:, 1:] & (main[:, :-1] != PADDING)
            further = {
                name: each[:, :-1] if each.shape[:2] == main.shape else each
                for name, each in further.items()
            }
            main = main[:, :-1]
        index = inputs.get(self._index_column)
        # -1 marks an example without a stable index; code that needs an index refuses it.
        unknown = torch.full((len(labels),), -1)
        indices = unknown if index is None else stable_indices(index, len(labels))
        epoch = int(self.state.epoch or 0)
        return Batch(main, labels, indices, epoch, mask=mask, further=further)

    def _check_vocabularies(self) -> None:
        if self._same_tokenizer or not is_text_model(self._network):
            return
        own = vocabulary_size(self._network)
        for teacher in _modules(self.supervision):
            if is_text_model(teacher) and vocabulary_size(teacher) != own:
                raise SupervisionError(
                    f"the teacher has a vocabulary of {vocabulary_size(teacher)} tokens and the model "
                    f"one of {own}: they seem to have different tokenizers; give the teacher's logits "
                    "as a RecordedTeacher, or same_tokenizer=True if both read the same tokens"
                )

    def _check_binary(self, batch: Batch) -> None:
        if getattr(getattr(self._network, "config", None), "num_labels", None) != 1:
            return
        if batch.labels.ndim == 1 and bool(
            ((batch.labels < 0) | (batch.labels > 1))[batch.mask].any()
        ):
            raise SupervisionError(
                f"the model has one output and labels go up to {int(batch.labels.max())}; one output is "
                "a binary classifier with labels 0 and 1, and regression is not supported"
            )

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # The Trainer drops columns that the model does not take; these are for the supervision.
        if self._signature_columns is not None:
            kept = {self._index_column, *self._teacher_columns}
            self._signature_columns += sorted(kept.difference(self._signature_columns))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            write_state(Path(output_dir) / STATE, self.supervision.state_dict())

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE
        if not path.is_file():
            raise CheckpointError(
                f"{path.parent} holds no {STATE}: it is no {PREFIX_CHECKPOINT_DIR} of a "
                "DistillationTrainer, or was saved with save_only_model; name another"
            )
        try:
            self.supervision.load_state_dict(load_safely(path))
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError):
            raise CheckpointError(
                f"{path} belongs to another supervision; resume with the one it was saved with"
            ) from None


def _inner(model: nn.Module) -> nn.Module:
    """Return the network that an adapter of peft is built around, or the model itself."""
    base = getattr(model, "get_base_model", None)
    return cast(nn.Module, base()) if callable(base) else model


def _check_task(network: nn.Module) -> None:
    problem = getattr(getattr(network, "config", None), "problem_type", None)
    if problem in ("regression", "multi_label_classification"):
        raise SupervisionError(
            f"the model's problem_type is {problem!r}; supervisions are of classification with one "
            "class for each example or token"
        )


def _predicts_next(network: nn.Module) -> bool:
    """Return whether the labels of a position are predicted at the position before it."""
    names = [each.__name__ for each in type(network).__mro__]
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if any(name in known or name.endswith("ForCausalLM") for name in names):
        return True
    decodes = not getattr(getattr(network, "config", None), "is_encoder_decoder", False)
    return decodes and any(name.endswith("ForConditionalGeneration") for name in names)


def _modules(thing: Any) -> Iterator[nn.Module]:
    """Yield the networks that a supervision holds."""
    if isinstance(thing, nn.Module):
        yield thing.network if isinstance(thing, SequenceModel) else thing
    elif isinstance(thing, list | tuple):
        for each in thing:
            yield from _modules(each)
    elif isinstance(thing, Composite | Supervision | Teacher):
        for each in vars(thing).values():
            yield from _modules(each)


def _teacher_columns(supervision: Supervision) -> set[str]:
    """Return the names of inputs that teachers take; those of later checkpoints are not known yet."""
    names = {"token_type_ids"}
    for network in _modules(supervision):
        for name, parameter in inspect.signature(network.forward).parameters.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                names.add(name)
    return names - {"labels"}


def _logits_in(outputs: Any) -> Tensor:
    # transformers put the logits first where no loss was asked for.
    found = tensor_or_parts(outputs, "the model")
    return found if isinstance(found, Tensor) else found[0]


def _restored(outputs: Any, order: Tensor) -> Any:
    """Return outputs whose logits have the positions of the batch again."""
    logits = _logits_in(outputs)
    if logits.ndim != 3 or logits.shape[:2] != order.shape:
        return outputs
    logits = reordered(logits, order.argsort(1))
    if isinstance(outputs, tuple):
        return (logits, *outputs[1:])
    if isinstance(outputs, Tensor):
        return logits
    outputs["logits"] = logits
    return outputs


def _counting(batch: Batch) -> Tensor:
    assert batch.mask is not None
    return batch.mask.sum().float()


def _joined(parts: list[Batch], weight: float) -> Batch:
    """Return micro-batches as one batch, padded to the longest of them."""
    labels = _stacked([part.labels for part in parts], IGNORED)
    masks = [part.mask.long() for part in parts if part.mask is not None]
    known = set.intersection(*(set(part.further or {}) for part in parts))
    further = {
        name: _stacked([part.further[name] for part in parts if part.further], 0) for name in known
    }
    return Batch(
        _stacked([part.inputs for part in parts], PADDING),
        labels,
        torch.cat([part.indices for part in parts]),
        parts[0].epoch,
        weight,
        _stacked(masks, 0).bool(),
        further=further,
    )


def _stacked(parts: list[Tensor], filler: int) -> Tensor:
    # Positions are the second axis, or the third one behind the choices of multiple choice.
    sizes = map(max, zip(*(part.shape[1:] for part in parts), strict=True))
    whole = parts[0].new_full((sum(map(len, parts)), *sizes), filler)
    for part, rows in zip(parts, whole.split([len(part) for part in parts]), strict=True):
        rows[(slice(None), *map(slice, part.shape[1:]))] = part
    return whole
