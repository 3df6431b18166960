"""Names of the procedural world: what can be seen, what else WordNet calls it, and the colours."""

from __future__ import annotations

# name -> other WordNet lemmas of a fitting noun sense. The last one of each list is held out:
# captions use it (so the teacher knows it), student training never does, evaluation prompts with it.
OBJECTS: dict[str, tuple[str, ...]] = {
    "car": ("automobile", "auto", "motorcar"),
    "bus": ("autobus", "motorbus", "motorcoach"),
    "truck": ("motortruck",),
    "bicycle": ("bike", "cycle"),
    "airplane": ("plane", "aeroplane"),
    "helicopter": ("chopper", "whirlybird"),
    "sailboat": ("sailing boat",),
    "house": ("home",),
    "lighthouse": ("beacon", "pharos"),
    "windmill": ("aerogenerator", "wind generator"),
    "castle": ("palace",),
    "tent": ("collapsible shelter",),
    "flower": ("bloom", "blossom"),
    "palm": ("palm tree",),
    "fir": ("fir tree",),
    "corn": ("maize", "indian corn"),
    "pineapple": ("ananas",),
    "doughnut": ("donut", "sinker"),
    "hamburger": ("burger", "beefburger"),
    "lollipop": ("sucker", "all-day sucker"),
    "snake": ("serpent", "ophidian"),
    "ladybug": ("ladybird", "ladybeetle"),
    "owl": ("hooter", "bird of night"),
    "octopus": ("devilfish",),
    "rabbit": ("coney",),
    "cat": ("true cat",),
    "sun": ("sunshine",),
    "hat": ("lid", "chapeau"),
    "handbag": ("purse", "pocketbook"),
    "spectacles": ("glasses", "eyeglasses"),
    "sofa": ("couch", "lounge"),
    "television": ("telly", "television set"),
    "bucket": ("pail",),
    "candle": ("taper", "wax light"),
}
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "blue sky": ("blue air", "wild blue yonder"),
    "sunset": ("sundown",),
    "mountain": ("mount",),
    "forest": ("woods", "woodland"),
    "wall": ("rampart", "bulwark"),
    "water": ("body of water",),
    "grass": ("pasture",),
    "road": ("route",),
    "sand": ("grit",),
    "snow": ("snowfall",),
    "floor": ("flooring",),
    "carpet": ("rug", "carpeting"),
}
NAMES: tuple[str, ...] = (*OBJECTS, *BACKGROUNDS)
THINGS = len(OBJECTS)

# Never labelled for a student under the default split; named in captions like everything else.
NOVEL: tuple[str, ...] = (
    "bus",
    "sailboat",
    "lighthouse",
    "fir",
    "hamburger",
    "ladybug",
    "rabbit",
    "hat",
    "sunset",
    "sand",
)

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 40, 38),
    "orange": (232, 130, 30),
    "yellow": (238, 206, 52),
    "green": (52, 150, 62),
    "blue": (44, 92, 196),
    "purple": (130, 62, 168),
    "pink": (236, 138, 172),
    "brown": (128, 82, 46),
    "black": (44, 44, 50),
    "white": (236, 236, 232),
}


def world_synonyms(name: str, held_out: bool | None = None) -> tuple[str, ...]:
    """Other words for a class of the world; held_out=True: only the one kept for evaluation, False: the rest.

    A class with a single synonym keeps it for evaluation: the student then trains on the name alone.
    """
    words = {**OBJECTS, **BACKGROUNDS}[name]
    return words if held_out is None else words[-1:] if held_out else words[:-1]
