"""The main job on the embedded default: train a student on the drawn world, then segment with words."""

import sys
from pathlib import Path

from vlkd.engine.cli import main as vlkd

OUT, CONFIG = Path("demo_out"), "configs/gkc/world.yaml"
PICTURES, FRAMES, SIZE = 6, 48, (256, 256)
FIRST = 2_000_000  # neither training nor validation has seen them


def train(run: Path) -> int:
    """Train, or continue where an earlier demo was stopped; nothing when it was finished."""
    if list(run.glob("student-*.safetensors")):
        print(f"{run}: already trained; remove {OUT} to train anew")
        return 0
    begun = (run / "last.ckpt").exists()
    return vlkd(["train", *(["--resume", str(run)] if begun else [CONFIG, "--run", str(run)])])


def render(folder: Path) -> None:
    """Pictures and one video of the world to segment."""
    from PIL import Image

    from vlkd.data.world import World
    from vlkd.infer.video import VideoWriter

    folder.mkdir(parents=True, exist_ok=True)
    world = World()
    for i in range(PICTURES):
        Image.fromarray(world.scene(FIRST + i, SIZE).image).save(folder / f"scene{i}.png")
    with VideoWriter(folder / "moving.mp4", 12) as video:
        for time, frame in enumerate(world.video(FIRST, FRAMES, SIZE)):
            video.write(frame.image, time / 12)


def main() -> int:
    """Exit code of the first step that fails, else 0."""
    if code := train(OUT / "run"):
        return code
    from vlkd.data.world import NAMES, world_synonyms

    render(OUT / "input")
    model = str(max((OUT / "run").glob("student-*.safetensors"), key=lambda p: p.stat().st_mtime))
    stills, moving = str(OUT / "input" / "scene*.png"), str(OUT / "input" / "moving.mp4")
    held_out = ", ".join(world_synonyms(name, held_out=True)[0] for name in NAMES)
    tasks = {"names": [stills, moving], "other_words": ["--classes", held_out, stills]}
    for folder, words in tasks.items():
        if code := vlkd(["infer", "--model", model, "--out", str(OUT / folder), "--overwrite", *words]):
            return code
    print(f"scores and curves: {OUT / 'run'} (curves.png, metrics.csv)")
    print(f"pictures, by class names: {OUT / 'names'}; by words no student was taught: {OUT / 'other_words'}")
    print(f'your own: python tools/infer.py --model {model} --classes "car, road" IMAGE.jpg --out results')
    return 0


if __name__ == "__main__":
    sys.exit(main())
