import math

import pytest
import torch
from toy_method import Toy

from vlkd.errors import UserError
from vlkd.methods.base import batch_size, learning_rate_factor

WEIGHTS = {"ce": 1.0, "kd": 0.5}


def batch() -> dict[str, torch.Tensor]:
    return {"images": torch.randn(6, 4), "labels": torch.randint(2, (6,))}


def test_teacher_is_outside_the_module_tree() -> None:
    method = Toy(WEIGHTS)
    assert not any("teacher" in name for name in method.state_dict())
    teacher = method.held("teacher")
    held = {id(parameter) for parameter in teacher.parameters()}
    assert not held & {id(parameter) for parameter in method.parameters()}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    method.train()
    assert not teacher.training


def test_teacher_follows_the_device_and_stays_in_eval_mode() -> None:
    method = Toy(WEIGHTS)
    method.held("teacher").train()
    method._device = torch.device("meta")
    method.on_fit_start()
    assert next(method.held("teacher").parameters()).device.type == "meta"
    assert not method.held("teacher").training


def test_gradients_reach_the_student_and_nothing_else() -> None:
    method = Toy(WEIGHTS)
    method.weighted_sum(method.compute_losses(batch())).backward()
    assert all(parameter.grad is not None for parameter in method.student.parameters())
    assert all(parameter.grad is None for parameter in method.held("teacher").parameters())


def test_weighted_sum() -> None:
    losses = {"ce": torch.tensor(2.0), "kd": torch.tensor(3.0)}
    assert Toy(WEIGHTS).weighted_sum(losses) == pytest.approx(3.5)
    with pytest.raises(UserError, match=r"model\.weights\.kd: missing"):
        Toy({"ce": 1.0}).weighted_sum(losses)
    with pytest.raises(UserError, match=r"model\.weights\.x: no such loss"):
        Toy({**WEIGHTS, "x": 0.0}).weighted_sum(losses)


def test_optimizer_groups() -> None:
    class Grouped(Toy):
        def parameter_groups(self) -> dict:
            return {"backbone": self.student[0].parameters(), "head": self.student[1:].parameters()}

    method = Grouped(WEIGHTS, lr=0.1, weight_decay=0.3, backbone_lr_scale=0.1, schedule="constant")
    method.student[3].weight.requires_grad_(False)
    optimizer = method.configure_optimizers()
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    linear, norm, _, head = method.student
    assert found == {
        id(linear.weight): (pytest.approx(0.01), 0.3),
        id(linear.bias): (pytest.approx(0.01), 0.0),
        id(norm.weight): (0.1, 0.0),
        id(norm.bias): (0.1, 0.0),
        id(head.bias): (0.1, 0.0),
    }


def test_learning_rate_course() -> None:
    assert [learning_rate_factor(step, 20, 4, "cosine") for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert learning_rate_factor(4, 20, 4, "cosine") == 1.0
    assert learning_rate_factor(12, 20, 4, "cosine") == pytest.approx(0.5)
    assert learning_rate_factor(20, 20, 4, "cosine") == pytest.approx(0.0)
    assert learning_rate_factor(8, 20, 4, "cosine") == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate_factor(12, 20, 4, "poly") == pytest.approx(0.5**0.9)
    assert learning_rate_factor(99, 20, 4, "poly") == 0.0
    assert learning_rate_factor(99, 20, 0, "constant") == 1.0


def test_load_student_refuses_what_does_not_fit() -> None:
    method = Toy(WEIGHTS)
    _, tensors = Toy(WEIGHTS).bundle()
    method.load_student({name: tensor.half() for name, tensor in tensors.items()})
    torch.testing.assert_close(method.student[0].weight, tensors["student.0.weight"], atol=1e-3, rtol=1e-3)
    assert method.student[0].weight.dtype == torch.float32
    with pytest.raises(UserError, match="belongs to another method"):
        method.load_student({"model.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"student\.3\.bias is missing"):
        method.load_student({name: tensor for name, tensor in tensors.items() if name != "student.3.bias"})
    with pytest.raises(UserError, match=r"student\.0\.weight is \(9, 4\), expected \(8, 4\)"):
        method.load_student({**tensors, "student.0.weight": torch.zeros(9, 4)})


def test_batch_size() -> None:
    assert batch_size({"ids": ["a"], "images": torch.zeros(3, 1)}) == 3
    assert batch_size([1, 2]) == 2
