"""ND: class means, their key, the projector, KD++ end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_images import ToyImageData, fit, toy_teacher

from vlkd.cache import store
from vlkd.errors import UserError
from vlkd.methods.nd import ND
from vlkd.methods.nd.means import class_means, teacher_class_means

GOLDEN = Path(__file__).parents[1] / "golden"
STUDENT: dict[str, Any] = {"student": "toy_images:ToyNet", "image_size": 16, "lr": 0.01}
WEIGHTS = {"ce": 1.0, "kd": 1.0, "nd": 2.0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))


def test_class_means_as_recorded() -> None:
    recorded = np.load(GOLDEN / "nd_class_means.npz")
    features, labels = torch.from_numpy(recorded["embeddings"]), torch.from_numpy(recorded["labels"])
    rounded = class_means(features, labels, 5, decimals=4)
    np.testing.assert_allclose(rounded, recorded["class_means"], rtol=0, atol=1e-12)
    exact = class_means(features, labels, 5)
    np.testing.assert_allclose(exact, recorded["class_means_unrounded_f64"], rtol=1e-12)


def test_means_are_computed_once_and_keyed(tmp_path: Path) -> None:
    method = ND(**STUDENT, teacher=toy_teacher(tmp_path), weights=WEIGHTS)
    data = ToyImageData()
    data.setup()
    means, counts = teacher_class_means(method.teacher, data, torch.device("cpu"))
    images, labels = data.train_set.images, data.train_set.labels
    pooled = method.teacher.outputs(images).pooled.detach()
    for k in range(4):
        torch.testing.assert_close(means[k], pooled[labels == k].mean(0), rtol=1e-5, atol=1e-6)
    assert counts.tolist() == [12, 12, 12, 12]

    def refuse(augmented: bool) -> None:
        raise AssertionError("the stored means were not used")

    data.train_pass = refuse  # type: ignore
    again, _ = teacher_class_means(method.teacher, data, torch.device("cpu"))
    assert torch.equal(again, means)
    with pytest.raises(AssertionError, match="not used"):
        teacher_class_means(method.teacher, data, torch.device("cpu"), augmented=False)
    with torch.no_grad():
        method.teacher.head.weight.add_(1)
    with pytest.raises(AssertionError, match="not used"):
        teacher_class_means(method.teacher, data, torch.device("cpu"))


def test_a_file_of_another_teacher_is_refused(tmp_path: Path) -> None:
    stored = tmp_path / "means.safetensors"
    tensors = {"class_means": torch.zeros(4, 24), "counts": torch.ones(4, dtype=torch.int64)}
    store(stored, tensors, {"key": "another"})
    method = ND(**STUDENT, teacher=toy_teacher(tmp_path), weights=WEIGHTS, class_means=str(stored))
    with pytest.raises(UserError, match=r"means\.safetensors: class means of another teacher, data set"):
        fit(method, ToyImageData(), 1, tmp_path)
    (tmp_path / "means.safetensors").write_text("no tensors")
    with pytest.raises(UserError, match="not a file of class means"):
        fit(method, ToyImageData(), 1, tmp_path)


def test_a_class_without_images(tmp_path: Path) -> None:
    data = ToyImageData(missing=2)
    method = ND(**STUDENT, teacher=toy_teacher(tmp_path), weights=WEIGHTS)
    with pytest.raises(UserError, match=r"1 classes have no training image .*\(blue\)"):
        fit(method, data, 1, tmp_path)
    skipping = ND(**STUDENT, teacher=toy_teacher(tmp_path), weights=WEIGHTS, missing_classes="skip")
    fit(skipping, data, 2, tmp_path)
    batch = next(iter(data.train_dataloader()))
    known = skipping.compute_losses({**batch, "labels": torch.zeros(8, dtype=torch.int64)})["nd"]
    empty = skipping.compute_losses({**batch, "labels": torch.full((8,), 2)})["nd"]
    assert known.item() > 0 and empty.item() == 0


@pytest.mark.parametrize(("width", "projected"), [(12, False), (8, True)])
def test_projector_only_where_widths_differ(width: int, projected: bool, tmp_path: Path) -> None:
    method = ND(**STUDENT, student_arguments={"width": width}, teacher=toy_teacher(tmp_path), weights=WEIGHTS)
    assert bool(list(method.terms["nd"].parameters())) == projected
    data = ToyImageData()
    fit(method, data, 3, tmp_path)
    losses = method.compute_losses(next(iter(data.train_dataloader())))
    assert losses.keys() == WEIGHTS.keys()
    method.zero_grad()
    losses["nd"].backward()
    reached = {name.split(".")[0] for name, value in method.named_parameters() if value.grad is not None}
    assert reached == ({"student", "terms"} if projected else {"student"})
    assert not any(name.endswith("class_means") for name in method.state_dict())


def test_unknown_option_of_the_projector(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.options\.nd\.droput: no such option; nd takes .*dropout"):
        ND(**STUDENT, teacher=toy_teacher(tmp_path), weights=WEIGHTS, options={"nd": {"droput": 0.1}})
