"""A teacher's loss and centers: against closed forms and slow loops, and what is refused before anything is embedded."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from attfc.backbones import create_backbone
from attfc.config import Asked, RunConfig, apply_overrides
from attfc.data import SyntheticFaces
from attfc.errors import UserError
from attfc.evaluation.embed import Embedder
from attfc.evaluation.embedding_cache import FaceEmbeddings
from attfc.export import Colours, ModelFacts, export_onnx, open_model
from attfc.export.origins import licences
from attfc.heads import DCP, DCQ, AttFC, CenterTable, FullFC, Head, KeyAttention, RecentCenters
from attfc.losses import CosFace
from attfc.losses.teacher import TeacherLoss
from attfc.run.build import new_run
from attfc.run.teacher import TeacherRows, _centers, _key, read_teacher
from attfc.training.model_files import load_model, save_model
from attfc.training.momentum import MomentumPair
from attfc.training.optimizers import build_optimizer
from attfc.training.step import Inputs, TrainStep

TINY = [
    *("data.root=synthetic:identities=8,images=4,seed=0", "data.workers=0", "data.decoded_cache_mib=0", "batch_size=8"),
    *("schedule.max_steps=2", "schedule.warmup_epochs=0", "eval.root=null", "log.tensorboard=false", "log.every=1"),
    *("report.write=false", "precision.amp=none", "device=cpu", "threads=1", "backbone.name=r6_tiny"),
    *("backbone.image_size=32", "backbone.embedding_size=24", "eval.batch_size=8"),
]


@pytest.fixture(scope="module", autouse=True)
def _rendered_once(rendered_once: None) -> None:
    """Of all tests here."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 24 numbers, 32 x 32 pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = create_backbone("r6_tiny", embedding_size=24, image_size=32).eval()
    return save_model(tmp_path_factory.mktemp("teacher"), network, {"training_data": {"root": "R", "licence": "L"}})


def config(folder: Path, *overrides: object) -> RunConfig:
    place = [f"output={folder}", f"teacher.cache={folder / 'cache'}"]
    return apply_overrides({}, [*TINY, *place, *map(str, overrides)], "test")


def rows_of(image: np.ndarray, mirror: np.ndarray) -> TeacherRows:
    return TeacherRows(FaceEmbeddings(image, mirror), str)


def at(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_the_loss_is_the_mean_of_one_minus_cosine_whatever_the_lengths() -> None:
    loss = TeacherLoss(2, 2, weight=10.0)
    embeddings = (3 * at(0, 90, 10)).requires_grad_()
    found = loss(embeddings.bfloat16(), torch.cat([5 * at(60, 90), torch.zeros(1, 2)]))
    assert float(found.detach()) == pytest.approx(10 * (0.5 + 0 + 0) / 3, abs=1e-2)
    found.backward()
    assert not embeddings.grad[2].any()  # no target, no gradient
    assert loss.statistics()["teacher_cosine"] == pytest.approx((0.5 + 1) / 2, abs=1e-3)
    assert list(loss.parameters()) == []


def test_a_linear_map_stands_between_other_sizes_and_is_trained() -> None:
    torch.manual_seed(0)
    loss = TeacherLoss(2, 3, 1.0)
    embeddings, targets = torch.randn(5, 2), torch.randn(5, 3)
    weight = loss.map.weight
    slow = [1 - torch.cosine_similarity(weight @ z, t, dim=0) for z, t in zip(embeddings, targets, strict=True)]
    found = loss(embeddings, targets)
    torch.testing.assert_close(found, torch.stack(slow).mean())
    found.backward()
    assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize("head", [FullFC(2, 4, CosFace(8.0, 0.1)), DCP(2, CosFace(8.0, 0.1), count=8)])
def test_the_step_adds_it_to_any_head_and_descends_the_mean_of_its_batches(head: Head) -> None:
    torch.manual_seed(0)
    encoder, loss = nn.Linear(3, 2), TeacherLoss(2, 2, 4.0)
    pair = MomentumPair(encoder, keys=head.keys_per_query > 0)
    optimizer = build_optimizer("sgd", [{"params": list(encoder.parameters())}])
    images, targets, labels = torch.randn(4, 3), torch.randn(4, 2), torch.arange(4)
    keys = torch.randn(4, 1, 3) if head.keys_per_query else None
    plain = TrainStep(pair, head, optimizer).loss(Inputs(images, labels, keys))
    step = TrainStep(pair, head, optimizer, teacher_loss=loss)
    head.load_state_dict(head.state_dict())
    with_teacher = step.loss(Inputs(images, labels, keys, targets=targets))
    if not head.keys_per_query:
        torch.testing.assert_close(with_teacher, plain + loss(encoder(images), targets))
    halves = [
        Inputs(images[rows], labels[rows], None if keys is None else keys[rows], targets=targets[rows])
        for rows in ([0, 1], [2, 3])
    ]
    if not head.keys_per_query:
        torch.testing.assert_close(step(halves), with_teacher.detach())
    assert "teacher_cosine" in step.statistics()


def held(identities: int = 6, **options: object) -> tuple[AttFC, torch.Tensor]:
    head = AttFC(2, CosFace(8.0, 0.2), identities=identities, negatives=CenterTable(count=identities), **options)  # type: ignore[arg-type]
    centers = at(*(60.0 * number for number in range(identities)))
    head.hold_centers().hold([(np.arange(identities), centers.numpy())])
    return head, head.table.rows.float()


@pytest.mark.parametrize("in_batch", ["none", "fixed", "push"])
def test_held_centers_are_positives_and_negatives_and_never_move(in_batch: str) -> None:
    head, centers = held(in_batch=in_batch)
    embeddings, labels = torch.randn(4, 2).requires_grad_(), torch.tensor([1, 4, 1, 2])
    loss = head(embeddings, labels)
    slow = []
    unit = normalize(centers, dim=1) if in_batch != "none" else centers
    for embedding, label in zip(normalize(embeddings, dim=1), labels.tolist(), strict=True):
        cosines = unit @ embedding
        cosines[label] = normalize(centers[label], dim=0) @ embedding - 0.2
        slow.append(-torch.log_softmax(8 * cosines, dim=0)[label])
    torch.testing.assert_close(loss, torch.stack(slow).mean(), rtol=0.02, atol=0.02)
    loss.backward()
    assert embeddings.grad.abs().sum() > 0
    for _ in range(3):
        head(torch.randn(4, 2), labels)
    assert torch.equal(head.table.rows.float(), centers)
    assert head.table.draws == 4  # each step draws anew


def test_a_step_writes_nothing_into_held_centers(monkeypatch) -> None:
    head, _ = held()
    monkeypatch.setattr(head.table, "write", lambda *_: pytest.fail("written"))
    head(torch.randn(2, 2), torch.tensor([0, 1]))
    head.table.settle()


def test_held_centers_come_back_with_the_state() -> None:
    head, centers = held()
    again = AttFC(2, CosFace(8.0, 0.2), identities=6, negatives=CenterTable(count=6))
    again.hold_centers()
    again.load_state_dict(head.state_dict())
    again(torch.randn(2, 2), torch.tensor([0, 1]))
    assert torch.equal(again.table.rows.float(), centers)


@pytest.mark.parametrize(
    "head",
    [
        FullFC(2, 4, CosFace()),
        DCQ(2, CosFace(), count=8),
        AttFC(2, CosFace(), identities=4, center=KeyAttention(), in_batch="fixed"),
        AttFC(2, CosFace(), identities=4, negatives=RecentCenters(count=8), stored=CenterTable()),
    ],
)
def test_other_heads_refuse_fixed_centers(head: Head) -> None:
    with pytest.raises(UserError, match=rf"and this {type(head).__name__} has none: take head=attfc with negatives="):
        head.hold_centers()


def test_centers_are_the_unit_mean_of_unit_embeddings(monkeypatch) -> None:
    store = SyntheticFaces(9, (1, 7), seed=1)
    draw = np.random.default_rng(0)
    image, mirror = draw.normal(size=(2, len(store), 5)).astype(np.float32)
    image[3] = mirror[3] = 0  # broken
    image[4], mirror[4] = -image[5], -mirror[5]
    rows = rows_of(image, mirror)
    labels = store.labels(np.arange(len(store)))
    monkeypatch.setattr("attfc.data.cleaning.identity_centers.BLOCK_ROWS", 4)
    for start, stop in ((0, 9), (2, 5)):
        found = {
            int(label): center
            for several, centers in _centers(rows, store, start, stop)
            for label, center in zip(several, centers, strict=True)
        }
        assert sorted(found) == list(range(start, stop))
        for label, center in found.items():
            units = [row / np.linalg.norm(row) for row in (image + mirror)[labels == label] if row.any()]
            expected = np.sum(units, axis=0)
            np.testing.assert_allclose(center, expected / np.linalg.norm(expected), atol=1e-5)


def test_targets_are_looked_up_by_position_and_nan_is_named() -> None:
    image = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = rows_of(image, 2 * image)
    assert torch.equal(rows.of(torch.tensor([2, 0, 2])), torch.from_numpy(3 * image[[2, 0, 2]]))
    image[1, 2] = math.nan
    with pytest.raises(UserError, match=r"the teacher's embedding of 1 has NaN or infinity"):
        rows.of(torch.tensor([0, 1]))


def test_a_set_of_equal_names_and_other_images_has_another_key(teacher) -> None:
    class Renamed(SyntheticFaces):
        def where(self, position: int) -> str:
            return f"{position}.jpg"

    facts = open_model(teacher)[1]

    def key(facts: ModelFacts, seed: int = 0) -> str:
        return _key(facts, Embedder(nn.Identity()), Renamed(3, 2, seed=seed)).digest

    assert key(facts) == key(facts) != key(facts, seed=1)
    others = replace(facts, image_size=40), replace(facts, colours=Colours("BGR"))
    assert len({key(facts), *map(key, others)}) == 3


def test_a_path_is_the_model_and_a_teacher_has_to_teach() -> None:
    assert apply_overrides({}, ["teacher=runs/x"], "test").teacher.model == "runs/x"
    assert Asked(overrides=("teacher=x", "teacher.weight=2")).resolve().teacher.weight == 2
    with pytest.raises(
        UserError, match=r"teacher\.loss=null and teacher\.centers=null: the teacher would teach nothing"
    ):
        apply_overrides({}, ["teacher=x", "teacher.loss=null"], "test")


def test_a_run_embeds_once_begins_as_without_a_teacher_and_says_who_taught(tmp_path, teacher, monkeypatch) -> None:
    alone = new_run(config(tmp_path))
    random_state = torch.get_rng_state()
    run = new_run(config(tmp_path, f"teacher={teacher}"))
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, value in alone.trainer.pair.query.state_dict().items():
        assert torch.equal(run.trainer.pair.query.state_dict()[name], value), name
    record = read_teacher(run.folder)
    assert record is not None
    assert any(f"32 embeddings in {tmp_path / 'cache' / record.embeddings}" in note for note in run.notes)
    batch = next(run.trainer.loader.batches(1))
    wanted = Embedder(load_model(teacher)[0]).embed(run.store, batch.positions.numpy()).vectors
    targets = run.trainer.take_step.prepare(batch).targets
    torch.testing.assert_close(normalize(targets, dim=1), torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)
    run.train()
    said = json.loads((run.folder / "model" / "config.json").read_text())["training_data"]["teacher"]
    assert said == {"source": teacher.name, "network": "r6_tiny", "root": "R", "licence": "L"}
    assert open_model(run.folder)[1].training_data["teacher"] == said
    assert licences(open_model(run.folder)[1].training_data) == "unknown; teacher: L"
    assert '"teacher_cosine"' in (run.folder / "metrics.jsonl").read_text()
    monkeypatch.setattr(Embedder, "passes", lambda *_: pytest.fail("embedded again"))
    again = new_run(config(tmp_path, f"teacher={teacher}", "teacher.centers=fixed", "head=attfc"))
    table = again.trainer.head.table
    image = np.load(tmp_path / "cache" / record.embeddings / "image.npy")
    mirror = np.load(tmp_path / "cache" / record.embeddings / "mirror.npy")
    units = normalize(torch.from_numpy(image + mirror), dim=1).view(8, 4, 24)
    expected = normalize(units.sum(dim=1), dim=1)
    torch.testing.assert_close(table.rows.float(), expected, rtol=0.01, atol=0.01)
    before = table.rows.clone()
    again.train()
    assert torch.equal(table.rows, before)


def test_an_onnx_file_teaches_what_its_network_does(tmp_path, teacher) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    exported = tmp_path / "teacher.onnx"
    export_onnx(*open_model(teacher), exported)
    batch, targets = None, []
    for path in (teacher, exported):
        run = new_run(config(tmp_path, f"teacher={path}"))
        batch = batch or next(run.trainer.loader.batches(1))
        targets.append(run.trainer.take_step.prepare(batch).targets)
    torch.testing.assert_close(targets[0], targets[1], rtol=1e-3, atol=1e-3)


def test_what_was_embedded_before_an_interruption_is_kept(tmp_path, teacher, monkeypatch) -> None:
    passes, starts = Embedder.passes, []

    def interrupted(self, batches, mirror):
        starts.append(len(batches))
        for number, each in enumerate(passes(self, batches, mirror)):
            if number == 2 and len(starts) == 1:
                raise KeyboardInterrupt
            yield each

    monkeypatch.setattr(Embedder, "passes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        new_run(config(tmp_path, f"teacher={teacher}"))
    new_run(config(tmp_path, f"teacher={teacher}"))
    assert starts == [4, 2]  # batches of 8 of 32 images, and those that were left


def test_damaged_embeddings_are_named(tmp_path, teacher) -> None:
    run = new_run(config(tmp_path, f"teacher={teacher}"))
    record = read_teacher(run.folder)
    assert record is not None
    file = tmp_path / "cache" / record.embeddings / "mirror.npy"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(
        UserError, match=r"damaged embeddings \(mirror\.npy: .*\): delete that folder, and they are computed again"
    ):
        new_run(config(tmp_path, f"teacher={teacher}"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["teacher=nowhere"], "teacher=nowhere: nowhere does not exist: a model is a run's folder"),
        (["teacher=T", "teacher.model_is={colour_order: BGR}"], "colour_order is 'RGB', you said 'BGR'"),
        (["teacher=T", "teacher.model_is={image_size: 112}"], "image_size is 32, you said 112"),
        (["teacher=T", "teacher.model_is={alignment: x}"], "'alignment' says nothing about a model"),
        (
            ["teacher=T", "teacher.centers=fixed", "head=attfc", "backbone.embedding_size=32"],
            "gives 24 numbers per image and backbone.embedding_size is 32: teacher.centers=fixed needs equal sizes",
        ),
        (["teacher=T", "teacher.centers=fixed", "head=full_fc"], "and this FullFC has none: take head=attfc"),
        (["teacher=FLAT"], "does not tell the people of synthetic:identities=8,images=4,seed=0 apart (AUC 0."),
    ],
)
def test_teachers_that_cannot_be_are_refused_in_one_line(tmp_path, teacher, options, message) -> None:
    if "teacher=FLAT" in options:
        network = create_backbone("r6_tiny", embedding_size=24, image_size=32)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.0 if parameter.dim() > 1 else 1.0)
        save_model(tmp_path / "flat", network.eval())
    places = {"teacher=T": f"teacher={teacher}", "teacher=FLAT": f"teacher={tmp_path / 'flat'}"}
    with pytest.raises(UserError) as found:
        new_run(config(tmp_path, *(places.get(each, each) for each in options)))
    assert message in str(found.value)
    assert "\n" not in str(found.value)
