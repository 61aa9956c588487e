"""Trained rows for frequent identities: whose they are, where they live, what is said of them, and what does not go with them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from attfc.config import load_config
from attfc.errors import UserError
from attfc.heads import (
    AttFC,
    CenterTable,
    ImageMemory,
    KeyAttention,
    OtherImages,
    OwnEmbedding,
    Pairs,
    RecentCenters,
)
from attfc.losses import CosFace
from attfc.run.components import build_head
from attfc.training.optimizers import parameter_groups

SIZE, IDENTITIES, COUNTS = 8, 12, [4, 9, 1, 9, 4, 4, 7, 1, 1, 2, 2, 9]


def head_of(trained: int = 4, **options: Any) -> AttFC:
    bank = CenterTable(trained=trained, image_counts=COUNTS, **options)
    return AttFC(SIZE, CosFace(16.0), identities=IDENTITIES, negatives=bank)


@pytest.mark.parametrize(
    ("trained", "labels"), [(1, [1]), (2, [1, 3]), (4, [1, 3, 6, 11]), (5, [0, 1, 3, 6, 11]), (99, list(range(12)))]
)
def test_largest_first_and_ties_by_label(trained: int, labels: list[int]) -> None:
    assert head_of(trained).table.frequent.labels.tolist() == labels


def test_figures_are_about_the_samples_with_a_trained_row() -> None:
    head = head_of()
    labels = torch.tensor([0, 1, 1, 2, 6, 7])
    embeddings = torch.randn(6, SIZE)
    head(embeddings, labels)
    figures = head.statistics()
    rows = dict(zip(head.table.frequent.labels.tolist(), head.table.frequent.weight, strict=True))
    cosines = [torch.cosine_similarity(embeddings[at], rows[int(labels[at])], dim=0) for at in (1, 2, 4)]
    assert figures["trained_share"] == 0.5
    assert figures["trained_cosine"] == pytest.approx(sum(float(cosine.detach()) for cosine in cosines) / 3, abs=1e-6)
    assert figures["positive_share"] == figures["stored_share"] == 0.5  # the others are new
    head(embeddings, labels)
    assert head.statistics()["positive_share"] == 1.0
    head(embeddings[:1], labels[:1])
    assert (head.statistics()["trained_share"], head.statistics()["trained_cosine"]) == (0.0, 0.0)


def test_in_eval_the_loss_has_a_gradient_and_nothing_is_kept() -> None:
    head = head_of()
    head(torch.randn(6, SIZE), torch.arange(6))
    before, draws = {name: value.clone() for name, value in head.table.named_buffers()}, head.table.draws
    loss = head.eval()(torch.randn(6, SIZE, requires_grad=True), torch.arange(6))
    loss.backward()
    assert head.table.draws == draws
    assert all(torch.equal(value, before[name]) for name, value in head.table.named_buffers())
    assert head.table.frequent.weight.grad.any()


@pytest.mark.parametrize("place", ["host", "file"])
def test_trained_rows_are_on_the_device_wherever_the_table_is(place: str, tmp_path: Path) -> None:
    head = head_of(place=place, folder=tmp_path if place == "file" else None).to("meta")
    assert head.table.rows.device.type == "cpu"
    assert {tensor.device.type for tensor in (head.table.frequent.weight, head.table.frequent.labels)} == {"meta"}


def test_the_optimizer_treats_them_as_a_heads_rows() -> None:
    (group,) = parameter_groups([torch.nn.Identity(), head_of()], 0.1, False, head_learning_rate_scale=3.0)
    assert (len(group["params"]), group["weight_decay"], group["learning_rate_scale"]) == (1, 0.1, 3.0)


def test_a_configuration_trains_those_with_the_most_images_of_its_data() -> None:
    config = load_config("demo", ["negatives.trained=4"])
    head = build_head(config, IDENTITIES, image_counts=COUNTS)
    assert isinstance(head, AttFC)
    assert head.table.frequent.labels.tolist() == [1, 3, 6, 11]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CenterTable(trained=-1), "CenterTable: trained is -1, and must be at least 0: trained centers"),
        (
            lambda: AttFC.default(SIZE, 9, negatives=CenterTable(trained=3)),
            "CenterTable(trained=3) trains rows of the identities with the most images, and got none: pass image_counts, the number of images of "
            "each of the 9 identities",
        ),
        (
            lambda: AttFC.default(SIZE, 9, negatives=CenterTable(trained=3, image_counts=COUNTS)),
            "and got those of 12: pass image_counts, the number of images of each of the 9 identities",
        ),
        (
            lambda: AttFC.default(SIZE, 9, center=OwnEmbedding(memory=1.0, image_counts=COUNTS)),
            "OwnEmbedding(image_counts=...) has the images of 12 identities, and the head 9 identities: pass the number of images of each",
        ),
        *(
            (lambda rule=rule: AttFC.default(SIZE, 9, center=rule(), negatives=CenterTable(trained=3), in_batch="none"), message)
            for rule, message in (
                (KeyAttention, "negatives.trained=3 does not go with center=KeyAttention: a trained row is its identity"),
                (Pairs, "negatives.trained=3 does not go with center=Pairs: a trained row is its identity's center; take"),
            )
        ),
        (
            lambda: AttFC.default(SIZE, 9, negatives=RecentCenters(count=9), stored=CenterTable(trained=3)),
            "negatives.trained=3 does not go with stored=CenterTable: a trained row is its identity's center; take center=OwnEmbedding() "
            "without another bank, or negatives.trained=0",
        ),
        (
            lambda: AttFC.default(SIZE, 9, center=OtherImages(20), negatives=RecentCenters(count=9), stored=ImageMemory(trained=3)),  # type: ignore[call-arg]
            "ImageMemory: got an unexpected keyword argument 'trained'",
        ),
        (
            lambda: build_head(load_config("demo", ["negatives.trained=3", "center=pairs", "in_batch=fixed"]), 9, image_counts=[1] * 9),
            "negatives.trained=3 does not go with center=pairs: a trained row is its identity's center; take center=own_embedding",
        ),
        (
            lambda: head_of(5).load_state_dict(head_of(4).state_dict()),
            "the checkpoint has 4 trained rows of 8 numbers, and this head 5 trained rows of 8 numbers: build it with CenterTable(trained=4)",
        ),
        (
            lambda: head_of().hold_centers(),
            "teacher.centers=fixed gives every identity the center that a teacher has for it, and negatives.trained=4 trains some: set",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(build: Any, message: str) -> None:
    with pytest.raises((UserError, TypeError)) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trained_row_is_no_evidence_of_wrong_labels() -> None:
    head = head_of(trained=IDENTITIES)
    for _ in range(2):
        head(torch.randn(4, SIZE), torch.arange(4))
    assert head.statistics()["disagreeing_share"] == 0


def test_an_image_is_set_aside_for_half_the_gap_where_its_own_center_is_made() -> None:
    """Two images, each 0.15 nearer to another person's row than to its own center: one of a trained row, one of a stored center."""
    bank = CenterTable(trained=2, image_counts=COUNTS, count=IDENTITIES)
    head = AttFC(SIZE, CosFace(16.0), identities=IDENTITIES, negatives=bank, filter_above=0.3, filter_gap=0.2)
    basis = torch.eye(SIZE)
    with torch.no_grad():
        bank.frequent.weight.copy_(basis[:2])  # of identities 1 and 3
    bank.store_centers(basis[2:3], torch.tensor([0]))
    head.set_aside.share.fill_(1.0)
    far = torch.sqrt(torch.tensor(1 - 0.4**2 - 0.55**2))
    of_trained = 0.4 * basis[0] + 0.55 * basis[1] + far * basis[5]  # label 1, near to 3
    of_made = 0.4 * basis[2] + 0.55 * basis[1] + far * basis[6]  # label 0, near to 3
    for embedding, label, aside in ((of_trained, 1, 0.0), (of_made, 0, 1.0)):
        head.eval()(embedding[None], torch.tensor([label]))
        assert head.statistics()["set_aside_share"] == aside
    head.train()(of_made[None], torch.tensor([0]))
    assert head.statistics()["set_aside_share"] == 1
    assert head.set_aside.share == 0  # by the half is judged who is set aside, by the whole whether enough are
