"""The procedural world, the embedded data: seeded scenes and videos with exact masks and captions."""

from vlkd.data.world.names import BACKGROUNDS, NAMES, NOVEL, OBJECTS, THINGS, world_synonyms
from vlkd.data.world.world import Scene, Video, World

__all__ = ["BACKGROUNDS", "NAMES", "NOVEL", "OBJECTS", "THINGS", "Scene", "Video", "World", "world_synonyms"]
