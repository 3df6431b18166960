"""Make the packaged table of noun synonyms (vlkd/text/assets/synonyms.json) from WordNet's own files.

Without options it reads Debian's wordnet-base and rewrites the packaged table:
    python datasets/prepare_synonyms.py
Run it again whenever the class lists or the procedural world's names change.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from vlkd.data.world.names import BACKGROUNDS, OBJECTS
from vlkd.errors import UserError
from vlkd.text import class_names
from vlkd.text.synonyms import synonym_table
from vlkd.text.wordnet import WordNet

PACKAGED = Path(__file__).resolve().parents[1] / "vlkd" / "text" / "assets" / "synonyms.json"
CLASS_LISTS = (
    "ade20k_150",
    "ade20k_847",
    "camvid_11",
    "cityscapes_19",
    "coco_panoptic_133",
    "coco_stuff_171",
    "ovis_25",
    "pas_20",
    "pascal_context_59",
    "vipseg_124",
    "vspw_124",
    "youtube_vis_2019_40",
    "youtube_vis_2021_40",
)


def render(wordnet: WordNet) -> str:
    """Return the table as JSON text: the same bytes for the same names and WordNet version."""
    names = [*OBJECTS, *BACKGROUNDS, *(name for key in CLASS_LISTS for name in class_names(key))]
    header = {"wordnet": wordnet.version, "licence": "LICENSE.wordnet.txt"}
    rows = (
        f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in synonym_table(names, wordnet).items()
    )
    head = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in header.items())
    return f'{{\n{head},\n "synonyms": {{\n' + ",\n".join(rows) + "\n }\n}\n"


def write(text: str, out: Path) -> None:
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist; make it or name another --out")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, out)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wordnet", metavar="DIR", help="folder with index.noun, or an nltk data folder")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=PACKAGED, help="default: the packaged table"
    )
    arguments = parser.parse_args()
    try:
        wordnet = WordNet(arguments.wordnet)
        text = render(wordnet)
        write(text, arguments.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = len(json.loads(text)["synonyms"])
    print(f"{arguments.out}: synonyms of {count} names from WordNet {wordnet.version} in {wordnet.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
