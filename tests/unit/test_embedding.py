"""Embedding a store and evaluating a model on it, with backbones whose answer is known."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from attfc.data.index import IdentityIndex
from attfc.data.stores.store import Images
from attfc.errors import UserError
from attfc.evaluation.embed import embed_store
from attfc.evaluation.protocols.held_out import evaluate_store
from attfc.evaluation.protocols.pair_lists import Pairs, generate_pairs
from attfc.evaluation.results import figures_with_intervals


class PaintedStore:
    """Identity y is an image whose left half has its own colour; images of it differ by a little noise."""

    name = "painted"

    def __init__(self, identities: int = 8, images: int = 4, broken: tuple[int, ...] = ()) -> None:
        rng = np.random.default_rng(0)
        self.labels_N = np.repeat(np.arange(identities), images)
        colours = rng.integers(0, 256, (identities, 3))
        pixels = np.full((len(self.labels_N), 8, 8, 3), 128.0)
        pixels[:, :, :4] = colours[self.labels_N][:, None, None]
        self.pixels = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        self.identities = IdentityIndex.from_labels(self.labels_N)
        self.broken = set(broken)
        self.read_positions: list[int] = []

    def __len__(self) -> int:
        return len(self.labels_N)

    def labels(self, positions):
        return self.labels_N[np.asarray(positions)]

    def where(self, position: int) -> str:
        return f"painted/{position}.png"

    def identity_name(self, label: int) -> str:
        return f"person {label}"

    def images(self, positions, size: int, out=None) -> Images:
        assert size == 8
        asked = np.asarray(positions).tolist()
        self.read_positions += asked
        pixels = self.pixels[asked].copy()
        bad = {row: "cut short" for row, position in enumerate(asked) if position in self.broken}
        pixels[list(bad)] = 0
        return Images(pixels, bad)


class Flat(nn.Module):
    """The pixels themselves through a fixed matrix, with modules whose mode shows."""

    image_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8 * 8 * 3, 12, bias=False)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm2d(3)
        self.frozen.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        return self.linear(self.dropout(self.frozen(images)).flatten(1))


def expected(model: Flat, store: PaintedStore, flip: bool) -> np.ndarray:
    """One image at a time, straight from the definition."""
    rows = []
    for pixels in store.pixels:
        image = torch.from_numpy((pixels.astype(np.float32) - 127.5) / 127.5).permute(2, 0, 1)
        image = image / (1 + model.frozen.eps) ** 0.5
        row = model.linear(image.flatten())
        if flip:
            row = row + model.linear(image.flip(2).flatten())
        rows.append((row / row.norm()).detach().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("flip", [True, False])
def test_image_and_mirror_are_summed_then_normalized(flip) -> None:
    model, store = Flat(), PaintedStore()
    found = embed_store(model, store, batch_size=5, flip=flip)
    np.testing.assert_allclose(found.vectors, expected(model, store, flip), atol=1e-5)
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    assert found.valid.all()
    assert not found.broken
    assert (found.norms > 0).all()


def test_positions_choose_and_order_the_rows() -> None:
    model, store = Flat(), PaintedStore()
    everything = embed_store(model, store)
    some = embed_store(model, store, [7, 3, 30], batch_size=2)
    np.testing.assert_allclose(some.vectors, everything.vectors[[7, 3, 30]], atol=1e-6)
    assert some.positions.tolist() == [7, 3, 30]


def test_mode_of_every_module_and_random_state_are_left_as_they_were() -> None:
    model, store = Flat(), PaintedStore()
    model.train()
    model.frozen.eval()
    state = torch.get_rng_state()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    embed_store(model, store)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    with pytest.raises(AssertionError):
        embed_store(model, store, image_size=9)
    assert (model.training, model.frozen.training) == (True, False)


def test_workers_give_the_same_rows() -> None:
    model, store = Flat(), PaintedStore(broken=(6,))
    here, there = embed_store(model, store, batch_size=5), embed_store(model, store, batch_size=5, workers=2)
    np.testing.assert_array_equal(here.vectors, there.vectors)
    assert here.broken == there.broken == {6: "cut short"}


def test_broken_images_have_zero_rows_and_are_named() -> None:
    found = embed_store(Flat(), PaintedStore(broken=(0, 13)), [13, 5, 0])
    assert found.broken == {0: "cut short", 2: "cut short"}
    assert found.valid.tolist() == [False, True, False]
    assert not found.vectors[[0, 2]].any()
    assert found.norms[[0, 2]].tolist() == [0, 0]


def test_autocast_keeps_float32_rows() -> None:
    model, store = Flat(), PaintedStore()
    found = embed_store(model, store, autocast_dtype=torch.bfloat16)
    exact = embed_store(model, store)
    assert found.vectors.dtype == np.float32
    assert 0 < np.abs(found.vectors - exact.vectors).max() < 0.05


def test_models_that_give_nonsense_are_refused() -> None:
    class Broken(Flat):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            rows = super().forward(images)
            rows[2] = self.value
            return rows

    model = Broken()
    for value, what in ((torch.nan, "NaN or infinity"), (torch.inf, "NaN or infinity"), (0.0, "length 0")):
        model.value = value
        with pytest.raises(UserError, match=rf"painted: the embedding of painted/2.png has {what} \(1 of 32 images\)"):
            embed_store(model, PaintedStore())
    embed_store(model, PaintedStore(broken=(2,)))  # what a model makes of a broken image is nobody's business
    with pytest.raises(UserError, match="Linear has no image_size attribute: set it to the side"):
        embed_store(nn.Linear(1, 1), PaintedStore())
    with pytest.raises(UserError, match="no images to embed"):
        embed_store(Flat(), PaintedStore(), [])


def test_evaluation_of_a_model_that_sees_the_colour() -> None:
    store = PaintedStore(identities=12, images=4)
    found = evaluate_store(Flat(), store, generated_pairs=100, fars=(0.1, 0.01))
    figures = json.loads(json.dumps(found.figures(), allow_nan=False))
    assert figures["accuracy"] > 0.9
    assert figures["rank_one"] > 0.9
    assert figures["rank_one_probes"] == figures["images"] == 48
    assert (figures["pairs"], figures["skipped_pairs"], figures["broken"]) == (100, 0, 0)
    assert figures["tar_at_far"]["0.01"] is None
    assert figures["all_pairs"]["tar_at_far"]["0.01"] > 0.5
    assert figures["all_pairs"]["genuine_pairs"] == 12 * 6
    assert figures["all_pairs"]["impostor_pairs"] == 48 * 47 // 2 - 72
    assert sorted(store.read_positions) == list(range(48))  # once each
    assert [pair.same for pair in found.hardest] == [True] * 12 + [False] * 12
    rows = embed_store(Flat(), store).vectors
    worst = min(float(rows[i] @ rows[j]) for i in range(48) for j in range(i) if i // 4 == j // 4)
    assert found.hardest[0].score == pytest.approx(worst, abs=1e-5)
    assert found.hardest[0].first_where == f"painted/{found.hardest[0].first}.png"
    more = figures_with_intervals(found, seed=1)
    low, high = more["intervals"]["auc"]
    assert low <= figures["auc"] <= high
    assert low < high
    assert set(more["intervals"]["all_pairs"]["tar_at_far"]) == {"0.1", "0.01"}
    assert set(more["intervals"]["all_pairs"]["person_balanced_tar_at_far"]) == {"0.1", "0.01"}
    assert figures["people"] == 12
    assert figures["notes"][0] == (
        "rests on 12 people: too few to say how the model does on other people (at least 20 are needed)"
    )
    assert more["interval_identities"] == 12
    assert len(more["interval_notes"]) == 3  # the list of pairs, rank-one, all pairs
    assert any(
        note.startswith("all pairs: the intervals of TAR at FAR, person-balanced TAR at FAR rest on 12 identities")
        for note in more["interval_notes"]
    )
    assert more["uncertainty"]["seed"] == 1
    for name in ("intervals", "interval_identities", "interval_notes", "uncertainty"):
        del more[name]
    assert more == found.figures() == figures  # what scripts read stays as it is


def test_arrays_are_saved_without_pickle(tmp_path) -> None:
    found = evaluate_store(Flat(), PaintedStore(broken=(3,)), generated_pairs=40, broken_limit=0.1)
    np.savez_compressed(tmp_path / "evaluation.npz", **found.arrays())
    with np.load(tmp_path / "evaluation.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert len(arrays["scores"]) == len(arrays["same"]) == len(arrays["first"]) == len(arrays["second"])
    np.testing.assert_array_equal(arrays["same"], arrays["first"] // 4 == arrays["second"] // 4)
    assert arrays["broken_where"].tolist() == ["painted/3.png"]
    assert arrays["broken_reasons"].tolist() == ["cut short"]
    assert len(arrays["all_pairs_far"]) == len(arrays["all_pairs_tar"]) > 0


def test_pairs_that_use_broken_images_are_skipped_and_counted() -> None:
    store = PaintedStore(broken=(0, 9))
    pairs = generate_pairs(store.identities, 60, 0)
    with pytest.raises(UserError) as refused:
        evaluate_store(Flat(), store, pairs=pairs)
    assert str(refused.value) == (
        "painted: 2 of 32 images are broken, more than the limit of 0.01; the first is painted/0.png: cut short: "
        "repair the set, or raise --broken-limit (of a training run: data.broken_limit)"
    )
    found = evaluate_store(Flat(), store, pairs=pairs, broken_limit=0.1)
    uses = np.isin(pairs.first, [0, 9]) | np.isin(pairs.second, [0, 9])
    assert uses.any()
    assert (found.skipped_pairs, found.figures()["pairs"]) == (int(uses.sum()), 60 - int(uses.sum()))
    assert not np.isin([found.pairs.first, found.pairs.second], [0, 9]).any()
    assert found.broken == ((0, "painted/0.png", "cut short"), (9, "painted/9.png", "cut short"))
    assert found.figures()["all_pairs"]["images"] == 30
    assert any("pairs were skipped: they use one of 2 broken images" in note for note in found.notes)
    with pytest.raises(UserError, match=r"since 32 images are broken; the first is painted/0\.png: cut short"):
        evaluate_store(Flat(), PaintedStore(broken=tuple(range(32))), generated_pairs=40, broken_limit=1)


def test_folds_of_given_pairs_are_used() -> None:
    store = PaintedStore()
    pairs = generate_pairs(store.identities, 40, 0, folds=4)
    assert len(evaluate_store(Flat(), store, pairs=pairs).figures()["fold_accuracies"]) == 4
    only_genuine = pairs.keep(pairs.same)
    with pytest.raises(UserError, match="all pairs are of one kind"):
        evaluate_store(Flat(), store, pairs=only_genuine)


def test_large_stores_use_a_part_of_whole_identities() -> None:
    store = PaintedStore(identities=20, images=4)
    found = evaluate_store(Flat(), store, generated_pairs=20, gallery_images=26, hardest=3)
    assert found.all_pairs is not None
    assert found.all_pairs.images == 24
    assert found.all_pairs.figures()["genuine_pairs"] == 6 * 6
    assert len(store.read_positions) <= 24 + 40
    assert any("24 of 80 images, those of 6 identities" in note for note in found.notes)
    again = evaluate_store(Flat(), store, generated_pairs=20, gallery_images=26, hardest=3)
    assert again.figures()["rank_one"] == found.figures()["rank_one"]


def test_parts_can_be_left_out() -> None:
    store = PaintedStore()
    pairs = Pairs(
        np.array([0, 0, 1, 1]), np.array([1, 4, 2, 8]), np.array([True, False] * 2), np.array([0, 0, 1, 1]), "mine"
    )
    found = evaluate_store(Flat(), store, pairs=pairs, rank_one=False, all_pairs=False)
    assert sorted(store.read_positions) == [0, 1, 2, 4, 8]
    assert (found.figures()["rank_one"], found.figures()["all_pairs"]) == (None, None)
    assert [pair.same for pair in found.hardest] == [True, True, False, False]
    assert len(found.arrays()["all_pairs_far"]) == 0
