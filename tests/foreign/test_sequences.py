"""Text models of transformers: a sentence has the logits that it has alone, however it is padded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distillens.data import Batch, LoaderBatches
from distillens.errors import DataError, ModelError
from distillens.export.programs import read_torch, write_torch
from distillens.models import ModelRecipe, SequenceModel, build_model
from distillens.supervision import FixedTeacher

transformers = pytest.importorskip("transformers")

VOCABULARY, END = 50, 47
LENGTHS = (10, 7, 4)
ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64,
}  # fmt: skip
DECODER = {**ENCODER, "num_key_value_heads": 2}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
T5 = {
    "vocab_size": VOCABULARY, "d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32, "max_position_embeddings": 64,
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": DECODER,
    "mistral": DECODER,
    "qwen2": DECODER,
    "gpt_neox": {**ENCODER, "rotary_pct": 0.5},
    "opt": {**ENCODER, "ffn_dim": 32, "word_embed_proj_dim": 16},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 1, "n_head": 2},
    "ctrl": {"vocab_size": VOCABULARY, "n_embd": 16, "dff": 32, "n_layer": 1, "n_head": 2},
}
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "distilbert": {"vocab_size": VOCABULARY, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
    "albert": {**ENCODER, "embedding_size": 16},
    "electra": {**ENCODER, "embedding_size": 16},
    "deberta-v2": {**ENCODER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "mpnet": ENCODER,
    "modernbert": ENCODER,
    # An attention mask is not enough for these.
    "fnet": ENCODER,
    "convbert": {**ENCODER, "embedding_size": 16},
    "xlnet": {
        "vocab_size": VOCABULARY, "d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32,
    },
    "funnel": {
        "vocab_size": VOCABULARY, "block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8,
        "d_inner": 32, "num_decoder_layers": 1,
    },
    # These read the last eos, and count those of the whole batch.
    "t5": T5,
    "bart": BART,
}  # fmt: skip
PADS = {"own": 49, "none": None, "eos": END, "within": 5, "outside": -1}
"""Values of pad_token_id; the token 5 occurs in the sentences, also as the last one."""


def classifier(kind: str, pad: int | None, **more: Any) -> Any:
    torch.manual_seed(0)
    sizes = {**DECODERS, **ENCODERS}[kind]
    special = {"pad_token_id": pad, "bos_token_id": 48, "eos_token_id": END}
    config = transformers.AutoConfig.for_model(kind, num_labels=3, **{**sizes, **special, **more})
    network = transformers.AutoModelForSequenceClassification.from_config(config).float().eval()
    with torch.no_grad():
        # Far from the tiny weights of a fresh network, with which all sentences look alike.
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return network


def sentences(*, within: bool = False) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(6, 46, (length,), generator=draw) for length in LENGTHS]
    for row in rows:
        row[-1] = END
    if within:
        rows[0][3] = rows[1][2] = 5
        rows[2][-1] = 5
    return rows


def right(rows: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def left(rows: list[Tensor]) -> Tensor:
    return right([row.flip(0) for row in rows]).flip(1)


@torch.no_grad()
def alone(network: nn.Module, rows: list[Tensor]) -> Tensor:
    return torch.cat([network(input_ids=row[None]).logits for row in rows])


def check_padding(network: nn.Module, rows: list[Tensor]) -> None:
    expected = alone(network, rows)
    # Else the test would not notice that another sentence was read.
    assert (expected[0] - expected[1]).abs().max() > 1e-3 * expected.abs().max()
    close: Any = {"rtol": 0.0, "atol": 1e-5 * max(1.0, float(expected.abs().max()))}
    with torch.no_grad():
        torch.testing.assert_close(SequenceModel(network)(right(rows)), expected, **close)
        torch.testing.assert_close(SequenceModel(network)(left(rows)), expected, **close)
        two = torch.stack([right(rows), torch.zeros_like(right(rows))], 1).flip(1)
        torch.testing.assert_close(SequenceModel(network, 1)(two), expected, **close)


@pytest.mark.parametrize("pad", list(PADS))
@pytest.mark.parametrize("kind", list(DECODERS))
def test_a_classifying_decoder_reads_the_last_token_of_each_sentence(kind: str, pad: str) -> None:
    network = classifier(kind, PADS[pad])
    check_padding(network, sentences(within=pad == "within"))
    assert network.config.pad_token_id == PADS[pad]


@pytest.mark.parametrize("pad", ["own", "within"])
@pytest.mark.parametrize("kind", list(ENCODERS))
def test_padding_does_not_change_what_an_encoder_says(kind: str, pad: str) -> None:
    rows = sentences(within=pad == "within")
    if kind in ("t5", "bart"):
        rows[2][-1] = END
    check_padding(classifier(kind, PADS[pad]), rows)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_reads_the_last_end_of_each_sentence(kind: str) -> None:
    rows = sentences()
    rows[0][4] = END
    check_padding(classifier(kind, 49), rows)
    check_padding(classifier(kind, END), rows)
    rows[1][-1] = 8
    with pytest.raises(ModelError, match=r"token 47 \(eos_token_id\).*row 1 of the batch has none"):
        SequenceModel(classifier(kind, 49))(right(rows))


def test_every_token_of_a_language_model_has_the_logits_of_its_sentence_alone() -> None:
    torch.manual_seed(0)
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval()
    rows = sentences()
    with torch.no_grad():
        for padded, where in ((right(rows), slice(0, 4)), (left(rows), slice(6, 10))):
            found = SequenceModel(network)(padded)[2, where]
            torch.testing.assert_close(found, network(input_ids=rows[2][None]).logits[0])


@pytest.mark.parametrize(("kind", "pad"), [("gpt2", None), ("llama", 49)])
def test_an_exported_decoder_reads_other_lengths_than_it_was_traced_with(
    tmp_path: Path, kind: str, pad: int | None
) -> None:
    model, tokens = SequenceModel(classifier(kind, pad)), right(sentences())
    write_torch(tmp_path / "model.pt2", model, torch.full((2, 10), 7))
    torch.testing.assert_close(read_torch(tmp_path / "model.pt2")(tokens), model(tokens))


def test_a_program_cannot_run_sentences_by_length(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="fnet network is run on sentences of one length at a time"
    ):
        write_torch(
            tmp_path / "a.pt2", SequenceModel(classifier("fnet", 49)), right(sentences())[:2]
        )


def test_further_inputs_reach_the_networks_that_take_them() -> None:
    network, rows = classifier("bert", 49), sentences()
    kinds = [torch.arange(len(row)) % 2 for row in rows]
    with torch.no_grad():
        expected = torch.cat(
            [
                network(input_ids=row[None], token_type_ids=kind[None]).logits
                for row, kind in zip(rows, kinds, strict=True)
            ]
        )
        padded = [side(kinds).clamp_min(0) for side in (right, left)]
        model = SequenceModel(network)
        for tokens, kind in zip((right(rows), left(rows)), padded, strict=True):
            torch.testing.assert_close(model(tokens, token_type_ids=kind), expected)
        # DistilBERT has no types, and RoBERTa one, whose number 1 it could not look up.
        for other in ("distilbert", "roberta"):
            single = SequenceModel(classifier(other, 49, type_vocab_size=1))
            found = single(right(rows), token_type_ids=padded[0], unknown=padded[0])
            torch.testing.assert_close(found, alone(single.network, rows))


def test_tokens_of_another_vocabulary_are_one_line() -> None:
    model = SequenceModel(classifier("gpt2", 49))
    with pytest.raises(ModelError, match=r"token 50 is outside the vocabulary .* has 50 tokens"):
        model(torch.tensor([[3, 50], [4, -1]]))
    with pytest.raises(ModelError, match="GPT2ForSequenceClassification cannot read 33 tokens"):
        model(torch.zeros(2, 33, dtype=torch.int64))


def batch_of(tokens: Tensor, **further: Tensor) -> Batch:
    count = torch.zeros(len(tokens), dtype=torch.int64)
    return Batch(tokens, count, count - 1, further=further or None)


def test_a_bare_network_is_a_teacher_of_marked_tokens_only() -> None:
    network, rows = classifier("gpt2", None), sentences()
    torch.testing.assert_close(
        FixedTeacher(network).logits(batch_of(right(rows))), alone(network, rows)
    )
    padded = right(rows).masked_fill(right(rows) < 0, 49)
    network = classifier("gpt2", 49)
    with pytest.raises(ModelError, match="tokens end in 49, the pad_token_id of the GPT2"):
        FixedTeacher(network).logits(batch_of(padded))
    # Of tokens with an attention mask, as the Trainer has them, it is known.
    mask = {"position_ids": torch.arange(10).expand(3, 10)}
    assert FixedTeacher(network).logits(batch_of(padded, **mask)).shape == (3, 3)


def test_a_loader_of_dictionaries_is_sent_to_the_trainer() -> None:
    loader = [{"input_ids": torch.zeros(2, 3), "labels": torch.zeros(2)}]
    with pytest.raises(
        DataError, match=r"a dict of \['input_ids', 'labels'\].*DistillationTrainer"
    ):
        next(LoaderBatches(loader).epoch(0))


def test_a_batch_takes_its_further_inputs_along() -> None:
    batch = batch_of(right(sentences()), token_type_ids=torch.arange(3)[:, None].expand(3, 10))
    parts = [part.further for part in batch.split(3)]
    assert [int(part["token_type_ids"][0, 0]) for part in parts if part] == [0, 1, 2]
    moved = batch.to(torch.device("meta")).further
    assert moved
    assert moved["token_type_ids"].device.type == "meta"


def test_fresh_networks_of_any_family_fit_the_datas_tokens(tmp_path: Path) -> None:
    def build(kind: str, **arguments: Any) -> nn.Module:
        special = {"pad_token_id": 1, "eos_token_id": 2}
        sizes = {**DECODERS, **ENCODERS}[kind]
        transformers.AutoConfig.for_model(kind, **sizes, **special).save_pretrained(tmp_path)
        recipe = ModelRecipe.model_validate(
            {"name": f"transformers:{tmp_path}", "pretrained": False, **arguments}
        )
        return build_model(recipe, (10,), 3, seed=0, vocabularies=(VOCABULARY,))

    for kind in ("gpt2", "bert", "xlnet"):
        model = build(kind)
        assert isinstance(model, SequenceModel)
        check_padding(model.network.eval(), sentences())
    # RoBERTa numbers positions by its padding token, which the data's tokenizer does not have.
    with pytest.raises(ModelError, match="cannot be run without pad_token_id"):
        build("roberta")
    with pytest.raises(ModelError, match="cannot be run without pad_token_id and eos_token_id"):
        build("bart")
    build("roberta", pad_token_id=1)
    build("bart", pad_token_id=1, eos_token_id=2)


def test_only_models_of_tokens_are_called_as_such() -> None:
    class Pictures(nn.Module):
        main_input_name = "pixel_values"
        config = SimpleNamespace(model_type="vit")

        def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
            assert pixel_mask is not None
            return pixel_values.flatten(1)[:, :3] * pixel_mask[:, :1]

    pictures, mask = torch.ones(2, 3, 4), torch.tensor([[2.0], [3.0]])
    found = FixedTeacher(Pictures()).logits(
        batch_of(pictures, pixel_mask=mask, token_type_ids=mask)
    )
    torch.testing.assert_close(found, mask.expand(2, 3))
