import math
from dataclasses import replace

import torch
from torch import Tensor

from dynarep.pipeline.methods.rewards.rnd import Distillation, RNDConfig, novelty_reward, prediction_error, transitions

SMALL = RNDConfig(hidden=(32, 32), embedding_dim=8)


def points(replicas: int = 2, steps: int = 200, dim: int = 3) -> Tensor:
    """Along a circle in a plane, another one for each replica."""
    angle = torch.linspace(0.0, 6.0, steps)
    circle = torch.stack([angle.cos(), angle.sin(), *[torch.zeros(steps)] * (dim - 2)], -1)
    return torch.stack([circle * (1 + i) for i in range(replicas)])


def learner(c: RNDConfig = SMALL, replicas: int = 2, dim: int = 3) -> Distillation:
    torch.manual_seed(0)
    return Distillation(c, replicas, torch.zeros(1, dim), torch.ones(1))


def trained(model: Distillation, pairs: Tensor, updates: int = 300) -> Distillation:
    optimizer = torch.optim.Adam([p for group in model.parameter_groups() for p in group["params"]], lr=1e-3)
    for _ in range(updates):
        optimizer.zero_grad()
        model.losses(pairs).loss.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.after_update()
    return model


def test_transitions_end_with_the_last_point_twice() -> None:
    found = transitions(torch.tensor([[[0.0], [1.0], [2.0]], [[5.0], [6.0], [8.0]]]))
    assert found.tolist() == [[[0, 1], [1, 2], [2, 2]], [[5, 6], [6, 8], [8, 8]]]
    assert transitions(torch.tensor([[[3.0]]])).tolist() == [[[3.0, 3.0]]]


def test_error_and_reward_by_hand() -> None:
    prediction, target = torch.tensor([[[1.0, 2.0, 0.0, 0.0]]]), torch.tensor([[[1.0, 0.0, 2.0, 0.0]]])
    error = prediction_error(prediction, target)
    assert error.tolist() == [[2.0]]  # (4 + 4) / 4
    torch.testing.assert_close(novelty_reward(error, 10.0, 5.0), torch.tensor([[10.0 * math.exp(-10.0)]]))


def test_a_predictor_that_is_the_target_pays_nothing() -> None:
    model = learner()
    model.predictor.load_state_dict(model.target.state_dict())
    error = model.error(transitions(points()))
    assert error.shape == (2, 200)
    assert (error == 0).all()
    assert (novelty_reward(error, 10.0, 5.0) == 10.0).all()


def test_what_was_learned_is_predicted_better_than_what_is_far() -> None:
    pairs = transitions(points())
    model = learner()
    before, target = model.error(pairs).mean(1), [p.clone() for p in model.target.parameters()]
    trained(model, pairs)
    near = model.error(pairs).mean(1)
    assert (near < 0.05 * before).all()
    for far in (pairs + torch.tensor([0.0, 0, 3, 0, 0, 3]), 4.0 * pairs, 0.0 * pairs):  # above, outside and inside
        assert (model.error(far).mean(1) > 20 * near).all()
    assert all(torch.equal(old, new) for old, new in zip(target, model.target.parameters(), strict=True))
    assert not any(p.requires_grad for p in model.target.parameters())


def test_loss_is_the_mean_error_and_replicas_are_apart() -> None:
    pairs = transitions(points())
    model = learner()
    loss = model.losses(pairs).loss
    torch.testing.assert_close(loss, model.error(pairs).mean(1))
    loss[0].backward()  # type: ignore[no-untyped-call]
    for parameter in model.predictor.parameters():
        assert parameter.grad is not None
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1].abs().sum() == 0


def test_points_of_one_replica_are_shown_to_all() -> None:
    model, one = learner(), transitions(points(1))
    torch.testing.assert_close(model.error(one), model.error(one.expand(2, -1, -1)))
    assert not torch.allclose(model.error(one)[0], model.error(one)[1])


def test_inputs_lose_their_place_and_scale_but_not_their_shape() -> None:
    x, shift = points(), torch.tensor([3.0, -1.0, 2.0])
    plain, moved = learner(), learner()
    moved.mean, moved.unit = torch.cat([shift, shift])[None, None], torch.tensor([[[10.0]]])
    expected = plain.error(transitions(x))
    torch.testing.assert_close(moved.error(transitions(10 * x + shift)), expected, rtol=1e-3, atol=1e-4)
    for other in (10 * x, x + shift, x * torch.tensor([1.0, 5.0, 1.0])):
        assert not torch.allclose(plain.error(transitions(other)), expected, rtol=0.1)


def test_inputs_as_they_come() -> None:
    x = transitions(points())
    model = learner(replace(SMALL, normalise=False))
    expected = model.error(x)
    model.mean, model.unit = torch.full((1, 1, 6), 3.0), torch.tensor([[[10.0]]])
    assert torch.equal(model.error(x), expected)
    torch.testing.assert_close(expected, prediction_error(model.predictor(x), model.target(x)))
