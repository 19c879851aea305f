"""The Trainer of transformers with batches, networks and tasks as its users have them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, softmax

from distillens.errors import DataError, SupervisionError
from distillens.models import SequenceModel
from distillens.supervision import (
    CotrainedTeacher,
    Distillation,
    FixedTeacher,
    Mixed,
    OneHot,
    OnlineTeacher,
    Supervision,
    TeacherCheckpoint,
)

transformers = pytest.importorskip("transformers")
trainers = importlib.import_module("distillens.integrations.transformers")

VOCABULARY, PAD = 30, 0
LENGTHS = (6, 4, 5, 3)
BERT = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "num_labels": 3,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "num_labels": 3,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": VOCABULARY, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16,
    "max_position_embeddings": 16, "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0,
    "num_labels": 3,
}  # fmt: skip


def network(name: str, sizes: dict[str, Any], seed: int, **more: Any) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, name.split("For")[0].replace("LMHeadModel", "") + "Config")
    made = getattr(transformers, name)(config(**{**sizes, **more}))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return made


def bert(seed: int, **more: Any) -> Any:
    return network("BertForSequenceClassification", BERT, seed, **more)


def gpt2(seed: int, **more: Any) -> Any:
    return network("GPT2ForSequenceClassification", GPT2, seed, **more)


def sentences() -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(3, VOCABULARY, (length,), generator=draw) for length in LENGTHS]


def rows(side: str = "right", pad: int = PAD, **columns: list[Any]) -> list[dict[str, Any]]:
    """One example a sentence, padded by hand; columns (length of its sentence) are padded by 0."""
    made = []
    for place, tokens in enumerate(sentences()):
        gap = [pad] * (max(LENGTHS) - len(tokens))
        none = [0] * len(gap)

        def padded(values: list[Any], filler: list[Any]) -> list[Any]:
            return [*filler, *values] if side == "left" else [*values, *filler]

        row: dict[str, Any] = {
            "input_ids": padded(tokens.tolist(), gap),
            "attention_mask": padded([1] * len(tokens), none),
            "labels": place % 3,
        }
        for name, values in columns.items():
            value = values[place]
            row[name] = padded(value, none) if isinstance(value, list) else value
        made.append(row)
    return made


def trainer(
    folder: Path,
    student: nn.Module,
    supervision: Supervision,
    data: list[dict[str, Any]],
    **more: Any,
) -> Any:
    import datasets

    own = {name: more.pop(name) for name in ("same_tokenizer", "data_collator") if name in more}
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": len(LENGTHS), "max_steps": 1,
        "report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no",
        "learning_rate": 0.0, "logging_strategy": "no", "dataloader_pin_memory": False, **more,
    }  # fmt: skip
    made = datasets.Dataset.from_list(data)
    return trainers.DistillationTrainer(
        model=student,
        args=transformers.TrainingArguments(**settings),
        train_dataset=made,
        eval_dataset=made,
        supervision=supervision,
        **own,
    )


def loss_of(
    folder: Path,
    student: nn.Module,
    supervision: Supervision,
    data: list[dict[str, Any]],
    **more: Any,
) -> float:
    return trainer(folder, student, supervision, data, **more).train().training_loss


@torch.no_grad()
def alone(model: Any, **columns: list[list[int]]) -> list[Tensor]:
    """Logits of each sentence without padding."""
    return [
        model.eval()(
            input_ids=tokens[None],
            **{name: torch.tensor([values[place]]) for name, values in columns.items()},
        ).logits[0]
        for place, tokens in enumerate(sentences())
    ]


def expected_loss(*both: list[Tensor]) -> float:
    """The distillation cross-entropy of teacher and student by its formula, a mean over all rows."""
    temperature = 2.0
    g, f = (
        torch.cat([each.reshape(-1, each.shape[-1]) for each in logits]).double() for logits in both
    )
    each = -(softmax(g / temperature, -1) * log_softmax(f / temperature, -1)).sum(-1)
    return float(temperature**2 * each.mean())


TYPES = [[int(place > 1) for place in range(length)] for length in LENGTHS]
POSITIONS = [list(reversed(range(length))) for length in LENGTHS]


@pytest.mark.parametrize("wrap", [SequenceModel, lambda module: module], ids=["wrapped", "bare"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_teacher_reads_pairs_as_the_student_does(tmp_path: Path, wrap: Any, side: str) -> None:
    teacher, student = bert(1), bert(2)
    supervision = Distillation(FixedTeacher(wrap(teacher)), 2.0)
    data = rows(side, token_type_ids=TYPES, position_ids=POSITIONS)
    given = {"token_type_ids": TYPES, "position_ids": POSITIONS}
    found = loss_of(tmp_path, student, supervision, data)
    assert found == pytest.approx(
        expected_loss(alone(teacher, **given), alone(student, **given)), rel=1e-5
    )
    assert found != pytest.approx(expected_loss(alone(teacher), alone(student, **given)), rel=1e-3)


def test_a_teacher_reads_pairs_that_its_student_cannot(tmp_path: Path) -> None:
    """The Trainer drops columns that the student's forward does not take."""
    teacher = bert(1)
    student = network("DistilBertForSequenceClassification", DISTILBERT, 2)
    supervision = Mixed(OneHot(), Distillation(FixedTeacher(teacher), 2.0), 1.0)
    found = loss_of(tmp_path, student, supervision, rows(token_type_ids=TYPES))
    expected = expected_loss(alone(teacher, token_type_ids=TYPES), alone(student))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_teacher_with_one_token_type_gets_none(tmp_path: Path) -> None:
    teacher = network(
        "RobertaForSequenceClassification", BERT, 1, type_vocab_size=1, pad_token_id=PAD
    )
    student = bert(2)
    found = loss_of(
        tmp_path, student, Distillation(FixedTeacher(teacher), 2.0), rows(token_type_ids=TYPES)
    )
    expected = expected_loss(alone(teacher), alone(student, token_type_ids=TYPES))
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_cotrained_teacher_trains_on_pairs(tmp_path: Path) -> None:
    teacher, twin, student = bert(1), bert(1), bert(2)
    optimizer = torch.optim.SGD(teacher.parameters(), lr=10)
    supervision = Distillation(CotrainedTeacher(teacher, optimizer, OneHot(), lambda step: 10), 2.0)
    found = loss_of(tmp_path, student, supervision, rows(token_type_ids=TYPES))
    logits = torch.stack(
        [
            twin(input_ids=tokens[None], token_type_ids=torch.tensor([types])).logits[0]
            for tokens, types in zip(sentences(), TYPES, strict=True)
        ]
    )
    cross_entropy(logits, torch.arange(4) % 3).backward()
    torch.optim.SGD(twin.parameters(), lr=10).step()
    expected = expected_loss(
        alone(twin, token_type_ids=TYPES), alone(student, token_type_ids=TYPES)
    )
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pads", [(7, 9), (None, None), (PAD, None)])
def test_networks_may_pad_otherwise_than_the_collator(
    tmp_path: Path, pads: tuple[int | None, int | None], side: str
) -> None:
    teacher, student = gpt2(1, pad_token_id=pads[0]), gpt2(2, pad_token_id=pads[1])
    supervision = Distillation(FixedTeacher(teacher), 2.0)
    data, case = rows(side), trainer(tmp_path, student, supervision, rows(side))
    assert case.train().training_loss == pytest.approx(
        expected_loss(alone(teacher), alone(student)), rel=1e-5
    )
    # Evaluation reads the same sentences.
    labels = torch.tensor([row["labels"] for row in data])
    own = cross_entropy(torch.stack(alone(student)), labels)
    assert case.evaluate()["eval_loss"] == pytest.approx(float(own), rel=1e-5)


@pytest.mark.parametrize("side", ["right", "left"])
def test_labels_of_tokens_count_where_they_are_given(tmp_path: Path, side: str) -> None:
    name = "BertForTokenClassification"
    teacher, student = network(name, BERT, 1), network(name, BERT, 2)
    # As for words of several tokens: only the first one has a label.
    labels = [[-100, *range(1, length - 1), -100] for length in LENGTHS]
    labels = [[each if each < 0 else each % 3 for each in row] for row in labels]
    data = rows(side, labels=labels)
    for row in data:
        padding = [mask == 0 for mask in row["attention_mask"]]
        row["labels"] = [
            -100 if gap else each for each, gap in zip(row["labels"], padding, strict=True)
        ]
    counted = [[logits[1:-1] for logits in alone(model)] for model in (teacher, student)]
    supervision = Distillation(FixedTeacher(teacher), 2.0)
    case = trainer(tmp_path, student, supervision, data)
    assert case.train().training_loss == pytest.approx(
        expected_loss(counted[0], counted[1]), rel=1e-5
    )
    # What the Trainer hands to metrics has the places of the batch.
    predicted = torch.tensor(case.predict(case.eval_dataset).predictions)
    for row, logits in zip(range(len(LENGTHS)), alone(student), strict=True):
        real = torch.tensor(data[row]["attention_mask"]).bool()
        torch.testing.assert_close(predicted[row][real], logits)


class Renamed(transformers.GPT2LMHeadModel):
    """A user's own language model: no name that transformers knows."""


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_language_model_of_any_name_predicts_the_next_token(tmp_path: Path, side: str) -> None:
    teacher = network("GPT2LMHeadModel", GPT2, 1)
    student = Renamed(teacher.config)
    labels = [tokens.tolist() for tokens in sentences()]
    data = rows(side, labels=labels)
    for row in data:
        row["labels"] = [
            token if mask else -100
            for token, mask in zip(row["input_ids"], row["attention_mask"], strict=True)
        ]
    found = loss_of(tmp_path, student, Distillation(FixedTeacher(teacher), 2.0), data)
    counted = [[logits[:-1] for logits in alone(model)] for model in (teacher, student)]
    assert found == pytest.approx(expected_loss(counted[0], counted[1]), rel=1e-5)


def test_ignored_examples_do_not_count_in_any_micro_batch(tmp_path: Path) -> None:
    teacher, student = bert(1), bert(2)
    data = rows()
    data[1]["labels"] = -100
    kept = [0, 2, 3]
    pairs = [[alone(model)[place] for place in kept] for model in (teacher, student)]
    for steps in (1, 4):
        found = loss_of(
            tmp_path, student, Distillation(FixedTeacher(teacher), 2.0), data,
            per_device_train_batch_size=4 // steps, gradient_accumulation_steps=steps,
        )  # fmt: skip
        assert found == pytest.approx(expected_loss(pairs[0], pairs[1]), rel=1e-5)


def test_labels_may_have_an_axis_of_their_own(tmp_path: Path) -> None:
    student, data = bert(2), rows()
    expected = loss_of(tmp_path, student, OneHot(), data)
    for row in data:
        row["labels"] = [row["labels"]]
    assert loss_of(tmp_path, student, OneHot(), data) == pytest.approx(expected, rel=1e-6)


def test_pictures_are_distilled_as_sentences_are(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
        "image_size": 4, "patch_size": 2, "num_channels": 1, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0, "num_labels": 3,
    }  # fmt: skip
    teacher, student = (network("ViTForImageClassification", sizes, seed) for seed in (1, 2))
    pictures = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    data = [
        {"pixel_values": picture.tolist(), "labels": i % 3} for i, picture in enumerate(pictures)
    ]

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = teacher

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.network(pixel_values).logits

    found = loss_of(tmp_path, student, Distillation(FixedTeacher(Logits()), 2.0), data)
    with torch.no_grad():
        both = [list(model.eval()(pictures).logits) for model in (teacher, student)]
    assert found == pytest.approx(expected_loss(both[0], both[1]), rel=1e-5)


def test_multiple_choice_is_distilled_whatever_the_lengths_of_the_choices(tmp_path: Path) -> None:
    teacher, student = (network("BertForMultipleChoice", BERT, seed) for seed in (1, 2))
    data = []
    for place, tokens in enumerate(sentences()):
        # The shorter choice comes first in every second example.
        choices = [tokens.tolist(), tokens[:2].tolist()][:: 1 if place % 2 else -1]
        data.append({"choices": choices, "labels": place % 2})

    def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        width = max(len(each) for row in examples for each in row["choices"])
        ids = torch.full((len(examples), 2, width), PAD)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(examples):
            for choice, tokens in enumerate(example["choices"]):
                ids[row, choice, : len(tokens)] = torch.tensor(tokens)
                mask[row, choice, : len(tokens)] = 1
        labels = torch.tensor([example["labels"] for example in examples])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    batch = collate(data)
    labels = batch.pop("labels")
    with torch.no_grad():
        both = [list(model.eval()(**batch).logits) for model in (teacher, student)]
    more = {"data_collator": collate, "remove_unused_columns": False}
    found = loss_of(tmp_path, student, OneHot(), data, **more)
    assert found == pytest.approx(float(cross_entropy(torch.stack(both[1]), labels)), rel=1e-5)
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": len(data)}
    for sizes in ({}, parts):
        distilled = Distillation(FixedTeacher(teacher), 2.0)
        found = loss_of(tmp_path, student, distilled, data, **more, **sizes)
        assert found == pytest.approx(expected_loss(both[0], both[1]), rel=1e-5)


def test_what_is_no_supervision_or_loss_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SupervisionError, match="supervision is wanted, got BertForSequence"):
        trainer(tmp_path, bert(2), bert(1), rows())

    def vector(f: Tensor, g: Tensor, *_: Any) -> Tensor:
        return (f - g).square().sum(-1)

    with pytest.raises(SupervisionError, match="mean over examples; got shape"):
        loss_of(tmp_path, bert(2), Distillation(bert(1), 2.0, vector), rows())
    data = rows(index=[0.5] * len(LENGTHS))
    with pytest.raises(DataError, match="indices of a batch are float32"):
        loss_of(tmp_path, bert(2), OneHot(), data)


def test_what_is_no_classification_is_one_line(tmp_path: Path) -> None:
    for problem in ("regression", "multi_label_classification"):
        with pytest.raises(SupervisionError, match=f"problem_type is '{problem}'"):
            trainer(tmp_path, bert(2, problem_type=problem), OneHot(), rows())
    data = rows()
    for place, row in enumerate(data):
        row["labels"] = 0.5 * place
    with pytest.raises(DataError, match=r"labels are float32 .*regression"):
        loss_of(tmp_path, bert(2, num_labels=1), OneHot(), data)
    with pytest.raises(SupervisionError, match="one output and labels go up to 2"):
        loss_of(tmp_path, bert(2, num_labels=1), OneHot(), rows())
    for row in data:
        row["labels"] = [1.0, 0.0, 1.0]
    with pytest.raises(DataError, match=r"labels are float32 of shape \(4, 3\)"):
        loss_of(tmp_path, bert(2), OneHot(), data)
    del data[0]["labels"], data[1]["labels"], data[2]["labels"], data[3]["labels"]
    with pytest.raises(SupervisionError, match="a supervision needs input_ids and labels"):
        loss_of(tmp_path, bert(2), OneHot(), data)


def test_vocabularies_of_different_sizes_are_refused_unless_said_otherwise(tmp_path: Path) -> None:
    teacher, student = bert(1, vocab_size=VOCABULARY + 2), bert(2)
    supervision = Distillation(FixedTeacher(SequenceModel(teacher)), 2.0)
    with pytest.raises(SupervisionError, match="vocabulary of 32 tokens and the model one of 30"):
        trainer(tmp_path, student, Mixed(OneHot(), supervision, 0.5), rows())
    found = loss_of(tmp_path, student, supervision, rows(), same_tokenizer=True)
    assert found == pytest.approx(expected_loss(alone(teacher), alone(student)), rel=1e-5)
    # A teacher that is loaded later is looked at when it is there.
    later = OnlineTeacher([TeacherCheckpoint(1, lambda: FixedTeacher(teacher))], 1)
    with pytest.raises(SupervisionError, match="vocabulary of 32 tokens and the model one of 30"):
        loss_of(tmp_path, student, Distillation(later), rows())


def test_losses_are_computed_in_float32_under_bfloat16(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Seen(OneHot):
        def loss(self, logits: Tensor, batch: Any, step: int) -> Tensor:
            seen.append(logits.dtype)
            return super().loss(logits, batch, step)

    loss_of(tmp_path, bert(2), Seen(), rows(), bf16=True)
    loss_of(tmp_path, bert(2).bfloat16(), Seen(), rows())
    assert seen == [torch.float32] * 2
