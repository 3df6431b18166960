import numpy as np
import pytest
from PIL import Image

from vlkd.errors import UserError
from vlkd.infer.draw import palette
from vlkd.infer.image_io import read_image, whole_file, write_image, write_labels


def gradient() -> np.ndarray:
    y, x = np.mgrid[0:40, 0:60]
    return np.stack([x * 4, y * 6, 255 - x * 4], -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [("png", 0), ("webp", 12), ("jpg", 12), ("bmp", 0), ("tif", 0)]
)
def test_formats(tmp_path, suffix, tolerance):
    Image.fromarray(gradient()).save(tmp_path / f"a.{suffix}", quality=95)
    pixels = read_image(tmp_path / f"a.{suffix}")
    assert pixels.dtype == np.uint8 and pixels.shape == (40, 60, 3)
    assert np.abs(pixels.astype(int) - gradient()).mean() <= tolerance


def test_sixteen_bits_become_eight(tmp_path):
    grey = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png")[0, :, 1], np.arange(256))
    Image.fromarray(np.ones((4, 4), np.uint16)).save(tmp_path / "dark.png")
    assert read_image(tmp_path / "dark.png").max() == 0


def test_grey_palette_and_alpha(tmp_path):
    Image.fromarray(gradient()[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png")[..., 2], gradient()[..., 0])
    indexed = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    indexed.putpalette([9, 8, 7, 200, 100, 50])
    indexed.save(tmp_path / "indexed.png", transparency=0)
    assert read_image(tmp_path / "indexed.png").tolist() == [[[255, 255, 255], [200, 100, 50]]]
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "alpha.png").tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]


def test_exif_turns_the_image(tmp_path):
    image = Image.fromarray(gradient())
    exif = image.getexif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(gradient(), -1))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((8, 8, 3), v, np.uint8)) for v in (40, 200)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert (read_image(tmp_path / "a.webp") == 40).all()


def test_bad_files_are_one_line(tmp_path, monkeypatch):
    Image.fromarray(gradient().repeat(8, 0).repeat(8, 1)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    Image.fromarray(gradient()).save(tmp_path / "ok.png")
    broken = bytearray((tmp_path / "ok.png").read_bytes())
    broken[60:90] = bytes(30)
    (tmp_path / "broken.png").write_bytes(broken)
    (tmp_path / "empty.png").touch()
    (tmp_path / "words.jpg").write_text("these are words")
    for name, says in {
        "cut.jpg": "damaged",
        "broken.png": "damaged",
        "empty.png": "empty",
        "words.jpg": "not an image",
        "absent.png": "no such file",
        ".": "cannot be read",
    }.items():
        with pytest.raises(UserError, match=says) as error:
            read_image(tmp_path / name)
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="too large"):
        read_image(tmp_path / "ok.png")


def test_label_files_keep_their_indices(tmp_path):
    labels = np.arange(12).reshape(3, 4)
    write_labels(tmp_path / "few.png", labels, palette(12))
    few = Image.open(tmp_path / "few.png")
    assert few.mode == "P" and np.array_equal(np.array(few), labels)
    assert few.getpalette()[3:6] == palette(12)[1].tolist()
    write_labels(tmp_path / "many.png", labels + 800, palette(847))
    assert np.array_equal(np.array(Image.open(tmp_path / "many.png")), labels + 800)


def test_a_failed_write_leaves_nothing(tmp_path):
    write_image(tmp_path / "a.png", gradient())
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.png") as part:
        part.write_bytes(b"half")
        raise RuntimeError
    assert np.array_equal(read_image(tmp_path / "a.png"), gradient())
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
