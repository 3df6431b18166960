import pytest

from vlkd.data.video_text.documents import documents, guess_format
from vlkd.errors import UserError

WIKITEXT = """
 = Lobster =

 Lobsters are large .
 They swim .

 = = Form = =

 Two claws .
 = Frank = the second =
 Frank = one man .
"""


def test_wikitext(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(WIKITEXT)
    assert guess_format(path) == "wikitext"
    assert list(documents(path)) == ["Lobsters are large . They swim . Two claws .", "Frank = one man ."]
    kept = list(documents(path, headings=True))
    assert kept[0] == "Lobster Lobsters are large . They swim . Form Two claws ."
    assert kept[1] == "Frank = the second Frank = one man ."


def test_wikiextractor(tmp_path):
    path = tmp_path / "wiki_00"
    path.write_text(
        '<doc id="1" url="u" title="A">\nA\n\nwords of a\n</doc>\n<doc id="2">\nwords  of b\n</doc>\n'
    )
    assert list(documents(path)) == ["A words of a", "words of b"]


def test_paragraphs_and_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n\n\nthree\n")
    assert list(documents(path)) == ["one two", "three"]
    assert list(documents(path, "lines")) == ["one", "two", "three"]


def test_bad_files_and_formats(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x80 words")
    for name, format, says in (
        ("absent.txt", "auto", "no such text file"),
        ("a.txt", "lines", "cannot be read as text"),
        ("a.txt", "wikitxt", "unknown.*wikitext"),
    ):
        with pytest.raises(UserError, match=says):
            list(documents(tmp_path / name, format))


@pytest.mark.realdata
def test_wikitext_2(tmp_path, shared_data):
    import tarfile

    with tarfile.open(shared_data / "text.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    found = list(documents(tmp_path / "text" / "wikitext-2" / "valid.txt"))
    assert len(found) == 60 and found[0].startswith("Homarus gammarus , known as")
    lines = (tmp_path / "text" / "wikitext-2" / "valid.txt").read_text().splitlines()
    body = sum(len(line.split()) for line in lines if not line.startswith(" = "))
    assert sum(len(document.split()) for document in found) == body > 200_000
