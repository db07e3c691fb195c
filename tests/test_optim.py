"""The schedule by hand, Muon by hand, and its plain part against torch's SGD."""

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from litcifar.config import plain
from litcifar.models import MLP, ConvPool, ImageClassifier
from litcifar.optim import Muon, Triangular, orthogonalize
from tests.conftest import Compose


def weights(*shapes: tuple[int, ...], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def reloaded(state: Any) -> Any:
    """What a checkpoint gives back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# --- Triangular


def rates(optimizer: Optimizer, scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """Each group's learning rate in each step, and after the last."""
    groups = optimizer.param_groups
    rates = [[group["lr"]] for group in groups]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        for of_group, group in zip(rates, groups, strict=True):
            of_group.append(group["lr"])
    return rates


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start": 0.5, "peak": 0.25, "end": 0.25}, [0.5, 0.75, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25]),
        ({"start": 0.5, "peak": 0, "end": 0.0}, [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0]),
        ({"start": 0.0, "peak": 0.5, "end": 0.0}, [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0]),
    ],
)
def test_the_rate_rises_to_the_peak_and_falls_to_the_end(options: dict[str, float], expected: list[float]) -> None:
    optimizer = SGD(weights((1,)), lr=2.0)
    assert rates(optimizer, Triangular(optimizer, total_steps=8, **options), 8) == [[2 * factor for factor in expected]]


def test_a_group_may_end_early_and_keeps_its_own_rate() -> None:
    a, b = weights((1,), (1,))
    groups: list[dict[str, Any]] = [{"params": [a]}, {"params": [b], "lr": 4.0, "until": 0.5}]
    optimizer = SGD(groups, lr=1.0)
    scheduler = Triangular(optimizer, total_steps=8, start=0.5, peak=0.5, end=0.25)
    expected_b = [2.0, 3.0, 4.0, 2.5, 1.0, 0.0, 0.0, 0.0, 0.0]
    expected_a = [0.5, 0.625, 0.75, 0.875, 1.0, 0.8125, 0.625, 0.4375, 0.25]
    assert rates(optimizer, scheduler, 8) == [expected_a, expected_b]


@pytest.mark.parametrize("total_steps", [100, 264, 352])
def test_by_default_it_is_a_linear_one_cycle_within_a_steps_rounding(total_steps: int) -> None:
    a, b = SGD(weights((1,)), lr=1.0), SGD(weights((1,)), lr=1.0)
    torchs = OneCycleLR(
        b,
        max_lr=1.0,
        total_steps=total_steps,
        pct_start=0.23,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=5.0,
        final_div_factor=0.2 / 0.07,
    )
    (of_ours,), (of_torchs,) = rates(a, Triangular(a, total_steps), total_steps - 1), rates(b, torchs, total_steps - 1)
    one_step = 0.8 / (0.23 * total_steps)
    assert all(abs(a - b) <= one_step * 1.001 for a, b in zip(of_ours, of_torchs, strict=True))


def test_a_resumed_schedule_is_the_uninterrupted_one() -> None:
    def fresh() -> tuple[SGD, Triangular]:
        a, b = weights((1,), (1,))
        groups: list[dict[str, Any]] = [{"params": [a]}, {"params": [b], "lr": 4.0, "until": 0.3}]
        optimizer = SGD(groups, lr=0.7)
        return optimizer, Triangular(optimizer, total_steps=17)

    whole = rates(*fresh(), 17)
    optimizer, scheduler = fresh()
    first = rates(optimizer, scheduler, 6)
    saved = reloaded({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    optimizer, scheduler = fresh()
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    assert [a[:-1] + b for a, b in zip(first, rates(optimizer, scheduler, 11), strict=True)] == whole


@pytest.mark.parametrize(
    "options",
    [{"total_steps": 0}, {"peak": 1.0}, {"peak": -0.1}, {"until": 0.0}, {"until": 1.1}, {"start": -0.1}, {"end": -0.1}],
)
def test_a_schedule_outside_the_run_is_refused(options: dict[str, Any]) -> None:
    until = options.pop("until", 1.0)
    optimizer = SGD([{"params": weights((1,)), "until": until}], lr=1.0)
    with pytest.raises(ValueError, match="out of range"):
        Triangular(optimizer, **{"total_steps": 10, **options})


# --- Muon


def quintic(singular: float, steps: int = 1) -> float:
    for _ in range(steps):
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    return singular


def test_a_newton_schulz_iteration_is_a_polynomial_of_the_singular_values() -> None:
    assert quintic(0.6) == pytest.approx(1.193269, abs=1e-6)
    assert quintic(0.8) == pytest.approx(0.976482, abs=1e-6)
    angle = torch.tensor(0.3)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    matrix = 10 * turn @ torch.diag(torch.tensor([0.6, 0.8])) @ turn
    expected = turn @ torch.diag(torch.tensor([1.193269, 0.976482])) @ turn
    torch.testing.assert_close(orthogonalize(matrix, steps=1), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(16, 16), (8, 72), (60, 12)])
def test_orthogonalising_leaves_the_singular_vectors_and_makes_the_values_about_1(shape: tuple[int, int]) -> None:
    (matrix,) = weights(shape)
    u, before, v = torch.linalg.svd(matrix.detach(), full_matrices=False)
    turned = u.T @ orthogonalize(matrix.detach(), steps=5) @ v.T
    after = turned.diagonal()
    torch.testing.assert_close(turned, after.diag(), rtol=0, atol=1e-4)
    assert before.max() / before.min() > 1.5
    assert 0.68 < after.min() < after.max() < 1.21


def test_two_steps_by_hand() -> None:
    """Diagonal matrices stay diagonal, so that each entry is a number of its own."""
    weight = nn.Parameter(torch.diag(torch.tensor([2.0, 2.0])))
    optimizer = Muon([weight], lr=0.1, momentum=0.5, orthogonal=True, steps=1)
    weight.grad = torch.diag(torch.tensor([3.0, 4.0]))
    optimizer.step()
    # Renormalised to norm sqrt(2), that is (1, 1); momentum (3, 4), with Nesterov's look ahead (4.5, 6).
    w = [1 - 0.1 * quintic(0.6), 1 - 0.1 * quintic(0.8)]
    torch.testing.assert_close(weight.detach(), torch.diag(torch.tensor(w)))
    weight.grad = torch.diag(torch.tensor([4.0, -3.0]))
    optimizer.step()
    # Momentum (0.5 * 3 + 4, 0.5 * 4 - 3) = (5.5, -1), with the look ahead (4 + 2.75, -3 - 0.5).
    factor, norm = (2 / (w[0] ** 2 + w[1] ** 2)) ** 0.5, (6.75**2 + 3.5**2) ** 0.5
    expected = [w[0] * factor - 0.1 * quintic(6.75 / norm), w[1] * factor + 0.1 * quintic(3.5 / norm)]
    torch.testing.assert_close(weight.detach(), torch.diag(torch.tensor(expected)))


def test_without_renormalising_weights_decay() -> None:
    weight = nn.Parameter(torch.diag(torch.tensor([2.0, 2.0])))
    weight.grad = torch.diag(torch.tensor([3.0, 4.0]))
    Muon([weight], lr=0.1, weight_decay=0.5, orthogonal=True, renormalize=False, steps=1).step()
    expected = [2 * 0.95 - 0.1 * quintic(0.6), 2 * 0.95 - 0.1 * quintic(0.8)]
    torch.testing.assert_close(weight.detach(), torch.diag(torch.tensor(expected)))


@pytest.mark.parametrize("shape", [(8, 3, 3, 3), (40, 2, 3, 3), (6, 20)])
def test_a_step_has_singular_values_of_about_1_whatever_the_gradients_scale(shape: tuple[int, ...]) -> None:
    steps = []
    for scale in (1.0, 1e-6):
        (weight,) = weights(shape)
        before = weight.detach() * len(weight) ** 0.5 / weight.detach().norm()
        weight.grad = scale * weights(shape, seed=1)[0].detach()
        Muon([weight], lr=0.5, momentum=0.6, orthogonal=True, steps=5).step()
        steps.append((before - weight.detach()) / 0.5)
    values = torch.linalg.svdvals(steps[0].flatten(1))
    assert 0.68 < values.min() < values.max() < 1.21
    torch.testing.assert_close(steps[0], steps[1], rtol=0, atol=1e-4)


def trained(optimizer: Optimizer, parameters: list[nn.Parameter], seeds: range) -> list[Tensor]:
    for seed in seeds:
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        for parameter, gradient in zip(parameters, weights(*(p.shape for p in parameters), seed=seed), strict=True):
            parameter.grad = gradient.detach()
        optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("options", [{"momentum": 0.85, "nesterov": True, "weight_decay": 0.1}, {"momentum": 0.9}, {}])
def test_other_groups_are_torchs_sgd_bit_for_bit(options: dict[str, Any], fused: bool) -> None:
    shapes = (7,), (8, 5), (4, 3, 3, 3)
    options = {"lr": 0.1, "nesterov": False, "fused": fused, **options}
    ours, torchs = weights(*shapes), weights(*shapes)
    a = trained(Muon(ours, **options), ours, range(5))
    b = trained(SGD(torchs, **options), torchs, range(5))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_each_group_takes_its_own_kind_of_step() -> None:
    shapes = (8, 5), (7,)
    both = weights(*shapes)
    groups: list[dict[str, Any]] = [
        {"params": both[:1], "orthogonal": True, "lr": 0.3, "momentum": 0.6},
        {"params": both[1:]},
    ]
    alone, sgd = weights(*shapes), weights(*shapes)
    a = trained(Muon(groups, lr=0.1, momentum=0.9), both, range(3))
    b = trained(Muon(alone[:1], lr=0.3, momentum=0.6, orthogonal=True), alone, range(3))
    c = trained(SGD(sgd[1:], lr=0.1, momentum=0.9, nesterov=True, fused=True), sgd, range(3))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], c[1])


def muon(parameters: list[nn.Parameter]) -> Muon:
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim == 1]
    groups: list[dict[str, Any]] = [{"params": vectors}, {"params": matrices, "orthogonal": True, "momentum": 0.6}]
    return Muon(groups, lr=0.1, momentum=0.85, weight_decay=0.01)


def test_a_resumed_muon_is_the_uninterrupted_one() -> None:
    shapes = (7,), (8, 5), (4, 3, 3, 3)
    whole = weights(*shapes)
    expected = trained(muon(whole), whole, range(6))
    first = weights(*shapes)
    optimizer = muon(first)
    trained(optimizer, first, range(3))
    saved = reloaded({"weights": first, "optimizer": optimizer.state_dict()})
    second = saved["weights"]
    optimizer = muon(second)
    optimizer.load_state_dict(saved["optimizer"])
    assert all(torch.equal(a, b) for a, b in zip(trained(optimizer, second, range(3, 6)), expected, strict=True))


def test_parameters_without_a_gradient_stay_as_they_are() -> None:
    parameters = weights((7,), (8, 5), (4, 3, 3, 3))
    muon(parameters).step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, weights((7,), (8, 5), (4, 3, 3, 3)), strict=True))


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"momentum": -0.1}, {"weight_decay": -1.0}, {"steps": 0}])
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
        Muon(weights((2, 2)), **{"lr": 0.1, **options})


def test_vectors_cannot_be_orthogonalised() -> None:
    with pytest.raises(ValueError, match=r"two dimensions or more, not \(7,\)"):
        Muon(weights((2, 2), (7,)), lr=0.1, orthogonal=True)


@pytest.mark.parametrize("network", [MLP, ConvPool])
def test_conf_optim_muon_trains_any_network(compose: Compose, network: type[ImageClassifier]) -> None:
    torch.manual_seed(0)
    model = network(image_size=8, optim=plain(compose("optim=muon"))["optim"])
    optimizer = model.recipe(total_steps=20)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (30, 8, 8, 3), dtype=torch.uint8, generator=generator)
    losses = []
    for _ in range(20):
        loss = cross_entropy(model(images), torch.arange(30) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2.3, abs=0.1)
    assert losses[-1] < 0.5
