import json

import pytest

from vlkd.data.video_text.captions import Captions, read_captions, read_ids
from vlkd.data.video_text.windows import Window, fixed_windows, rows_of, window_at, within, words_of
from vlkd.errors import UserError


def test_segments_are_sorted_and_those_without_text_left_out(tmp_path):
    path = tmp_path / "c.json"
    a = {
        "start": [5, 1.5, 3, 9, 10],
        "end": [6, 2.5, 4, 8, 11],
        "text": ["c", " a  b ", "", "back", float("nan")],
    }
    path.write_text(json.dumps({"a": a, "b": {"start": [0], "end": [1], "text": [" "]}}))
    found, problems = read_captions(path)
    assert found == {"a": Captions("a", (1.5, 5.0), (2.5, 6.0), ("a b", "c"))}
    assert problems == [f"{path}: video 'b' has no caption with text; left out"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1]", "not timed captions"),
        ("{}", "not timed captions"),
        ('{"a": [1]}', "video 'a' is not in the form"),
        ('{"a": {"start": [1], "end": [2]}}', "video 'a' is not in the form"),
        ('{"a": {"start": [1, 2], "end": [2], "text": ["x"]}}', "has 2 starts, 1 ends and 1 texts"),
        ('{"a": {"start": ["x"], "end": [2], "text": ["x"]}}', "a time that is no number"),
        ('{"a":\n {', "c.json:2: broken JSON"),
    ],
)
def test_other_forms_are_refused(tmp_path, content, says):
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(UserError, match=says) as error:
        read_captions(tmp_path / "c.json")
    assert "\n" not in str(error.value)


def test_ids(tmp_path):
    (tmp_path / "a.txt").write_text("x\n\n y \nx\n")
    (tmp_path / "a.json").write_text('["x", "y"]')
    assert read_ids(tmp_path / "a.txt") == read_ids(tmp_path / "a.json") == ["x", "y"]
    (tmp_path / "a.json").write_text('{"x": 1}')
    (tmp_path / "b.txt").write_text("\n")
    for name, says in (("a.json", "not a list"), ("b.txt", "names no video"), ("c.txt", "no such file")):
        with pytest.raises(UserError, match=says):
            read_ids(tmp_path / name)


SPOKEN = Captions("v", (0.0, 2.0, 4.0, 7.5), (2.0, 5.0, 6.0, 9.0), ("a b c", "d", "e f", "g"))


def test_windows_gather_words_and_share_no_segment():
    assert window_at(SPOKEN, 1, 3) == Window(1, 3) and window_at(SPOKEN, 0, 1) == Window(0, 1)
    assert window_at(SPOKEN, 3, 50) == Window(3, 4)
    assert fixed_windows(SPOKEN, 4) == [Window(0, 2), Window(2, 4)]
    assert words_of(SPOKEN, Window(0, 3)) == "a b c . d . e f"


def test_rows_of_a_window_are_those_of_its_seconds():
    assert rows_of(SPOKEN, Window(0, 1), 1.0, 20, 99).tolist() == [0, 1]
    assert rows_of(SPOKEN, Window(1, 3), 1.0, 20, 99).tolist() == [2, 3, 4, 5]
    assert rows_of(SPOKEN, Window(3, 4), 2.0, 99, 99).tolist() == [15, 16, 17]
    assert rows_of(SPOKEN, Window(1, 4), 1.0, 5, 99).tolist() == [2, 3, 4]  # features end first
    assert rows_of(SPOKEN, Window(0, 4), 1.0, 20, 3).tolist() == [0, 4, 8]
    assert rows_of(SPOKEN, Window(3, 4), 0.1, 1, 9).tolist() == [0]
    assert [within(SPOKEN, s) for s in (0.5, 4.0, 4.1, 99)] == [1, 2, 3, 4]
