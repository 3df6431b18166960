import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from vlkd.errors import UserError
from vlkd.text import ClassVectors, class_names, templates


class FakeEncoder:
    """A vector for each text, from its hash; remembers what it was asked."""

    logit_scale = 50.0

    def __init__(self, identity: str = "fake@0123") -> None:
        self.identity = identity
        self.asked: list[str] = []

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        self.asked += texts
        seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") for text in texts]
        rows = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        return normalize(rows, dim=1)


def unit(rows: int, width: int = 8) -> torch.Tensor:
    return normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(0)), dim=1)


def test_build_averages_unit_vectors_over_templates() -> None:
    encoder = FakeEncoder()
    built = ClassVectors.build(["car", "tree"], encoder, "vild")
    assert built.names == ("car", "tree") and built.templates == templates("vild")
    assert built.encoder == "fake@0123" and built.logit_scale == 50.0
    assert built.vectors.dtype == torch.float32 and built.vectors.shape == (2, 8) and built.width == 8
    prompts = FakeEncoder().encode_text([template.format("tree") for template in templates("vild")])
    torch.testing.assert_close(built.vectors[1], normalize(prompts.mean(0), dim=0))


def test_aliases_are_averaged_after_their_templates() -> None:
    prompts = ("a {}", "the {}")
    both = ClassVectors.build(["tree", "car|automobile"], FakeEncoder(), prompts)
    words = ClassVectors.build(["car", "automobile"], FakeEncoder(), prompts)
    torch.testing.assert_close(both.vectors[1], normalize(words.vectors.mean(0), dim=0))
    assert both.names == ("tree", "car|automobile")


def test_large_vocabulary_in_batches_equals_one_by_one() -> None:
    names = [f"thing {i}" for i in range(300)]
    prompts = ("{}", "a {}", "{}!")
    built = ClassVectors.build(names, FakeEncoder(), prompts)
    alone = ClassVectors.build(names[299:], FakeEncoder(), prompts)
    torch.testing.assert_close(built.vectors[299:], alone.vectors)


def test_underscores_never_reach_the_encoder() -> None:
    encoder = FakeEncoder()
    ClassVectors.build(["giant_panda", "traffic_light|stop_light"], encoder, "photo")
    assert encoder.asked == [
        "a photo of a giant panda",
        "a photo of a traffic light",
        "a photo of a stop light",
    ]


def test_cache_hit_does_not_call_the_encoder(tmp_path: Path) -> None:
    first = ClassVectors.build(["car", "tree"], FakeEncoder(), cache=tmp_path)
    encoder = FakeEncoder()
    again = ClassVectors.build(["car", "tree"], encoder, cache=tmp_path)
    assert encoder.asked == [] and again.names == first.names and again.logit_scale == first.logit_scale
    assert torch.equal(again.vectors, first.vectors)


@pytest.mark.parametrize(
    ("names", "prompts", "identity"),
    [
        (["tree", "car"], "bare", "fake@0123"),
        (["car", "tree"], "photo", "fake@0123"),
        (["car", "tree"], "bare", "fake@9999"),
    ],
)
def test_cache_misses_on_order_templates_and_encoder(
    tmp_path: Path, names: list[str], prompts: str, identity: str
) -> None:
    ClassVectors.build(["car", "tree"], FakeEncoder(), "bare", cache=tmp_path)
    encoder = FakeEncoder(identity)
    ClassVectors.build(names, encoder, prompts, cache=tmp_path)
    assert encoder.asked and len(list(tmp_path.iterdir())) == 2


def test_cache_file_under_a_wrong_key_or_damaged_is_built_again(tmp_path: Path) -> None:
    right = ClassVectors.build(["car"], FakeEncoder(), cache=tmp_path)
    (file,) = tmp_path.iterdir()
    ClassVectors.build(["boat"], FakeEncoder()).save(file)
    with pytest.warns(UserWarning, match="other class vectors"):
        again = ClassVectors.build(["car"], FakeEncoder(), cache=tmp_path)
    assert torch.equal(again.vectors, right.vectors)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.warns(UserWarning, match="damaged"):
        again = ClassVectors.build(["car"], FakeEncoder(), cache=tmp_path)
    assert torch.equal(again.vectors, right.vectors)
    assert torch.equal(ClassVectors.load(file).vectors, right.vectors)


def test_default_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path))
    built = ClassVectors.build(["car"], FakeEncoder(), cache=True)
    assert [path.name for path in (tmp_path / "class_vectors").iterdir()] == [f"{built.key}.safetensors"]


def test_save_and_load_are_exact(tmp_path: Path) -> None:
    built = ClassVectors.build(["car|automobile", "Straße"], FakeEncoder(), "vild")
    built.save(tmp_path / "vectors.safetensors")
    loaded = ClassVectors.load(tmp_path / "vectors.safetensors", encoder=FakeEncoder())
    assert torch.equal(loaded.vectors, built.vectors)
    assert (loaded.names, loaded.templates, loaded.encoder, loaded.logit_scale, loaded.key) == (
        built.names,
        built.templates,
        built.encoder,
        built.logit_scale,
        built.key,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.safetensors"]


def test_load_refuses_another_encoder(tmp_path: Path) -> None:
    file = tmp_path / "vectors.safetensors"
    ClassVectors.build(["car"], FakeEncoder()).save(file)
    with pytest.raises(UserError, match=r'vectors.safetensors: .*"fake@0123", not "other@1"'):
        ClassVectors.load(file, encoder="other@1")


def _missing(file: Path) -> None:
    file.unlink()


def _garbage(file: Path) -> None:
    file.write_bytes(b"\x80\x04 a pickle")


def _foreign(file: Path) -> None:
    save_file({"vectors": unit(2)}, file)


def _rewrite(**changes: object) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        card = {
            "format": 1,
            "names": ["car"],
            "templates": ["{}"],
            "encoder": "fake@0123",
            "logit_scale": 50.0,
        }
        card["key"] = ClassVectors.load(file).key
        tensor = changes.pop("tensor", unit(1))
        assert isinstance(tensor, torch.Tensor)
        save_file({"vectors": tensor}, file, {"class_vectors": json.dumps({**card, **changes})})

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, "no such file"),
        (_garbage, "damaged"),
        (_foreign, "no class vectors"),
        (_rewrite(format=2), "format 2, this vlkd reads 1"),
        (_rewrite(names=["tree"]), "stored key does not fit"),
        (_rewrite(names=["car", "tree"]), "one row a name"),
        (_rewrite(tensor=2 * unit(1)), "norm 2"),
    ],
)
def test_load_refuses_bad_files(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    file = tmp_path / "vectors.safetensors"
    ClassVectors.build(["car"], FakeEncoder()).save(file)
    damage(file)
    with pytest.raises(UserError, match=message) as caught:
        ClassVectors.load(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("vectors", "names", "message"),
    [
        (torch.full((1, 8), float("nan")), ["car"], '"car" has norm nan'),
        (torch.cat([unit(1), torch.zeros(1, 8)]), ["car", "tree"], '"tree" has norm 0'),
        (3 * unit(1), ["car"], "norm 3"),
        (unit(2), ["car"], r"\(2, 8\) for 1 names"),
        (unit(1)[0], ["car"], "expected a float tensor"),
        (torch.ones(1, 1, dtype=torch.int64), ["car"], "expected a float tensor"),
        (np.ones((1, 1)), ["car"], "ndarray"),
        (unit(2), ["traffic light", "Traffic_light"], "position 1 repeats position 0"),
        (unit(1), ["car|"], "empty word"),
        (unit(1), [""], "empty"),
        (unit(1), "car", "expected a list"),
        (unit(1)[:0], [], "at least one name"),
    ],
)
def test_constructor_refuses(vectors: torch.Tensor, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ClassVectors(vectors, names)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("names", "prompts", "message"),
    [
        ("car", "bare", "expected a list of names"),
        (["car", "car"], "bare", "repeats"),
        (["car"], "vild14", 'nearest: "vild"'),
        (["car"], ["a photo"], "one"),
        (["car"], ["{} {}"], "one"),
        (["car"], [], "list is empty"),
    ],
)
def test_build_refuses(names: list[str], prompts: list[str], message: str) -> None:
    encoder = FakeEncoder()
    with pytest.raises(UserError, match=message):
        ClassVectors.build(names, encoder, prompts)
    assert encoder.asked == []


def test_build_refuses_useless_encoder_output() -> None:
    class Broken(FakeEncoder):
        def encode_text(self, texts: list[str]) -> torch.Tensor:
            return torch.full((len(texts), 4), float("nan"))

    with pytest.raises(UserError, match=r'"fake@0123".*finite'):
        ClassVectors.build(["car"], Broken())


def test_half_precision_is_made_unit() -> None:
    half = ClassVectors(unit(3, 512).half(), ("a", "b", "c"))
    assert half.vectors.dtype == torch.float32
    torch.testing.assert_close(half.vectors.norm(dim=1), torch.ones(3))


def test_immutable_and_independent_of_the_tensor_given() -> None:
    rows = unit(2)
    vectors = ClassVectors(rows, ("car", "tree"))
    rows.zero_()
    assert vectors.vectors.norm(dim=1).min() > 0.99
    with pytest.raises(AttributeError):
        vectors.names = ("tree", "car")  # type: ignore[misc]
    assert not vectors.vectors.requires_grad


def test_select_by_name_alias_and_case() -> None:
    vectors = ClassVectors(
        unit(3), ("car|automobile", "traffic light", "tree"), encoder="fake@1", logit_scale=9.0
    )
    chosen = vectors.select(["Traffic_light", "automobile"])
    assert chosen.names == ("traffic light", "car|automobile")
    assert torch.equal(chosen.vectors, vectors.vectors[[1, 0]])
    assert (chosen.encoder, chosen.logit_scale) == ("fake@1", 9.0)
    with pytest.raises(UserError, match=r'no class "automobil" \(nearest: "automobile"\)'):
        vectors.select(["tree", "automobil"])
    with pytest.raises(UserError, match="repeats"):
        vectors.select(["car", "automobile"])


def test_a_class_name_wins_over_an_alias() -> None:
    vectors = ClassVectors(unit(2), ("screen|monitor", "monitor"))
    assert vectors.select(["monitor"]).names == ("monitor",)


def test_check_names_the_first_difference() -> None:
    vectors = ClassVectors(unit(3), ("car", "tree", "sky"), encoder="fake@0123")
    vectors.check(encoder=FakeEncoder(), names=["car", "tree", "sky"])
    with pytest.raises(UserError, match='class 1 is "tree", expected "sky"'):
        vectors.check(names=["car", "sky", "tree"])
    with pytest.raises(UserError, match="3 classes, expected 2"):
        vectors.check(names=["car", "tree"])
    with pytest.raises(UserError, match='"fake@0123", not "other"'):
        vectors.check(encoder="other")


def test_from_npz_normalises_and_cleans(tmp_path: Path) -> None:
    file = tmp_path / "vectors.npz"
    array = 7 * np.random.default_rng(0).standard_normal((2, 8)).astype(np.float16)
    np.savez(file, clip=array, clip__names=np.array(["Giant_panda", "Vehical"]))
    vectors = ClassVectors.from_npz(file, "clip", templates="photo")
    assert vectors.names == ("giant panda", "vehicle")
    assert vectors.templates == ("a photo of a {}",)
    assert vectors.encoder.startswith("vectors.npz:clip@")
    torch.testing.assert_close(vectors.vectors, normalize(torch.from_numpy(array).float(), dim=1))


def test_from_npz_with_other_names_where_the_stored_ones_repeat(tmp_path: Path) -> None:
    file = tmp_path / "vectors.npz"
    np.savez(file, clip=np.eye(2, dtype=np.float32), clip__names=np.array(["Mouse", "Mouse"]))
    with pytest.raises(UserError, match="position 1 repeats position 0"):
        ClassVectors.from_npz(file, "clip")
    assert ClassVectors.from_npz(file, "clip", names=["mouse", "computer mouse"]).names[1] == "computer mouse"


def test_from_npz_refuses(tmp_path: Path) -> None:
    file = tmp_path / "vectors.npz"
    zero, names = np.zeros((1, 4), np.float32), np.array(["car"])
    np.savez(file, clip=zero, clip__names=names, bare=zero, short=zero, short__names=np.array(["a", "b"]))
    cases = {"clap": 'nearest: "clip"', "bare": "bare__names", "short": "expected floats", "clip": "norm 0"}
    for key, message in cases.items():
        with pytest.raises(UserError, match=message):
            ClassVectors.from_npz(file, key)
    with pytest.raises(UserError, match="no such file"):
        ClassVectors.from_npz(tmp_path / "none.npz", "clip")
    np.savez(file, clip=zero, clip__names=np.array(["car"], dtype=object))
    with pytest.raises(UserError, match="plain arrays"):
        ClassVectors.from_npz(file, "clip")
    np.save(tmp_path / "lone.npy", zero)
    for data in (b"not a zip", file.read_bytes()[:-9], (tmp_path / "lone.npy").read_bytes()):
        file.write_bytes(data)
        with pytest.raises(UserError, match="plain arrays"):
            ClassVectors.from_npz(file, "clip")


def test_text_imports_without_torch() -> None:
    code = "import sys, vlkd.text; vlkd.text.synonyms('car'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.realdata
def test_real_clip_text_vectors(shared_data: Path) -> None:
    file = shared_data / "clip_vitb32_text_embeddings.npz"
    coco = ClassVectors.from_npz(file, "detic_a_coco80", templates=("a {}",))
    assert coco.vectors.shape == (80, 512)
    cosines = coco.vectors @ coco.select(["dog"]).vectors[0]
    nearest = [coco.names[index] for index in cosines.argsort(descending=True)[:4].tolist()]
    assert nearest[0] == "dog" and set(nearest[1:]) & {"cat", "horse", "hot dog", "teddy bear"}
    lvis = ClassVectors.from_npz(file, "detic_a_lvis1203", templates=("a {}",))
    found = (lvis.vectors @ lvis.select(["dog"]).vectors[0]).argsort(descending=True)[1:5].tolist()
    assert {"puppy", "cat"} <= {lvis.names[index] for index in found}
    ovis = ClassVectors.from_npz(file, "detpro_ovis")
    assert list(ovis.names) == class_names("ovis_25")
