"""Distil with the Trainer of Hugging Face transformers, under the supervisions of distillens.

Shapes: B examples, T positions, C classes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from distillens.atomic import write_atomically
from distillens.data import PADDING, Batch
from distillens.errors import CheckpointError, ModelError, SupervisionError
from distillens.models import load_safely
from distillens.supervision import OneHot, Supervision
from distillens.supervision.protocol import is_across_examples, separate_from

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
IGNORED = -100
"""The label of a position that does not count, as transformers have it."""


class DistillationTrainer(Trainer):
    """A Trainer whose students fit a supervision; everything else is the Trainer's.

    The loss is the supervision's mean over the global batch of an optimiser step: over all its
    micro-batches and processes, by examples, or by tokens that count. ``advance`` is called once a
    step with the whole batch of this process. The supervision's state is written into each checkpoint
    and taken up when training is resumed. Evaluation measures the loss to the labels.

    A dataset has the columns that its collator makes tensors of: ``input_ids``, ``attention_mask``,
    ``labels`` and, for supervisions that look examples up, ``index``, each example's stable number.
    A teacher's module gets ``input_ids`` with -1 where nothing is attended to; wrap one of
    transformers in `distillens.models.SequenceModel`. A teacher with another tokenizer is given by
    its logits, as `RecordedTeacher`: they belong to the index, whatever the tokens.

    Labels (B, T) belong to the positions of the logits; those of a causal language model are moved
    by one here, as transformers do.

    Parameters
    ----------
    supervision
        What the model fits.
    index_column
        The dataset's column with the stable numbers.
    *args, **kwargs
        As of `transformers.Trainer`.

    Raises
    ------
    SupervisionError
        Another loss or label smoothing is asked for as well, several GPUs share one process, or the
        supervision's loss may compare the examples of a batch that is computed in parts.
    """

    def __init__(
        self, *args: Any, supervision: Supervision, index_column: str = "index", **kwargs: Any
    ) -> None:
        if kwargs.get("compute_loss_func") is not None:
            raise SupervisionError("a supervision is the loss; leave compute_loss_func out")
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
        name = type(self.accelerator.unwrap_model(self.model)).__name__
        self._causal = name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        self._whole = 0.0

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, *args: Any, **kwargs: Any
    ) -> tuple[list[Any], None]:
        """Collect the micro-batches of a step and let the supervision prepare for it."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, *args, **kwargs)
        if not samples:
            return samples, None
        parts = [self._batch(sample) for sample in samples]
        counts = [_counting(part) for part in parts]
        local = torch.tensor(float(sum(counts)), device=self.args.device)
        summed = self.accelerator.reduce(local, "sum")
        assert isinstance(summed, Tensor)
        # The mean over processes of their sums is to be the mean over the global batch.
        self._whole = max(1.0, float(summed)) / self.accelerator.num_processes
        batch = _joined(parts, sum(counts) / self._whole)
        self.supervision.advance(batch.to(self.args.device), self.state.global_step)
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
        left_out = {"labels", self._index_column}
        outputs = model(**{name: each for name, each in inputs.items() if name not in left_out})
        logits = self._logits(outputs, batch)
        if model.training:
            loss = self.supervision.loss(logits, batch, self.state.global_step)
            loss = loss * (_counting(batch) / self._whole)
        else:
            loss = self._labels.loss(logits, batch, self.state.global_step)
        return (loss, outputs) if return_outputs else loss

    def _logits(self, outputs: Any, batch: Batch) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
        logits = logits[:, :-1] if self._shifts(batch.labels) else logits
        if logits.shape[:-1] != batch.labels.shape:
            raise SupervisionError(
                f"the model gives logits of shape {tuple(logits.shape)} for labels of shape "
                f"{tuple(batch.labels.shape)}; each label needs its row of logits"
            )
        return logits.float()

    def _shifts(self, labels: Tensor) -> bool:
        return self._causal and labels.ndim == 2

    def _batch(self, inputs: dict[str, Any]) -> Batch:
        if "labels" not in inputs or "input_ids" not in inputs:
            raise SupervisionError(
                f"a batch has {sorted(inputs)}; a supervision needs input_ids and labels"
            )
        tokens: Tensor = inputs["input_ids"]
        if "attention_mask" in inputs:
            tokens = tokens.masked_fill(inputs["attention_mask"] == 0, PADDING)
        labels: Tensor = inputs["labels"]
        if self._shifts(labels):
            tokens, labels = tokens[:, :-1], labels[:, 1:]
        index = inputs.get(self._index_column)
        # -1 marks an example without a stable index; whoever needs one refuses it.
        indices = torch.full((len(labels),), -1) if index is None else index.cpu()
        mask = labels != IGNORED if labels.ndim == 2 else None
        return Batch(tokens, labels, indices, int(self.state.epoch or 0), mask=mask)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        # The Trainer drops columns that the model does not take; this one is not for the model.
        if (
            self._signature_columns is not None
            and self._index_column not in self._signature_columns
        ):
            self._signature_columns.append(self._index_column)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            buffer = io.BytesIO()
            torch.save(self.supervision.state_dict(), buffer)
            write_atomically(Path(output_dir) / STATE, buffer.getvalue())

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


def _counting(batch: Batch) -> int:
    return len(batch) if batch.mask is None else int(batch.mask.sum())


def _joined(parts: list[Batch], weight: float) -> Batch:
    """Return micro-batches as one batch, padded to the longest of them."""
    tokens = _stacked([part.inputs for part in parts], PADDING)
    labels = _stacked([part.labels for part in parts], IGNORED)
    return Batch(
        tokens,
        labels,
        torch.cat([part.indices for part in parts]),
        parts[0].epoch,
        weight,
        labels != IGNORED if labels.ndim == 2 else None,
    )


def _stacked(parts: list[Tensor], filler: int) -> Tensor:
    if parts[0].ndim == 1:
        return torch.cat(parts)
    width = max(part.shape[1] for part in parts)
    return torch.cat(
        [nn.functional.pad(part, (0, width - part.shape[1]), value=filler) for part in parts]
    )
