"""What each notebook measures. A notebook calls its plans, and the command line calls the same plans ahead of it.

Arguments that several plans share are parameters of the notebooks:
    models: names of networks.
    light_models: those of them that skip slow methods and middle layers, which take minutes per image.
    n_images: images per method. n_score_cam and n_captum: the same for ScoreCAM and for the methods of captum.
    seed: of everything random.
    data: a name in `registry.DATASETS`.
    scene_models: networks that know the scenes. light_scene_models: those of them that are light, as above.
    n_scenes: scenes per method, ten conditions in turn. n_scenes_score_cam, n_scenes_captum: as above.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from ..datasets.scenes import MARKS, TWINS
from ..errors import one_of
from ..explanation import BASE, CAMS, CONTROLS, OTHERS, REFINED, SLOW, TRIVIAL, Variant
from ..networks.zoo import spec_of
from ..refinement import AGGREGATES
from .registry import DATASETS
from .shard import NO_METHOD, Shard, plan

EIGHTH_ROOT = "GradCAM++^0.125"
"""The map of Fig. 4: Grad-CAM++ raised to 1/8, so its pixels have the same order and other values."""
POWERS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)


def fully_measured(models: Sequence[str], light_models: Sequence[str]) -> list[str]:
    """Return the networks that every method explains: `models` without `light_models`, or all if none is left."""
    return [model for model in models if model not in light_models] or list(models)


def paper_plan(
    models: Sequence[str],
    images: Mapping[str, int],
    seed: int = 0,
    dataset: str = "synthetic",
    light_models: Sequence[str] = (),
) -> list[Shard]:
    """Return the shards behind Fig. 1, Table 1 and Table 2. They overlap, so each row is measured once.

    Every layer has Base and RefineCAM, the shallowest also every aggregate. ScoreCAM's cost grows with the channels, so
    it has the shallowest layer's variants and the deepest Base map only. So do all methods on light models. Methods in
    SLOW do not explain light models.

    Args:
        images: method -> number of images. Cheap methods get more.
    """
    shards = []
    for model in light_models:
        spec_of(model)
    for model in models:
        deepest = len(spec_of(model).layers) - 1
        first = [Variant(0, aggregate) for aggregate in ("none", *AGGREGATES)] + [Variant(deepest)]
        others = [Variant(layer, aggregate) for layer in range(1, deepest) for aggregate in ("none", "product")]
        for method, n in images.items():
            if method in SLOW and model in light_models:
                continue
            variants = first if method == "ScoreCAM" or model in light_models else first + others
            size = 2 if method == "ScoreCAM" else 8
            shards += plan(model, [method], n, variants, dataset, size, seed)
    return shards


def fig1_plan(
    models: Sequence[str],
    n_images: int,
    n_score_cam: int,
    light_models: Sequence[str] = (),
    seed: int = 0,
    data: str = "synthetic",
) -> list[Shard]:
    """Plan Fig. 1: three methods and the trivial maps."""
    images = dict.fromkeys(("GradCAM++", "LayerCAM", "ScoreCAM", *TRIVIAL), n_images) | {"ScoreCAM": n_score_cam}
    return paper_plan(models, images, seed, data, light_models)


def stress_plan(
    models: Sequence[str], n_images: int, light_models: Sequence[str] = (), seed: int = 0, data: str = "synthetic"
) -> list[Shard]:
    """Plan the stress test beside Fig. 1: controls and powers of Grad-CAM++. Ground-truth controls need masks."""
    masked = DATASETS[one_of("dataset", data, DATASETS)].masked
    methods = [name for name in CONTROLS if masked or not name.endswith("Truth")] + [EIGHTH_ROOT, "GradCAM++^8"]
    models = fully_measured(models, light_models)
    return [shard for model in models for shard in plan(model, methods, n_images, dataset=data, seed=seed)]


def fig4_plan(model: str, method: str, layer: int, n_images: int, seed: int = 0) -> list[Shard]:
    """Plan Fig. 4: a method's maps raised to powers from 1/8 to 8, named `GradCAM++^0.125` and so on."""
    return plan(model, [f"{method}^{power:g}" for power in POWERS], n_images, [Variant(layer)], seed=seed)


def table1_plan(
    models: Sequence[str],
    n_images: int,
    n_score_cam: int,
    n_captum: int,
    light_models: Sequence[str] = (),
    seed: int = 0,
    data: str = "synthetic",
    methods: Sequence[str] | None = None,
) -> list[Shard]:
    """Plan Table 1 and Fig. 3: five CAM methods and five methods without layers, or only those in `methods`."""
    images = dict.fromkeys(CAMS, n_images) | {"ScoreCAM": n_score_cam} | dict.fromkeys(OTHERS, n_captum)
    if methods is not None:
        images = {method: images.get(method, n_images) for method in methods}
    return paper_plan(models, images, seed, data, light_models)


def table2_plan(
    models: Sequence[str],
    n_images: int,
    n_score_cam: int,
    light_models: Sequence[str] = (),
    seed: int = 0,
    data: str = "synthetic",
) -> list[Shard]:
    """Plan Table 2: the five CAM methods with every aggregate."""
    images = dict.fromkeys(CAMS, n_images) | {"ScoreCAM": n_score_cam}
    return paper_plan(models, images, seed, data, light_models)


def birds_plan(
    bird_models: Sequence[str], n_birds: int, n_birds_score_cam: int, n_birds_captum: int, seed: int = 0
) -> list[Shard]:
    """Plan Fig. 3b: ten methods and the trivial maps on birds. CAM methods at the shallowest and the deepest layer."""
    images = dict.fromkeys([*CAMS, *TRIVIAL], n_birds) | {"ScoreCAM": n_birds_score_cam}
    images |= dict.fromkeys(OTHERS, n_birds_captum)
    shards = []
    for model in bird_models:
        variants = [BASE, REFINED, Variant(len(spec_of(model).layers) - 1)]
        for method, n in images.items():
            shards += plan(model, [method], n, variants, "birds", 2 if method == "ScoreCAM" else 8, seed)
    return shards


def audit_plan(
    model: str, n_images: int, n_score_cam: int, n_captum: int, n_defects: int, seed: int = 0
) -> dict[str, list[Shard]]:
    """Plan the audit: "ours" is the rows of Tables 1 and 2, Fig. 1 and Fig. 4; the other parts have one defect each.

    Defects are measured on `n_defects` images, at most `n_images`, without ScoreCAM and the slow methods.
    """
    ours = table1_plan([model], n_images, n_score_cam, n_captum, seed=seed)
    ours += paper_plan([model], dict.fromkeys(["GradCAM", *TRIVIAL], n_images), seed)
    ours += plan(model, [EIGHTH_ROOT], n_images, seed=seed)
    cams = [method for method in CAMS if method != "ScoreCAM"]
    fast = [*cams, "InputXGradient", "DeepLift", *TRIVIAL, EIGHTH_ROOT]
    refined = [Variant(0, aggregate) for aggregate in AGGREGATES]
    few, every = partial(plan, model, images=min(n_defects, n_images), seed=seed), [Variant(), *refined]
    return {
        "ours": ours,
        "D1": few(fast, variants=every, dataset="synthetic_leaked"),
        "D4": few(fast, variants=every, defects=("percentiles",)),
        "D11": few(fast, variants=every, dataset="synthetic_shifted"),
        "D13": few(["RandomCAM"], defects=("one_seed",)),
        "deep maps": few(cams, variants=refined, defects=("deep_maps_unmasked",)),
        "fp32": few(cams, variants=[Variant(0, "inverse_exp_mean_published")]),
    }


def accuracy_plan(models: Sequence[str], n_images: int) -> list[Shard]:
    """Plan the predictions of the shapes' networks on test images, each on raw and on imputed backgrounds."""
    return _predictions(models, n_images, "synthetic_raw", "synthetic_imputed")


def bird_accuracy_plan(bird_models: Sequence[str], n_birds: int) -> list[Shard]:
    """Plan the predictions of the birds' networks on test birds."""
    return _predictions(bird_models, n_birds, "birds_labelled")


def _predictions(models: Sequence[str], images: int, *datasets: str) -> list[Shard]:
    few = partial(plan, methods=[NO_METHOD], images=images, size=50, measurement="predictions")
    return [shard for model in models for data in datasets for shard in few(model, dataset=data)]


def fig5_plan(model: str, methods: Sequence[str], n_images: int, data: str = "synthetic") -> list[Shard]:
    """Plan Fig. 5: the maps of every layer."""
    layers = [Variant(layer) for layer in range(len(spec_of(model).layers))]
    return plan(model, methods, n_images, layers, data, size=1, measurement="maps")


def randomisation_plan(model: str, methods: Sequence[str], n_images: int, seed: int = 0) -> list[Shard]:
    """Plan the model-randomisation check: Base and RefineCAM at the shallowest layer."""
    return plan(model, methods, n_images, [BASE, REFINED], seed=seed, measurement="randomisation")


def rounding_plan(model: str, networks: Sequence[str], n_rounding: int, seed: int = 0) -> list[Shard]:
    """Plan the check of rounding: Base and RefineCAM on several networks, slow methods on `model` alone."""
    methods = [method for method in (*CAMS, *OTHERS) if method != "ScoreCAM"]
    return [
        shard
        for network in networks
        for method in methods
        if network == model or method not in SLOW
        for shard in plan(network, [method], n_rounding, [BASE, REFINED], size=4, seed=seed, measurement="rounding")
    ]


def certificate_plan(scene_models: Sequence[str], n_scenes: int, seed: int = 0) -> list[Shard]:
    """Plan the certificate of both twins of the scenes."""
    return [
        shard
        for model in scene_models
        for twin in TWINS
        for shard in plan(
            model, [NO_METHOD], n_scenes, dataset=f"scenes_{twin}", size=10, seed=seed, measurement="certificate"
        )
    ]


def scenes_plan(
    scene_models: Sequence[str],
    n_scenes: int,
    n_scenes_score_cam: int,
    n_scenes_captum: int,
    light_scene_models: Sequence[str] = (),
    seed: int = 0,
) -> list[Shard]:
    """Plan Table 1, the trivial maps and the controls on both twins of the scenes."""
    images = dict.fromkeys(CAMS, n_scenes) | {"ScoreCAM": n_scenes_score_cam} | dict.fromkeys(OTHERS, n_scenes_captum)
    images |= dict.fromkeys([*TRIVIAL, *CONTROLS], n_scenes)
    return [
        shard
        for twin in TWINS
        for shard in paper_plan(scene_models, images, seed, f"scenes_{twin}", light_scene_models)
    ]


def marks_plan(scene_models: Sequence[str], n_scenes: int, seed: int = 0) -> list[Shard]:
    """Plan maps of known order on the scenes: masks that mark something else than the truth."""
    names = [f"scenes_{twin}_{mark}" for twin in TWINS for mark in MARKS if mark != "truth"]
    return [
        shard
        for model in scene_models
        for name in names
        for shard in plan(model, ["GroundTruth"], n_scenes, dataset=name, seed=seed)
    ]


Plan = Callable[..., list[Shard] | dict[str, list[Shard]]]
PLANS: dict[str, Sequence[Plan]] = {
    "02_train_models": (accuracy_plan, bird_accuracy_plan),
    "03_trivial_cams": (fig1_plan, stress_plan),
    "04_metric_correlation": (table1_plan, birds_plan),
    "05_rank_vs_magnitude": (fig4_plan,),
    "06_refinecam_qualitative": (fig5_plan,),
    "07_refinecam_benchmark": (table1_plan,),
    "08_aggregation_ablation": (table2_plan,),
    "09_conventions_audit": (audit_plan, birds_plan, rounding_plan),
    "10_model_randomisation": (randomisation_plan,),
}
"""Notebook -> its plans. A plan's arguments are parameters of the notebook with the same names."""


def planned(plan: Plan, values: Mapping[str, object]) -> list[Shard]:
    """Return the shards of a plan with a notebook's parameters."""
    found = plan(**{name: values[name] for name in inspect.signature(plan).parameters if name in values})
    return [s for part in found.values() for s in part] if isinstance(found, dict) else found


def plan_of(book: str, values: Mapping[str, object]) -> list[Shard]:
    """Return the shards that a notebook measures with the parameters `values`. Some notebooks measure none."""
    return list(dict.fromkeys(shard for plan in PLANS.get(book, ()) for shard in planned(plan, values)))
