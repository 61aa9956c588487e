"""Fine-tuning: what stays of the start weights, whose centers go on, and the comparison at the end."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from attfc.backbones import backbone_names, create_backbone
from attfc.backbones.shapes import shapes_only
from attfc.config import RunConfig, load_config, read_preset
from attfc.data import SyntheticFaces, open_store
from attfc.errors import UserError
from attfc.evaluation.bootstrap import Interval
from attfc.evaluation.results import Difference
from attfc.run.against_start import _line
from attfc.run.build import Run, new_run
from attfc.run.resuming import resume_run
from attfc.run.start_rows import _same_people, take_rows
from attfc.run.start_weights import Lineage, StartRecord, StartWeights
from attfc.training.checkpoints.checkpoint import save_checkpoint
from attfc.training.optimizers import trunk_of

OPTIONS = [
    *("data.workers=0", "batch_size=8", "schedule.epochs=1", "schedule.warmup_epochs=0", "eval.root=null"),
    *("log.tensorboard=false", "report.write=false", "precision.amp=none", "device=cpu", "threads=1"),
    *("backbone.name=r6_tiny", "backbone.embedding_size=16", "backbone.image_size=32", "data.decoded_cache_mib=20"),
]
JUDGED = ["eval.root=synthetic:identities=24,images=3,seed=1", "eval.generated_pairs=40"]
ALSO = "synthetic:identities=22,images=3,seed=2"


def people(root: Path, names: list[str], images: int = 2) -> Path:
    """A folder in which each name has the same faces, whatever others there are."""
    faces = SyntheticFaces(40, 4)
    for name in names:
        (root / name).mkdir(parents=True)
        for number in range(images):
            encoded, _ = faces.read(4 * (sum(map(ord, name)) % 40) + number)
            (root / name / f"{number}.jpg").write_bytes(encoded)
    return root


def run_of(data: object, output: Path, *options: str) -> Run:
    return new_run(load_config("demo", [*OPTIONS, f"data.root={data}", f"output={output}", *options]))


def trained(run: Run) -> Run:
    run.trainer.train()
    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Run:
    root = tmp_path_factory.mktemp("base")
    data = people(root / "first", [f"person {letter}" for letter in "abcdefgh"])
    return trained(run_of(data, root, "head=partial_fc", "head.share=0.5", "name=base"))


def copied(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.trainer.pair.state_dict().items() if name != "_extra_state"}


@pytest.mark.parametrize("name", backbone_names())
def test_the_trunk_is_all_below_the_matrix_of_the_embedding(name) -> None:
    with shapes_only():
        network = create_backbone(name, embedding_size=24)
    below = len(trunk_of(network))
    names = [name for name, _ in network.named_parameters()]
    assert {name.split(".")[0] for name in names[below:]} <= {"fc", "feature", "features"}
    matrices = [tuple(value.shape) for value in network.parameters() if value.ndim >= 2]
    assert (matrices[-1][0], names[below].split(".")[-1]) == (24, "weight")
    assert 0 < len(names) - below <= 4


@pytest.mark.parametrize("batch_norm", ["kept", "adapted"])
def test_a_frozen_trunk_stays_bit_for_bit_and_takes_no_gradient(base, tmp_path, batch_norm) -> None:
    run = run_of(
        *("synthetic:identities=12,images=4,seed=4", tmp_path, f"start_from={base.folder}", "finetune.trunk_rate=0"),
        *(f"finetune.batch_norm={batch_norm}", "center=key_attention", "key_encoder.momentum=0.5", "eval.every=2"),
        *(*JUDGED, "in_batch=fixed"),
    )
    before, query = copied(run), run.trainer.pair.query
    trunk = {id(parameter) for parameter in trunk_of(query)}
    trained(run)
    after = copied(run)
    for name, value in query.named_parameters():
        frozen = id(value) in trunk
        assert value.requires_grad is not frozen or name == "features.weight"
        assert (value.grad is None) is (frozen or name == "features.weight"), name
        for encoder in ("query", "key"):
            same = torch.equal(before[f"{encoder}.{name}"], after[f"{encoder}.{name}"])
            assert same is (frozen or name == "features.weight"), (encoder, name)
    grouped = [id(value) for group in run.trainer.optimizer.param_groups for value in group["params"]]
    assert not trunk & set(grouped)
    for name in (name for name in before if "running_" in name):
        assert torch.equal(before[name], after[name]) is (batch_norm == "kept"), name


def test_a_trunk_at_a_lower_rate_moves_by_that_share_of_its_step(base, tmp_path) -> None:
    """Oracle: the first step of SGD without momentum and clip is rate x gradient, and both runs have the same gradient."""
    moved = {}
    for rate in (1.0, 0.25):
        run = run_of(
            *("synthetic:identities=12,images=4,seed=4", tmp_path, f"start_from={base.folder}", "head=full_fc"),
            *("schedule.max_steps=1", "optimizer.momentum=0", "optimizer.clip=0", "schedule.name=constant"),
            f"finetune.trunk_rate={rate}",
        )
        before = copied(run)
        groups = run.trainer.optimizer.param_groups
        assert [group["weight_decay"] for group in groups] == [5e-4] * len(groups)
        full = run.config.optimizer.learning_rate
        assert [group["lr"] for group in groups] == ([full, full] if rate == 1 else [full, rate * full, full])
        trained(run)
        moved[rate] = {name: value - before[name] for name, value in copied(run).items()}
    names = [name for name, _ in run.trainer.pair.query.named_parameters()]
    below = len(trunk_of(run.trainer.pair.query))
    for number, name in enumerate(f"query.{name}" for name in names):
        share = 0.25 if number < below else 1.0
        assert torch.allclose(moved[0.25][name], share * moved[1.0][name], rtol=1e-2, atol=1e-6), name
    assert any(bool(moved[1.0][f"query.{name}"].abs().max() > 1e-4) for name in names[:below])


def test_the_logged_rate_is_that_of_the_rest_and_the_schedule_is_followed_by_both(base, tmp_path) -> None:
    run = trained(
        run_of(
            *("synthetic:identities=12,images=4,seed=4", tmp_path, f"start_from={base.folder}"),
            *("finetune.trunk_rate=0.1", "schedule.max_steps=4", "log.every=1"),
        )
    )
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    rates = [line["learning_rate"] for line in lines if line["kind"] == "train"]
    assert rates[0] == run.config.optimizer.learning_rate
    assert rates[-1] < rates[0] / 4
    top, trunk = run.trainer.optimizer.param_groups
    assert trunk["lr"] == pytest.approx(0.1 * top["lr"])


@pytest.mark.parametrize(
    "options",
    [
        ["head=full_fc", "finetune.trunk_rate=0.1", "finetune.batch_norm=kept"],
        ["center=key_attention", "key_encoder.momentum=0.9", "in_batch=fixed", "finetune.trunk_rate=0"],
    ],
)
def test_resume_in_mid_run_is_bit_for_bit_and_compares_with_the_same_start(base, tmp_path, options) -> None:
    data = people(tmp_path / "more", [f"person {letter}" for letter in "bdefghijklmn"], images=3)
    options = [*options, "schedule.max_steps=4", "checkpoint.every=2", "eval.every=1", f"eval.also={ALSO}", *JUDGED]
    moved = tmp_path / "moved"
    shutil.copytree(base.folder, moved)
    whole = trained(run_of(data, tmp_path, f"start_from={moved}", *options))
    cut = tmp_path / "cut"
    shutil.copytree(whole.folder, cut)
    shutil.rmtree(cut / "checkpoints" / "step_000000004")
    shutil.rmtree(moved)  # the start weights are gone, their scores are not
    resumed = trained(resume_run(cut, []))
    assert resumed.trainer.step == 4
    for name, value in copied(whole).items():
        assert torch.equal(value, resumed.trainer.pair.state_dict()[name]), name
    head = whole.trainer.head.state_dict()
    assert all(torch.equal(value, head[name]) for name, value in resumed.trainer.head.state_dict().items())
    assert resumed.against_start == whole.against_start
    assert len(whole.against_start["sets"]) == 2
    with pytest.raises(UserError, match=r"finetune\.trunk_rate is .* in the saved run and 0\.7 now"):
        resume_run(cut, ["finetune.trunk_rate=0.7"])


def rows(run: Run) -> dict[str, torch.Tensor]:
    """What a head keeps, by name of the person; a table's rows as they are stored, trained rows in float32."""
    state = run.trainer.head.state_dict()
    matrix = list(state["weight" if "weight" in state else "table.rows"])
    for label, row in zip(state.get("table.frequent.labels", []), state.get("table.frequent.weight", []), strict=True):
        assert not matrix[label].any(), "one of both"
        matrix[label] = row
    return {run.store.identity_name(label): row.clone() for label, row in enumerate(matrix)}


HEADS = {
    "full_fc": ["head=full_fc"],
    "partial_fc": ["head=partial_fc", "head.share=0.5"],
    "attfc": ["head=attfc"],
    "attfc trained": ["head=attfc", "negatives.trained=4"],
    "stored beside a container": ["negatives=recent_centers", "stored=center_table"],
}


@pytest.mark.parametrize("later", HEADS)
@pytest.mark.parametrize("earlier", ["partial_fc", "attfc", "attfc trained"])
def test_the_same_people_keep_their_centers_by_name(base, tmp_path, earlier, later) -> None:
    """Oracle: the rows of both runs by name; others, fewer and more people shift every label."""
    first = base
    if earlier != "partial_fc":
        first = trained(run_of(base.config.data.root, tmp_path, "name=first", *HEADS[earlier]))
    data = people(tmp_path / "more", ["person 0", *(f"person {letter}" for letter in "bcdfghxyz"), "17"])
    run = run_of(data, tmp_path, *HEADS[later], f"start_from={first.folder}")
    alone = run_of(data, tmp_path, *HEADS[later])
    before, now, fresh = rows(first), rows(run), rows(alone)
    assert len(now) == 11
    for name, row in now.items():
        if name not in before:
            assert torch.equal(row, fresh[name])
        elif before[name].dtype == row.dtype:  # both trained, or both of a table
            assert torch.equal(row, before[name]), name
        elif row.dtype == torch.float32:  # a center becomes a trained row as long as the others
            length = torch.stack([each for each in fresh.values() if each.dtype == row.dtype]).norm(dim=1).mean()
            assert torch.allclose(row, normalize(before[name].float(), dim=0) * length, rtol=1e-5)
        else:
            assert torch.allclose(row.float(), normalize(before[name], dim=0), atol=4e-3)
    (note,) = [note for note in run.notes if "class centers" in note]
    assert note == f"class centers: 6 of the 11 people keep theirs from {first.folder}, 5 start fresh"
    if hasattr(run.trainer.head, "table"):
        in_table = [now[name].dtype == torch.bfloat16 and name in before for name in now]
        assert run.trainer.head.table.seen.tolist() == in_table
    trained(run)
    assert not any("class centers" in note for note in alone.notes)
    anew = run_of(data, tmp_path, *HEADS[later], f"start_from={first.folder}", "finetune.rows=fresh")
    assert all(torch.equal(row, fresh[name]) for name, row in rows(anew).items())


def test_a_copy_of_the_data_elsewhere_and_data_that_are_gone(base, tmp_path) -> None:
    """The hashes of a checkpoint say that names and order are the same, without the data; else those are needed."""
    before = rows(base)
    shutil.copytree(base.config.data.root, tmp_path / "copy")
    gone = tmp_path / "gone"
    shutil.copytree(base.folder, gone)
    config = (gone / "config.yaml").read_text(encoding="utf-8")
    (gone / "config.yaml").write_text(config.replace(base.config.data.root, str(tmp_path / "nowhere")))
    run = run_of(tmp_path / "copy", tmp_path, "head=full_fc", f"start_from={gone}")
    assert all(torch.equal(row, before[name]) for name, row in rows(run).items())
    shutil.rmtree(tmp_path / "copy" / "person a")
    other = run_of(tmp_path / "copy", tmp_path, "head=full_fc", f"start_from={gone}")
    (note,) = [note for note in other.notes if "class centers" in note]
    assert "all class centers start fresh: whose centers" in note
    assert "its data cannot be opened" in note
    assert "nowhere" in note
    (gone / "config.yaml").write_text(config.replace(base.config.data.root, str(tmp_path / "copy")))
    changed = run_of("synthetic:identities=9,images=2", tmp_path, "head=full_fc", f"start_from={gone}")
    assert any("has changed: 8 identities in the saved run, now 7" in note for note in changed.notes)


def test_numbers_and_names_that_stand_twice_are_nobodys(tmp_path) -> None:
    """Within one place a number is a person; in two, RecordIO sets count each for itself."""
    one = open_store(people(tmp_path / "one", ["1", "2", "Ann Lee", "ann_lee", "Bo"]))
    other = open_store(people(tmp_path / "other", ["1", "bo", "Ann Lee", "Cy"]))
    named = [one.identity_name(label) for label in range(5)]
    found = dict(zip(named, _same_people(one, other).tolist(), strict=True))
    bo = [other.identity_name(label) for label in range(4)].index("bo")
    assert found == {"1": -1, "2": -1, "Ann Lee": -1, "ann_lee": -1, "Bo": bo}
    assert _same_people(one, one).tolist() == [0, 1, 2, 3, 4]
    rendered = partial(SyntheticFaces, images_per_identity=2)
    assert _same_people(rendered(4, first_identity=2), rendered(9)).tolist() == [2, 3, 4, 5]
    assert _same_people(rendered(4), rendered(4, seed=1)).tolist() == [-1] * 4


def test_centers_of_another_embedding_size_are_refused_in_one_line(base, tmp_path) -> None:
    run = run_of(base.config.data.root, tmp_path, "head=full_fc")
    checkpoint = save_checkpoint(tmp_path / "x-001" / "checkpoints", 1, {"head": {"weight": torch.ones(8, 7)}})
    record = StartRecord(source="x-001", kind="run", network="r6_tiny", weights={}, lineage=Lineage())
    message = "start_from=x-001 keeps centers of 7 numbers, and those of this run have 16: set finetune.rows=fresh"
    with pytest.raises(UserError, match=message) as caught:
        take_rows(run, StartWeights(record, [], checkpoint, "full_fc", None))
    assert "\n" not in str(caught.value)


def test_published_weights_take_the_same_options(tmp_path) -> None:
    torch.manual_seed(0)
    network = create_backbone("r6_tiny", embedding_size=16, image_size=32)
    torch.save(network.state_dict(), tmp_path / "backbone.pt")
    asked = read_preset(
        "demo",
        [
            *(*OPTIONS, f"start_from={tmp_path / 'backbone.pt'}", f"output={tmp_path}", "finetune.trunk_rate=0"),
            *("data.root=synthetic:identities=9,images=3", "finetune.batch_norm=kept", "head=full_fc", *JUDGED),
        ],
    )
    run = trained(new_run(asked))
    after, theirs = run.trainer.pair.query.state_dict(), network.state_dict()
    changed = {name for name in theirs if not torch.equal(after[name], theirs[name])}
    assert changed == {"fc.weight", "fc.bias", "features.bias"}
    assert "gained" in str(run.against_start) or "lost" in str(run.against_start)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("finetune.trunk_rate=0", "finetune.trunk_rate=0.0 needs start weights: set start_from="),
        ("finetune.batch_norm=adapted", "finetune.batch_norm=adapted needs start weights"),
        ("finetune.rows=fresh", "finetune.rows=fresh needs start weights"),
        ("eval.also=faces", "eval.also=faces needs start weights: set start_from=RUN_OR_WEIGHTS, or"),
        ("finetune.trunk_rate=1.5", "finetune.trunk_rate"),
        ("finetune.batch_norm=frozen", "finetune.batch_norm"),
    ],
)
def test_options_without_start_weights_are_refused_by_name(option, message) -> None:
    with pytest.raises(UserError, match=message):
        new_run(read_preset("demo", [option]))


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ("synthetic:identities=19,images=2", "has 19 people with two images or more, too few to compare two models on"),
        ("NOTHING", "eval.also: .*NOTHING"),
        ("FILE.npz", "eval.also: .*FILE.npz"),
        ("FILE.bin", "eval.also: .*FILE.bin"),
    ],
)
def test_a_set_of_everybody_that_cannot_be_compared_on_is_refused_before_the_training(
    base, tmp_path, also, message
) -> None:
    (tmp_path / "FILE.npz").write_bytes(b"PK")
    (tmp_path / "FILE.bin").write_bytes(b"no pickle")
    path = also if also.startswith("synthetic") else tmp_path / also
    with pytest.raises(UserError, match=message) as caught:
        run_of("synthetic:identities=9,images=3", tmp_path, f"start_from={base.folder}", f"eval.also={path}", *JUDGED)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*-001"))


def test_both_comparisons_are_in_the_report_the_json_and_as_attfc_compare_says(base, tmp_path) -> None:
    """Oracle: `attfc evaluate` and `compare_results` on the two models."""
    from attfc.evaluation import Embedder, evaluate_store
    from attfc.evaluation.results import RUN_EXACT, EvaluationResult, compare_results
    from attfc.export import load

    data = people(tmp_path / "more", [f"person {letter}" for letter in "abcdefgh"])
    options = ("report.write=true", "schedule.max_steps=3", f"eval.also={ALSO}", "head=full_fc")
    run = run_of(data, tmp_path, f"start_from={base.folder}", *JUDGED, *options).train()
    written = json.loads((run.folder / "evaluation.json").read_text(encoding="utf-8"))["against_start"]
    assert written == run.against_start
    assert [each["where"] for each in written["sets"]] == ["here", "there"]
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "Against the start model" in page
    for each, root, generated in zip(written["sets"], (JUDGED[0][10:], ALSO), (40, 40), strict=True):
        both = []
        for folder in (run.folder, base.folder):
            found = evaluate_store(
                Embedder(load(folder, device="cpu").module),
                *(open_store(root),),
                generated_pairs=generated,
                spare=2.0,
            )
            both.append(EvaluationResult("x", "held-out", (root,), found.figures(), found.samples(RUN_EXACT)))
        expected = [one.plain() for one in compare_results(*both, 400)]
        assert [one["figure"] for one in expected] == [one["figure"] for one in each["differences"]]
        for mine, theirs in zip(expected, each["differences"], strict=True):
            assert mine["difference"]["value"] == pytest.approx(theirs["difference"]["value"], abs=1e-6)
            assert mine["difference"]["interval"] == pytest.approx(theirs["difference"]["interval"], abs=1e-6)
        (line,) = each["lines"]
        assert line.split()[0] in ("gained", "lost")
        assert f"points of TAR at FAR 0.001 {each['where']}" in line
        assert line.replace("->", "-&gt;") in page
    assert any("rest on" in note for each in written["sets"] for note in each["notes"])


def test_the_sentence_counts_what_was_lost_as_a_positive_number() -> None:
    place = ("all_pairs", "tar_at_far", "0.001")
    gained = Difference(place, Interval(0.483, 0.4, 0.5), Interval(0.402, 0.3, 0.5), Interval(0.081, 0.052, 0.11))
    assert _line(gained, "here", "faces/val") == (
        "gained 8.1 [5.2, 11.0] points of TAR at FAR 0.001 here; on faces/val: 40.2 -> 48.3 %"
    )
    lost = Difference(("accuracy",), Interval(0.9, None, None), Interval(0.91, None, None), Interval(-0.01, -0.02, 0.0))
    assert _line(lost, "there", "lfw.bin") == (
        "lost 1.0 [-0.0, 2.0] points of accuracy there (the interval holds 0); on lfw.bin: 91.0 -> 90.0 %"
    )


def test_another_seed_since_the_run_was_begun_costs_the_comparison_and_not_the_run(base, tmp_path) -> None:
    data = people(tmp_path / "more", [f"person {letter}" for letter in "abcdefgh"])
    run = trained(run_of(data, tmp_path, f"start_from={base.folder}", *JUDGED, "schedule.max_steps=2"))
    (run.folder / "start_here.npz").unlink()
    again = resume_run(run.folder, [])
    trained(again)
    (entry,) = again.against_start["sets"]
    assert entry["lines"][0].startswith("not compared here: ")
    assert "start_here.npz: no such file" in entry["lines"][0]
    assert entry["differences"] == []


def test_a_configuration_of_an_earlier_version_has_the_defaults() -> None:
    values = RunConfig().model_dump(mode="json")
    del values["finetune"], values["eval"]["also"]
    assert RunConfig.model_validate(values) == RunConfig()
