"""The Trainer of transformers under a supervision: the same step as ours, however it is cut up."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distillens.data import Batch
from distillens.errors import CheckpointError, ModelError, SupervisionError
from distillens.models import SequenceModel
from distillens.supervision import (
    CotrainedTeacher,
    Distillation,
    FixedTeacher,
    Mixed,
    OneHot,
    OnlineTeacher,
    RecordedTeacher,
    Supervision,
    Switched,
    TeacherCheckpoint,
)

transformers = pytest.importorskip("transformers")
trainers = importlib.import_module("distillens.integrations.transformers")

SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 3,
}
COUNT = 11


def classifier(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))


def language_model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=12, n_embd=8, n_layer=1, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def dataset(*, tokens_as_labels: bool = False, index: bool = True) -> Any:
    import datasets

    draw = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"input_ids": [], "attention_mask": [], "labels": [], "note": []}
    for row in range(COUNT):
        length = 3 + row % 5
        ids = draw.integers(3, 20, length).tolist()
        padded = [*ids, *[0] * (8 - length)]
        rows["input_ids"].append(padded)
        rows["attention_mask"].append([1] * length + [0] * (8 - length))
        # The first token is nobody's next one; where it is named, the Trainer counts it too.
        named = [-100, *ids[1:], *[-100] * (8 - length)]
        rows["labels"].append(named if tokens_as_labels else row % 3)
        rows["note"].append("a column that no model takes")
    if index:
        rows["index"] = list(range(500, 500 + COUNT))
    return datasets.Dataset.from_dict(rows)


def trainer(
    folder: Path, model: nn.Module, supervision: Supervision, data: Any = None, **more: Any
) -> Any:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
        **more,
    }
    data = dataset() if data is None else data
    return trainers.DistillationTrainer(
        model=model,
        args=transformers.TrainingArguments(**settings),
        train_dataset=data,
        eval_dataset=data,
        supervision=supervision,
    )


def logits_of(model: nn.Module) -> Tensor:
    data = dataset().with_format("torch")
    with torch.no_grad():
        return model.eval()(
            input_ids=data["input_ids"][:], attention_mask=data["attention_mask"][:]
        ).logits


def recorded(model: nn.Module) -> RecordedTeacher:
    return RecordedTeacher(logits_of(model), torch.arange(500, 500 + COUNT))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=tolerance)


def trained(folder: Path, supervision: Supervision, **more: Any) -> dict[str, Tensor]:
    model = classifier()
    trainer(folder, model, supervision, **more).train()
    return weights(model)


def test_one_hot_is_the_trainers_own_loss(tmp_path: Path) -> None:
    model = classifier()
    settings = trainer(tmp_path, model, OneHot()).args
    plain = transformers.Trainer(model=model, args=settings, train_dataset=dataset())
    plain.train()
    same(weights(model), trained(tmp_path, OneHot()))


@pytest.mark.parametrize("kind", ["fixed", "online", "switched"])
def test_recorded_logits_are_the_module_that_said_them(tmp_path: Path, kind: str) -> None:
    """The index reaches the supervision, though the Trainer drops columns the model lacks."""
    one, two = classifier(1), classifier(2)

    def supervision(of: Any) -> Supervision:
        path = [TeacherCheckpoint(3, lambda: of(one)), TeacherCheckpoint(6, lambda: of(two))]
        if kind == "fixed":
            return Mixed(OneHot(), Distillation(of(one), 2.0), 0.7)
        if kind == "online":
            return Distillation(OnlineTeacher(path, 6))
        return Switched(Distillation(of(one)), Distillation(of(two)), 2)

    by_module = trained(tmp_path, supervision(lambda model: FixedTeacher(SequenceModel(model))))
    same(by_module, trained(tmp_path, supervision(recorded)))
    moved = by_module["classifier.weight"] - trained(tmp_path, OneHot())["classifier.weight"]
    assert moved.abs().max() > 1e-3


def cotrained() -> Distillation:
    module = SequenceModel(classifier(1))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    return Distillation(CotrainedTeacher(module, optimizer, OneHot(), lambda step: 0.1))


@pytest.mark.parametrize("make", [OneHot, lambda: Distillation(recorded(classifier(1))), cotrained])
@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_do_not_change_the_step(tmp_path: Path, make: Any, size: int) -> None:
    # Of 11 examples the last step and the last micro-batch are smaller than the others.
    whole = trained(tmp_path, make(), per_device_train_batch_size=6)
    steps = {
        "per_device_train_batch_size": size, "gradient_accumulation_steps": 6 // size,
    }  # fmt: skip
    same(whole, trained(tmp_path, make(), **steps))


def test_a_language_model_is_distilled_by_tokens(tmp_path: Path) -> None:
    data = dataset(tokens_as_labels=True)

    def run(supervision: Supervision, **more: Any) -> dict[str, Tensor]:
        model = language_model()
        trainer(tmp_path, model, supervision, data, **more).train()
        return weights(model)

    def taught() -> Distillation:
        return Distillation(FixedTeacher(SequenceModel(language_model(1))), 2.0)

    # Sentences of 3 to 7 tokens: a mean of the micro-batches' means would weigh tokens unevenly.
    cut = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    same(run(taught()), run(taught(), **cut))
    plain = language_model()
    settings = trainer(tmp_path, plain, OneHot(), data).args
    transformers.Trainer(model=plain, args=settings, train_dataset=data).train()
    same(weights(plain), run(OneHot()))


class Seen(OneHot):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, list[int]]] = []

    def advance(self, batch: Batch, step: int) -> None:
        self.told.append((step, batch.indices.tolist()))


def test_advance_sees_each_step_whole_and_once(tmp_path: Path) -> None:
    supervision = Seen()
    trained(tmp_path, supervision, gradient_accumulation_steps=2, per_device_train_batch_size=3)
    assert [step for step, _ in supervision.told] == [0, 1, 2, 3]
    assert [len(indices) for _, indices in supervision.told] == [6, 5, 6, 5]
    for epoch in (0, 2):
        met = [index for _, indices in supervision.told[epoch : epoch + 2] for index in indices]
        assert sorted(met) == list(range(500, 500 + COUNT))


def test_evaluation_is_of_labels_and_needs_no_teacher(tmp_path: Path) -> None:
    nothing = RecordedTeacher(torch.zeros(1, 3))
    model = classifier()
    found = trainer(tmp_path, model, Distillation(nothing)).evaluate()
    labels = torch.arange(COUNT) % 3
    expected = nn.functional.cross_entropy(logits_of(model), labels)
    # The Trainer averages evaluation batches of 8 and 3 by their examples.
    assert found["eval_loss"] == pytest.approx(float(expected), rel=1e-4)
    with pytest.raises(SupervisionError, match="no teacher logits for the example"):
        trainer(tmp_path, model, Distillation(nothing)).train()


def test_a_resumed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole = trained(tmp_path / "a", cotrained(), **saving)
    model, supervision = classifier(), cotrained()
    again = trainer(tmp_path / "b", model, supervision, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert again.state.global_step == 6
    same(whole, weights(model), 1e-7)
    # Without the state the teacher would have begun anew.
    state = tmp_path / "a" / "checkpoint-2" / trainers.STATE
    kept = state.read_bytes()
    torch.save({"other": 1}, state)
    with pytest.raises(CheckpointError, match="belongs to another supervision"):
        trainer(tmp_path / "c", classifier(), cotrained()).train(
            resume_from_checkpoint=str(state.parent)
        )
    assert kept != state.read_bytes()
    state.unlink()
    with pytest.raises(CheckpointError, match=r"holds no supervision\.pt"):
        trainer(tmp_path / "c", classifier(), cotrained()).train(
            resume_from_checkpoint=str(state.parent)
        )


def test_what_a_supervision_would_not_see_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SupervisionError, match=r"label_smoothing_factor is 0\.1"):
        trainer(tmp_path, classifier(), OneHot(), label_smoothing_factor=0.1)
    with pytest.raises(SupervisionError, match="leave compute_loss_func out"):
        trainers.DistillationTrainer(
            model=classifier(), supervision=OneHot(), compute_loss_func=lambda: None
        )
    without = dataset(index=False)
    same(trained(tmp_path, OneHot()), trained(tmp_path, OneHot(), data=without))
    with pytest.raises(SupervisionError, match="index -1"):
        trained(tmp_path, Distillation(recorded(classifier(1))), data=without)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "distillens.integrations.transformers"
    monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"needs transformers .*pip install 'distillens\[text\]'"):
        importlib.import_module(name)
