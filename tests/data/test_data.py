"""Data: what is read is what was stored, and everything random is a function of its seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cases import pictures, write_idx

from distillens.data import (
    Augmentation,
    Batches,
    DataRecipe,
    LoaderBatches,
    Normalisation,
    examples_from_arrays,
    load_splits,
)
from distillens.data.augment import augment, random_bits
from distillens.data.prepare import add_label_noise, regroup, stratified
from distillens.errors import DataError


def test_idx_reads_gzipped_and_plain_files(tmp_path: Path) -> None:
    images, labels = pictures()[:, 0], np.arange(20, dtype=np.uint8) % 4
    write_idx(tmp_path, images, labels)
    splits = load_splits(DataRecipe(source="idx", path=str(tmp_path)))
    assert np.array_equal(splits.train.inputs[:, 0].numpy(), images)
    assert splits.train.labels.tolist() == labels.tolist()
    assert splits.train.indices.tolist() == list(range(20))


def test_real_fashion_mnist_has_its_known_shape(shared_data: Path) -> None:
    path = str(shared_data / "fashion-mnist")
    splits = load_splits(DataRecipe(source="idx", path=path, validation_size=1000))
    assert splits.train.inputs.shape == (59000, 1, 28, 28)
    assert len(splits.test) == 10000
    assert splits.validation is not None
    assert splits.validation.labels.bincount().tolist() == [100] * 10
    together = torch.cat([splits.train.indices, splits.validation.indices]).sort().values
    assert torch.equal(together, torch.arange(60000))


def test_real_cifar_parquet_has_its_known_shape_and_names(
    shared_data: Path, tmp_path: Path
) -> None:
    # The test file under the training name too: reading 10,000 pictures is enough.
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").symlink_to(shared_data / "cifar100" / "test.parquet")
    (tmp_path / "labels.txt").symlink_to(shared_data / "cifar100" / "labels.txt")
    splits = load_splits(DataRecipe(source="huggingface", path=str(tmp_path), train_size=500))
    assert splits.test.inputs.shape == (10000, 3, 32, 32)
    assert splits.test.classes[0] == "apple"
    assert splits.test.classes[99] == "worm"
    assert splits.train.labels.bincount().tolist() == [5] * 100


def test_npz_round_trip_keeps_floats_and_names(tmp_path: Path) -> None:
    inputs = np.linspace(0, 1, 24, dtype=np.float32).reshape(8, 3)
    np.savez(
        tmp_path / "a.npz",
        x_train=inputs,
        y_train=np.arange(8)[:, None] % 2,
        x_test=inputs[:4],
        y_test=np.arange(4) % 2,
        classes=np.array(["cat", "dog"]),
    )
    splits = load_splits(DataRecipe(source="npz", path=str(tmp_path / "a.npz")))
    assert splits.train.classes == ("cat", "dog")
    torch.testing.assert_close(splits.train.inputs, torch.from_numpy(inputs))


def test_subsets_keep_indices_and_class_shares() -> None:
    recipe = DataRecipe(test_size=597, train_size=600, validation_size=100)
    splits = load_splits(recipe)
    assert splits.validation is not None
    used = [part.indices for part in (splits.train, splits.validation, splits.test)]
    joined = torch.cat(used)
    assert len(joined) == len(joined.unique()) == 597 + 600 + 100
    whole = load_splits(DataRecipe(test_size=597)).train
    for index, picture in zip(splits.train.indices[:5], splits.train.inputs[:5], strict=True):
        position = int((whole.indices == index).nonzero())
        assert torch.equal(whole.inputs[position], picture)


@pytest.mark.parametrize("size", [7, 30, 99])
def test_stratified_is_within_one_example_of_proportion(size: int) -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    chosen = stratified(labels, size, seed=3)
    counts = np.bincount(labels[chosen], minlength=3)
    assert counts.sum() == size
    assert np.all(np.abs(counts - size * np.array([0.6, 0.3, 0.1])) <= 1)


def test_label_noise_changes_just_its_share_and_says_which() -> None:
    examples = examples_from_arrays(pictures(200), np.arange(200) % 4)
    noisy, changes = add_label_noise(examples, 0.25, seed=1)
    wrong = (noisy.labels != examples.labels).nonzero()[:, 0]
    assert [change.index for change in changes] == wrong.tolist()
    assert len(changes) == 50
    assert all(c.before == int(examples.labels[c.index]) != c.after for c in changes)
    assert all(c.after == int(noisy.labels[c.index]) for c in changes)


def test_regroup_joins_classes_and_drops_the_rest() -> None:
    examples = examples_from_arrays(pictures(12), np.arange(12) % 4, ["a", "b", "c", "d"])
    joined = regroup(examples, [[3, 0], [1]])
    assert joined.classes == ("d+a", "b")
    assert joined.labels.tolist() == [0, 1, 0] * 3
    assert joined.indices.tolist() == [0, 1, 3, 4, 5, 7, 8, 9, 11]


def test_augmentation_depends_on_seed_epoch_and_index_alone() -> None:
    images = torch.from_numpy(pictures(16))
    how = Augmentation(crop=2, flip=True, seed=5)
    index = np.arange(16)
    whole = augment(images, index, 3, how)
    shuffled = np.random.default_rng(0).permutation(16)
    one_by_one = torch.cat([augment(images[i : i + 1], index[i : i + 1], 3, how) for i in shuffled])
    assert torch.equal(one_by_one, whole[shuffled])
    assert not torch.equal(augment(images, index, 4, how), whole)
    assert not torch.equal(augment(images, index, 3, Augmentation(crop=2, flip=True)), whole)


def test_every_crop_is_a_window_of_the_padded_picture_and_all_occur() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    windows = {
        tuple(padded[0, 0, y : y + 3, x : x + 3].flatten().tolist())
        for y in range(3)
        for x in range(3)
    }
    many = augment(image.expand(400, 1, 3, 3), np.arange(400), 0, Augmentation(crop=1))
    assert {tuple(row) for row in many.flatten(1).tolist()} == windows


def test_random_integers_are_uniform_and_streams_differ() -> None:
    draws = (random_bits(0, 0, torch.arange(90_000), 1)[0] % 9).numpy()
    counts = np.bincount(draws, minlength=9)
    # Chi-squared with 8 degrees of freedom exceeds 26 once in a thousand.
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 26
    other = (random_bits(0, 0, torch.arange(90_000), 2)[1] % 9).numpy()
    assert abs(float((draws == other).mean()) - 1 / 9) < 0.005


def test_every_epoch_visits_each_example_once_in_another_order() -> None:
    examples = examples_from_arrays(pictures(20), np.arange(20) % 4)
    batches = Batches(examples, 6, seed=1)
    orders = [torch.cat([b.indices for b in batches.epoch(e)]).tolist() for e in (0, 1, 0)]
    assert sorted(orders[0]) == list(range(20))
    assert orders[0] == orders[2] != orders[1]
    assert len(batches) == 4


def test_processes_share_each_global_batch_and_their_weights_restore_its_mean() -> None:
    examples = examples_from_arrays(pictures(20), np.arange(20) % 4)
    whole = list(Batches(examples, 6, seed=1).epoch(0))
    parts = [list(Batches(examples, 6, seed=1, rank=r, processes=4).epoch(0)) for r in range(4)]
    for step, batch in enumerate(whole):
        mine = [part[step] for part in parts]
        counted = torch.cat([b.indices for b in mine if b.weight > 0])
        assert sorted(counted.tolist()) == sorted(batch.indices.tolist())
        values = [float(b.labels.double().mean()) * b.weight for b in mine]
        assert np.mean(values) == pytest.approx(float(batch.labels.double().mean()))


def test_micro_batches_weigh_up_to_the_batch() -> None:
    examples = examples_from_arrays(pictures(10), np.arange(10) % 4)
    batch = next(Batches(examples, 10).epoch(0))
    parts = list(batch.split(3))
    assert [len(part) for part in parts] == [4, 4, 2]
    mean = sum(float(part.labels.double().mean()) * part.weight for part in parts)
    assert mean == pytest.approx(float(batch.labels.double().mean()))


def test_normalisation_gives_mean_0_and_deviation_1_for_bytes_and_floats() -> None:
    for inputs in (pictures(50, channels=3), pictures(50, channels=3).astype(np.float32)):
        examples = examples_from_arrays(inputs, np.arange(50) % 2)
        batch = next(Batches(examples, 50, normalisation=Normalisation.of(examples)).epoch(0))
        torch.testing.assert_close(batch.inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        deviation = batch.inputs.std((0, 2, 3), correction=0)
        torch.testing.assert_close(deviation, torch.ones(3), atol=1e-4, rtol=0)


def test_a_users_loader_is_taken_as_it_is() -> None:
    data = torch.utils.data.TensorDataset(torch.randn(10, 3), torch.arange(10) % 2)
    batches = LoaderBatches(torch.utils.data.DataLoader(data, batch_size=4))
    sizes = [len(batch) for batch in batches.epoch(2)]
    assert sizes == [4, 4, 2]
    assert len(batches) == 3


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.full((3, 4), np.nan, np.float32), [0, 1, 0], "example 0 holds a NaN"),
        (np.zeros((3, 4), np.float32), [0, 1, -1], "label -1 of example 2 is out of range"),
        (np.zeros((3, 4), np.float32), [0, 1], "3 inputs but 2 labels"),
        (np.zeros((3, 4), np.int64), [0, 1, 0], "must be uint8 or floating point"),
        (np.zeros((0, 4), np.float32), np.zeros(0, int), "no examples"),
        (np.zeros((3, 4), np.float32), [0.5, 1, 0], "one integer an example"),
    ],
)
def test_bad_arrays_are_refused(inputs: np.ndarray, labels: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        examples_from_arrays(inputs, np.asarray(labels))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    images, labels = pictures()[:, 0], np.arange(20, dtype=np.uint8) % 4
    with pytest.raises(DataError, match="no folder"):
        load_splits(DataRecipe(source="idx", path=str(tmp_path / "none")))
    with pytest.raises(DataError, match="holds neither"):
        load_splits(DataRecipe(source="idx", path=str(tmp_path)))
    write_idx(tmp_path, images, labels)
    file = tmp_path / "train-labels-idx1-ubyte"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DataError, match="promises 20 bytes"):
        load_splits(DataRecipe(source="idx", path=str(tmp_path)))
    zipped = tmp_path / "train-images-idx3-ubyte.gz"
    zipped.write_bytes(zipped.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged or truncated"):
        load_splits(DataRecipe(source="idx", path=str(tmp_path)))
    broken = tmp_path / "a.npz"
    broken.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(DataError, match="no readable npz"):
        load_splits(DataRecipe(source="npz", path=str(broken)))
    np.savez(broken, train_inputs=np.array([{}], dtype=object), train_labels=np.zeros(1, int))
    with pytest.raises(DataError, match="no readable npz"):
        load_splits(DataRecipe(source="npz", path=str(broken)))
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot load"):
        load_splits(DataRecipe(source="huggingface", path=str(tmp_path)))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1], [1]], "class 1 twice"),
        ([[0], [12]], "names class 12"),
        ([[0], []], "empty group"),
    ],
)
def test_bad_groups_are_refused(groups: list[list[int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_splits(DataRecipe(test_size=100, groups=groups))
