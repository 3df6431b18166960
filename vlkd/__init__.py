"""vlkd: distil vision-language models into small students, and use the students."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlkd.infer import ClassPredictor, Predictor

__version__ = "0.1.0"
__all__ = ["ClassPredictor", "Predictor", "__version__", "list_methods", "list_models", "load"]


def load(path_or_name: str) -> Any:
    """The model of a bundle file or zoo name, by its kind.

    segmentor: Predictor; classifier: ClassPredictor; open_classifier: OpenClassPredictor; clip: CLIPTower;
    prompts: PromptedTower, with the CLIP model that they belong to; language, video_text: LanguageModel;
    finetuned: TaskModel.

    Raises UserError when the file or name is unknown, damaged, or of a kind that cannot be used by itself.
    """
    from vlkd.engine.bundle import read_card
    from vlkd.engine.hub import resolve
    from vlkd.errors import UserError

    path = resolve(path_or_name)
    kind = read_card(path)["kind"]
    if kind == "segmentor":
        from vlkd.infer import Predictor

        return Predictor.from_bundle(path)
    if kind == "classifier":
        from vlkd.infer import ClassPredictor

        return ClassPredictor.from_bundle(path)
    if kind == "clip":
        from vlkd.models.clip import build_clip

        return build_clip(str(path))
    if kind == "open_classifier":
        from vlkd.infer import OpenClassPredictor

        return OpenClassPredictor.from_bundle(path)
    if kind == "prompts":
        from vlkd.engine.bundle import load_bundle
        from vlkd.models.prompted import prompted_from_card

        return prompted_from_card(*load_bundle(path), str(path))
    if kind in ("language", "video_text"):
        from vlkd.models.language import load_language_model

        return load_language_model(path)
    if kind == "finetuned":
        from vlkd.models.language_task import load_task_model

        return load_task_model(path)
    known = "segmentor, classifier, open_classifier, clip, prompts, language, video_text or finetuned"
    raise UserError(f"{path}: bundle of kind {kind!r}, expected {known}; update vlkd to use it")


def list_methods() -> list[str]:
    """Names of the distillation methods, sorted."""
    from vlkd.methods import list_methods

    return list_methods()


def list_models() -> list[str]:
    """Names of the models in model_zoo/manifest.yaml, sorted. Raises UserError when there is no manifest."""
    from vlkd.engine.hub import list_models

    return list_models()


def __getattr__(name: str) -> Any:
    if name in ("ClassPredictor", "Predictor"):
        import vlkd.infer

        return getattr(vlkd.infer, name)
    raise AttributeError(f"module 'vlkd' has no attribute {name!r}")
