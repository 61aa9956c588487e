"""Partial FC: the draw of classes, what a step touches, the row optimizers, rows in host memory and in a file."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attfc
from attfc.distributed import ALONE
from attfc.errors import UserError
from attfc.heads import FullFC, PartialFC, RowStore
from attfc.heads.banks.draw import draw_classes, drawn_classes
from attfc.losses import CosFace, Margin
from attfc.training.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from attfc.training.checkpoints.sharded_state import ShardedState
from attfc.training.optimizers import build_optimizer, parameter_groups
from attfc.training.schedule import build_schedule

SIZE, IDENTITIES = 8, 60
CPU = torch.device("cpu")


def head(**options: object) -> PartialFC:
    torch.manual_seed(0)
    return PartialFC(SIZE, IDENTITIES, CosFace(scale=16.0, margin=0.2), **({"share": 0.3} | options))


def optimizer_of(*modules: torch.nn.Module, name: str = "sgd", **options: object) -> torch.optim.Optimizer:
    groups = parameter_groups(modules, weight_decay=0.01)
    return build_optimizer(name, groups, learning_rate=0.05, **options)


def batch(seed: int, samples: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(samples, SIZE, generator=draw), torch.randint(0, IDENTITIES, (samples,), generator=draw)


def train_step(trained: PartialFC, optimizer: torch.optim.Optimizer, *seeds: int) -> float:
    optimizer.zero_grad()
    total = 0.0
    for seed in seeds:
        loss = trained(*batch(seed)) / len(seeds)
        loss.backward()
        total += float(loss.detach())
    optimizer.step()
    return total


# the draw


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3000), st.floats(0, 1), st.lists(st.integers(0, 1 << 30), min_size=1, max_size=40),
    st.integers(0, 1 << 62), st.integers(0, 1 << 40),
)  # fmt: skip
def test_a_draw_holds_the_batch_is_ascending_and_of_the_right_size(classes, rate, labels, seed, number) -> None:
    labels_B = torch.tensor(labels) % classes
    count = min(classes, max(round(rate * classes), len(labels)))
    drawn = draw_classes(labels_B, classes, count, seed, number)
    assert drawn.shape == (count,)
    assert (drawn[1:] > drawn[:-1]).all()
    assert 0 <= int(drawn[0]) <= int(drawn[-1]) < classes
    assert torch.isin(labels_B, drawn).all()
    assert torch.equal(drawn, draw_classes(labels_B, classes, count, seed, number))


def test_the_others_are_a_uniform_draw_without_replacement() -> None:
    classes, count, draws = 40, 8, 1500
    seen = torch.zeros(classes, classes)
    for number in range(draws):
        drawn = drawn_classes(classes, count, 1, number, CPU)
        drawn = drawn[drawn < classes][:count]
        assert len(drawn) == len(drawn.unique()) == count
        seen[drawn[:, None], drawn] += 1
    single, pairs = seen.diagonal(), seen[~torch.eye(classes, dtype=torch.bool)]
    expected, together = draws * count / classes, draws * count * (count - 1) / classes / (classes - 1)
    chi_square = float(((single - expected) ** 2 / expected).sum() * classes / (classes - count))
    assert chi_square < 70  # 39 degrees of freedom: 0.2 %
    assert float(pairs.std()) == pytest.approx(together**0.5, rel=0.1)
    assert float(pairs.mean()) == pytest.approx(together)


def test_draws_of_other_numbers_and_seeds_are_others() -> None:
    draws = {tuple(drawn_classes(1000, 20, *words, CPU).tolist()) for words in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 7)]}
    assert len(draws) == 5


def test_nothing_of_the_size_of_all_classes_is_made() -> None:
    """Two billion classes: an array of them would not fit."""
    drawn = draw_classes(torch.tensor([5, 2_000_000_000]), 2_000_000_001, 1000, 0, 0)
    assert drawn.shape == (1000,)
    assert (drawn[1:] > drawn[:-1]).all()


# a step


def test_only_sampled_rows_and_their_momentum_change_and_the_others_stay_bit_for_bit() -> None:
    for name in ("sgd", "adamw"):
        trained = head()
        optimizer = optimizer_of(trained, name=name)
        for step in range(6):
            before = trained.weight.detach().clone()
            state = {key: value.clone() for key, value in optimizer.state.get(trained.weight, {}).items()}
            labels = batch(step)[1]
            sampled = draw_classes(labels, IDENTITIES, 18, 0, step)
            train_step(trained, optimizer, step)
            rest = ~torch.isin(torch.arange(IDENTITIES), sampled)
            assert torch.equal(trained.weight[rest], before[rest])
            assert (trained.weight[~rest] != before[~rest]).any(dim=1).all()  # weight decay reaches every sampled row
            for key, value in state.items():
                if value.dim():
                    assert torch.equal(optimizer.state[trained.weight][key][rest], value[rest])
            gradient = trained.weight.grad
            assert gradient is not None
            assert gradient.is_sparse
            assert gradient.is_coalesced()
            assert torch.equal(gradient.indices()[0], sampled)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_row_that_comes_again_goes_on_where_it_was(name: str) -> None:
    """Each row equals an own dense optimizer that saw only the gradients of the steps in which the row was sampled."""
    trained = head(share=0.2)
    optimizer = optimizer_of(trained, name=name)
    rows = [trained.weight.detach()[n].double().requires_grad_() for n in range(IDENTITIES)]
    kind = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
    own = [kind([row], lr=0.05, weight_decay=0.01, **({"momentum": 0.9} if name == "sgd" else {})) for row in rows]
    times = torch.zeros(IDENTITIES, dtype=torch.int64)
    for step in range(12):
        train_step(trained, optimizer, step)
        gradient = trained.weight.grad
        assert gradient is not None
        for row, value in zip(gradient.indices()[0].tolist(), gradient.values(), strict=True):
            rows[row].grad = value.double()
            own[row].step()
            times[row] += 1
    assert int(times.min()) < int(times.max())
    assert int(times.max()) > 2
    torch.testing.assert_close(trained.weight.detach().double(), torch.stack(rows).detach(), rtol=1e-4, atol=1e-6)


def test_accumulation_adds_the_gradients_of_two_draws() -> None:
    trained = head()
    optimizer = optimizer_of(trained)
    dense = torch.zeros(IDENTITIES, SIZE)
    apart = copy.deepcopy(trained)
    for seed in (1, 2):
        apart.zero_grad()
        (apart(*batch(seed)) / 2).backward()
        dense += apart.weight.grad.to_dense()
    before = trained.weight.detach().clone()
    train_step(trained, optimizer, 1, 2)
    touched = (dense != 0).any(dim=1)
    expected = torch.where(touched[:, None], before - 0.05 * (dense + 0.01 * before), before)
    torch.testing.assert_close(trained.weight.detach(), expected)
    assert int(touched.sum()) > 18  # of two draws


def test_rows_that_move_have_a_dense_gradient_and_are_on_the_device() -> None:
    """Gradient accumulation adds to it; an epoch of draws later the rows that a step left out are not what they were."""
    trained = head(unsampled="move")
    optimizer = optimizer_of(trained)
    train_step(trained, optimizer, 1, 2)
    assert not trained.weight.grad.is_sparse
    before = trained.weight.detach().clone()
    train_step(trained, optimizer, 3)
    assert bool((trained.weight != before).any(dim=1).all())
    assert trained.footprint(6).gradient == trained.weight.nbytes + 18 * SIZE * 4
    with pytest.raises(UserError, match="unsampled=move moves all rows in every step, and place=host brings"):
        head(unsampled="move", place="host")


def test_the_scaler_unscales_skips_and_lowers_its_scale() -> None:
    trained, plain = head(), head()
    optimizer, unscaled = optimizer_of(trained), optimizer_of(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        train_step(plain, unscaled, step)
        optimizer.zero_grad()
        scaler.scale(trained(*batch(step))).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(trained.weight, plain.weight)
    before = trained.weight.detach().clone()
    optimizer.zero_grad()
    (scaler.scale(trained(*batch(9))) * float("inf")).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(trained.weight, before)
    assert scaler.get_scale() == 512.0


def test_the_schedule_and_a_dense_parameter_beside_the_rows() -> None:
    network, twin = torch.nn.Linear(SIZE, SIZE), torch.nn.Linear(SIZE, SIZE)
    twin.load_state_dict(network.state_dict())
    trained = head(share=1.0)
    full = FullFC(SIZE, IDENTITIES, CosFace(scale=16.0, margin=0.2))
    full.weight.data.copy_(trained.weight.data)
    pairs = [(network, trained, optimizer_of(network, trained)), (twin, full, optimizer_of(twin, full))]
    schedules = [build_schedule(optimizer, "cosine", total=5, warmup=2) for *_, optimizer in pairs]
    for step in range(5):
        for (net, fc, optimizer), schedule in zip(pairs, schedules, strict=True):
            optimizer.zero_grad()
            embeddings, labels = batch(step)
            fc(net(embeddings), labels).backward()
            optimizer.step()
            schedule.step()
    assert torch.equal(network.weight, twin.weight)
    assert torch.equal(trained.weight, full.weight)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("place", ["device", "host", "file"])
def test_a_resumed_run_is_the_uninterrupted_one(name: str, place: str, tmp_path) -> None:
    def built() -> tuple[PartialFC, torch.optim.Optimizer]:
        made = head(place=place, folder=tmp_path if place == "file" else None)
        stores = {made.weight: made.rows} if place != "device" else None
        return made, optimizer_of(made, name=name, stores=stores)

    whole, optimizer = built()
    losses = [train_step(whole, optimizer, step) for step in range(8)]
    cut, first = built()
    assert [train_step(cut, first, step) for step in range(4)] == losses[:4]
    saved = copy.deepcopy((cut.state_dict(), first.state_dict()))
    train_step(cut, first, 99)  # what happens after the save is not in it
    resumed, second = built()
    resumed.load_state_dict(saved[0])
    second.load_state_dict(saved[1])
    assert [train_step(resumed, second, step) for step in range(4, 8)] == losses[4:]
    assert torch.equal(resumed.weight, whole.weight)
    for key, value in optimizer.state[whole.weight].items():
        assert torch.equal(second.state[resumed.weight][key], value)


def test_eval_takes_the_next_draw_and_leaves_it_the_next() -> None:
    trained = head().eval()
    with torch.no_grad():
        first, second = trained(*batch(0)), trained(*batch(0))
    assert torch.equal(first, second)
    assert torch.equal(first, trained.train()(*batch(0)).detach())
    assert not torch.equal(first, trained(*batch(0)).detach())


def test_a_batch_larger_than_the_sample_keeps_all_its_classes() -> None:
    trained = head(share=0.01)
    embeddings, labels = torch.randn(30, SIZE), torch.arange(30)
    trained(embeddings, labels).backward()
    assert torch.equal(trained.weight.grad.coalesce().indices()[0], labels)


def test_a_step_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        trained = PartialFC(SIZE, IDENTITIES, Margin(), 0.5)
    trained = trained.to("meta")
    embeddings = torch.randn(5, SIZE, device="meta", requires_grad=True)
    loss = trained(embeddings, torch.zeros(5, dtype=torch.int64, device="meta"))
    assert loss.device.type == "meta"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: head(share=0.0),
            "PartialFC: share is 0.0, and must be above 0 and at most 1: share of the identities that a step sees",
        ),
        (
            lambda: head(share=1.5),
            "PartialFC: share is 1.5, and must be above 0 and at most 1: share of the identities that a step sees",
        ),
        (lambda: PartialFC(SIZE, 0, Margin()), "identities is 0: a classifier needs at least 1 identity"),
        (
            lambda: head()(torch.zeros(1, SIZE), torch.tensor([60])),
            "label 60 is outside 0 to 59: build the head with identities = the data set's number of identities",
        ),
        (lambda: RowStore("disc"), "place is 'disc': choose one of device, host, file"),
        (lambda: RowStore("file"), "place=file needs folder: a folder on a fast disk"),
    ],
)
def test_wrong_options_are_refused_in_one_line(make, message: str) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


# rows elsewhere


def test_rows_in_a_file_are_the_rows_in_memory_and_leave_nothing_behind(tmp_path) -> None:
    filed, memory = head(place="file", folder=tmp_path / "new" / "folder"), head()
    store = filed.rows
    pairs = [(filed, optimizer_of(filed, stores={filed.weight: store})), (memory, optimizer_of(memory))]
    for step in range(5):
        first, second = (train_step(trained, optimizer, step) for trained, optimizer in pairs)
        assert first == second
    assert torch.equal(filed.weight, memory.weight)
    assert [tensor.shape for tensor in store._mapped] == [(IDENTITIES, SIZE)] * 2  # rows and momentum
    momentum = pairs[0][1].state[filed.weight]["momentum_buffer"]
    assert momentum.data_ptr() == store._mapped[1].data_ptr()
    assert filed.weight.data_ptr() == store._mapped[0].data_ptr()
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_checkpoint_is_read_into_the_file_and_not_into_memory(name: str, tmp_path) -> None:
    def built() -> tuple[PartialFC, torch.optim.Optimizer, ShardedState]:
        made = head(place="file", folder=tmp_path)
        optimizer = optimizer_of(made, name=name, stores={made.weight: made.rows})
        return made, optimizer, ShardedState(made.row_shards(), made, optimizer, ALONE)

    whole, first, _ = built()
    for step in range(4):
        train_step(whole, first, step)
    path = save_checkpoint(tmp_path / "checkpoints", 4, {"head": whole.state_dict(), "optimizer": first.state_dict()})
    losses = [train_step(whole, first, step) for step in range(4, 7)]
    resumed, second, sharded = built()
    state = load_checkpoint(path, place=sharded.place)
    assert state["head"]["weight"].data_ptr() == resumed.weight.data_ptr()
    resumed.load_state_dict(state["head"])
    second.load_state_dict(state["optimizer"])
    kept = [value for value in second.state[resumed.weight].values() if value.shape == resumed.weight.shape]
    mapped = resumed.rows._mapped
    assert [tensor.data_ptr() for tensor in [resumed.weight, *kept]] == [tensor.data_ptr() for tensor in mapped]
    assert len(kept) == (1 if name == "sgd" else 2)
    assert [train_step(resumed, second, step) for step in range(4, 7)] == losses
    assert [resumed.weight.data_ptr(), *(tensor.data_ptr() for tensor in kept)] == [t.data_ptr() for t in mapped]


def test_what_is_prefetched_is_the_next_draw_and_the_batch_is_the_rest(tmp_path) -> None:
    trained = head(place="file", folder=tmp_path)
    asked = []
    trained.rows.touch = asked.append  # type: ignore[method-assign, assignment]
    for step in range(5):
        trained(*batch(step)).backward()
        trained.rows.thread.settle()
        sampled = draw_classes(batch(step + 1)[1], IDENTITIES, 18, 0, step + 1)
        assert torch.isin(sampled, torch.cat([asked[step], batch(step + 1)[1]])).all()
    plain = RowStore("file", tmp_path)
    plain.zeros(IDENTITIES, 2000)  # two pages a row: 8,000 bytes
    assert plain.touch(torch.arange(7)) == 7 * 3


def test_rows_on_the_host_stay_there_as_they_are(tmp_path) -> None:
    for place, folder in (("host", None), ("file", tmp_path)):
        trained = head(place=place, folder=folder)
        address = trained.weight.data_ptr()
        trained.double().to("meta")
        assert trained.weight.data_ptr() == address
        assert trained.weight.dtype == torch.float32
        assert dict(trained.named_parameters()).keys() == {"weight"}
    assert head().to("meta").weight.device.type == "meta"


def test_a_disk_without_room_is_a_user_error(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attfc.heads.banks.row_store._reserve", full)
    with pytest.raises(
        UserError, match=r"cannot make a file of 0\.00 GiB for rows in folder=.*: No space left on device"
    ):
        head(place="file", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_the_host_has_no_memory_for_are_refused_before_they_are_written() -> None:
    with pytest.raises(
        UserError, match=r"rows of 4194304\.00 GiB do not fit the host memory, of which [\d.]+ GiB are free"
    ):
        RowStore("host").zeros(2**30, 2**20)


# torch's own optimizers


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-4),
            "torch.optim.SGD with weight_decay=0.0005 cannot train rows with a sparse gradient, such as those of PartialFC: "
            "use attfc.RowSGD(parameters, lr=..., momentum=..., weight_decay=...)",
        ),
        (
            lambda groups: torch.optim.AdamW(groups, lr=0.001),
            "torch.optim.AdamW cannot train rows with a sparse gradient, such as those of PartialFC: "
            "use attfc.RowAdamW(parameters, lr=..., weight_decay=...)",
        ),
        (
            lambda groups: torch.optim.RMSprop(groups),
            "torch.optim.RMSprop cannot train rows with a sparse gradient, such as those of PartialFC: "
            "use attfc.RowSGD(parameters, lr=..., momentum=..., weight_decay=...)",
        ),
    ],
)
def test_optimizers_that_refuse_sparse_gradients_name_those_that_take_them(build, message: str) -> None:
    backbone, head = torch.nn.Linear(6, 4), PartialFC(4, 50, Margin(scale=16.0))
    before = [parameter.detach().clone() for parameter in (*backbone.parameters(), head.weight)]
    optimizer = build([*backbone.parameters(), *head.parameters()])
    head(backbone(torch.randn(8, 6)), torch.arange(8)).backward()
    with pytest.raises(UserError) as error:
        optimizer.step()
    assert str(error.value) == message
    assert all(map(torch.equal, before, (*backbone.parameters(), head.weight)))


def test_public_row_optimizers_take_plain_parameters_and_torchs_arguments() -> None:
    for build in (
        lambda parameters: attfc.RowSGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4),
        lambda parameters: attfc.RowAdamW(parameters, lr=0.01, weight_decay=5e-4),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),  # torch's takes them without decay
    ):
        torch.manual_seed(0)
        backbone, head = torch.nn.Linear(6, 4), attfc.PartialFC(4, 50, Margin(scale=16.0))
        optimizer = build([*backbone.parameters(), *head.parameters()])
        images, labels = torch.randn(8, 6), torch.arange(8)
        losses = []
        for _ in range(10):
            loss = head(backbone(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 1


def test_row_sgd_is_torchs_sgd_where_gradients_are_dense() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 6)
    found = []
    for build in (torch.optim.SGD, attfc.RowSGD):
        torch.manual_seed(1)
        layer = torch.nn.Linear(6, 4)
        optimizer = build(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            layer(images).square().sum().backward()
            optimizer.step()
        found.append(layer.weight.detach())
    assert torch.equal(*found)
