"""What each notebook measures. A notebook calls its plans, and the command line calls the same plans ahead of it.

Arguments that several plans share are parameters of the notebooks:
    models: names of networks.
    light_models: those of them that skip middle layers and the methods in `explanation.SLOW`.
    few_images: network -> its number of images, where that is smaller than the method's.
    n_images: images per method. n_score_cam and n_captum: the same for ScoreCAM and for the methods of captum.
    seed: of everything random.
    data: a name in `registry.DATASETS`.
    scene_models: networks that know the scenes. light_scene_models: those of them that are light, as above.
    n_scenes: scenes per method, ten conditions in turn. n_scenes_slow: the same for slow methods.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from ..datasets.scenes import MARKS, TWINS
from ..errors import one_of
from ..explanation import BASE, CAMS, CONTROLS, METHODS, OTHERS, REFINED, SLOW, TRIVIAL, Variant, method_of
from ..networks.zoo import spec_of
from ..refinement import AGGREGATES, COMBINATIONS
from .published import DEFECTS
from .registry import DATASETS
from .shard import NO_METHOD, Shard, plan

EIGHTH_ROOT = "GradCAM++^0.125"
"""The map of Fig. 4: Grad-CAM++ raised to 1/8, so its pixels have the same order and other values."""
COMBINED = ("GradCAM", "GradCAM++", "LayerCAM", "ShapleyCAM", "GuidedGradCAM")
"""The methods whose layers are combined in every way."""
RIVALS = ("GuidedFilter", "FullGrad", "PolyCAM")
"""Methods that fuse layers in their own way."""
FINALISTS = ("mean", "soft_and_0.2")
"""The best combination that averages maps, and the best that multiplies them, see `analysis.contest`. A test repeats it."""
SCENES = tuple(f"scenes_{twin}" for twin in TWINS)
"""The data sets of the twins, whose weights have the same names."""
IMPUTED = ("GroundTruth", "CentreGaussian", "EdgeDetector", "RandomCAM", "GradCAM++", "LayerCAM")
"""The methods on which imputers are compared."""
NONE_FEW: Mapping[str, int] = {}
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
    few_images: Mapping[str, int] = NONE_FEW,
    ablation: bool = False,
) -> list[Shard]:
    """Return the shards behind Fig. 1, Table 1 and Table 2. They overlap, so each row is measured once.

    Every layer has Base and RefineCAM. Light models have the shallowest layer's and the deepest Base map only, and no
    methods in SLOW. ScoreCAM's cost grows with the channels, so it has no middle layers, and its shards hold every
    aggregate.

    Args:
        images: method -> number of images. Cheap methods get more.
        ablation: Add the other aggregates of the shallowest layer.
    """
    shards, weights = [], DATASETS[one_of("dataset", dataset, DATASETS)].weights
    for model in light_models:
        spec_of(model, weights)
    for model in models:
        deepest = Variant(len(spec_of(model, weights).layers) - 1)
        others = [Variant(0, aggregate) for aggregate in AGGREGATES if aggregate != "product"]
        middle = [Variant(layer, aggregate) for layer in range(1, deepest.layer) for aggregate in ("none", "product")]
        for method, n in images.items():
            n = min(n, few_images.get(model, n))
            if method in SLOW and model in light_models:
                continue
            if method == "ScoreCAM":
                shards += plan(model, [method], n, [BASE, REFINED, *others, deepest], dataset, 2, seed)
                continue
            variants = [BASE, REFINED, deepest] + (middle if model not in light_models else [])
            shards += plan(model, [method], n, variants, dataset, seed=seed)
            if ablation and method_of(method).refines:
                shards += plan(model, [method], n, others, dataset, seed=seed)
    return shards


def fig1_plan(
    models: Sequence[str],
    n_images: int,
    n_score_cam: int,
    light_models: Sequence[str] = (),
    few_images: Mapping[str, int] = NONE_FEW,
    seed: int = 0,
    data: str = "synthetic",
    methods: Sequence[str] = ("GradCAM++", "LayerCAM", "ScoreCAM"),
) -> list[Shard]:
    """Plan Fig. 1: three methods, or those in `methods`, and the trivial maps."""
    images = {name: n_score_cam if name == "ScoreCAM" else n_images for name in (*methods, *TRIVIAL)}
    return paper_plan(models, images, seed, data, light_models, few_images)


def stress_plan(
    models: Sequence[str],
    n_images: int,
    light_models: Sequence[str] = (),
    few_images: Mapping[str, int] = NONE_FEW,
    seed: int = 0,
    data: str = "synthetic",
) -> list[Shard]:
    """Plan the stress test beside Fig. 1: controls, and powers of Grad-CAM++ without light models.

    Ground-truth controls need masks.
    """
    masked = DATASETS[one_of("dataset", data, DATASETS)].masked
    methods = [name for name in CONTROLS if masked or not name.endswith("Truth")]
    full, shards = fully_measured(models, light_models), []
    for model in models:
        powers = [EIGHTH_ROOT, "GradCAM++^8"] if model in full else []
        n = min(n_images, few_images.get(model, n_images))
        shards += plan(model, methods + powers, n, dataset=data, seed=seed)
    return shards


def fig4_plan(model: str, method: str, layer: int, n_images: int, seed: int = 0) -> list[Shard]:
    """Plan Fig. 4: a method's maps raised to powers from 1/8 to 8, named `GradCAM++^0.125` and so on."""
    return plan(model, [f"{method}^{power:g}" for power in POWERS], n_images, [Variant(layer)], seed=seed)


def table1_plan(
    models: Sequence[str],
    n_images: int,
    n_score_cam: int,
    n_captum: int,
    light_models: Sequence[str] = (),
    few_images: Mapping[str, int] = NONE_FEW,
    seed: int = 0,
    data: str = "synthetic",
    methods: Sequence[str] | None = None,
) -> list[Shard]:
    """Plan Table 1 and Fig. 3: five CAM methods and five methods without layers, or only those in `methods`."""
    images = dict.fromkeys(CAMS, n_images) | {"ScoreCAM": n_score_cam} | dict.fromkeys(OTHERS, n_captum)
    if methods is not None:
        images = {method: images.get(method, n_images) for method in methods}
    return paper_plan(models, images, seed, data, light_models, few_images)


def table2_plan(
    models: Sequence[str],
    n_images: int,
    n_score_cam: int,
    light_models: Sequence[str] = (),
    few_images: Mapping[str, int] = NONE_FEW,
    seed: int = 0,
    data: str = "synthetic",
    methods: Sequence[str] = CAMS,
) -> list[Shard]:
    """Plan Table 2: the five CAM methods, or those of `methods` with a map per layer, with every aggregate."""
    refined = [name for name in methods if method_of(name).refines]
    images = {name: n_score_cam if name == "ScoreCAM" else n_images for name in refined}
    return paper_plan(models, images, seed, data, light_models, few_images, ablation=True)


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
    ours = claims_plan([model], n_images, n_score_cam, n_captum, seed=seed)
    ours += paper_plan([model], {"GradCAM": n_images}, seed)
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


def claims_plan(
    models: Sequence[str],
    n_images: int,
    n_score_cam: int,
    n_captum: int,
    light_models: Sequence[str] = (),
    few_images: Mapping[str, int] = NONE_FEW,
    seed: int = 0,
) -> list[Shard]:
    """Plan the claims on several networks: the rows of Tables 1 and 2, Fig. 1 and Fig. 4."""
    shards = table1_plan(models, n_images, n_score_cam, n_captum, light_models, few_images, seed)
    shards += table2_plan(models, n_images, n_score_cam, light_models, few_images, seed)
    shards += paper_plan(models, dict.fromkeys(TRIVIAL, n_images), seed, few_images=few_images)
    few = {model: min(n_images, few_images.get(model, n_images)) for model in models}
    return shards + [shard for model in models for shard in plan(model, [EIGHTH_ROOT], few[model], seed=seed)]


def published_plan(pipeline_models: Sequence[str], n_defects: int, seed: int = 0) -> list[Shard]:
    """Plan the published pipeline: all its defects at once. GradCAM stands in for its ShapleyCAM (D2)."""
    cams = ["GradCAM++", "LayerCAM", "GradCAM", "GuidedGradCAM"]
    methods = [*cams, "InputXGradient", "DeepLift", *TRIVIAL, EIGHTH_ROOT]
    aggregates = ("none", "product", "geometric_mean", "inverse_exp_mean_published")
    variants = [Variant(0, aggregate) for aggregate in aggregates]
    return _every(pipeline_models, ["synthetic_published"], methods, n_defects, variants, seed=seed, defects=DEFECTS)


def convention_plan(networks: Sequence[str], n_validation: int) -> list[Shard]:
    """Plan the choice of a convention: Base and RefineCAM on validation images.

    It has every method with a map per layer, except ScoreCAM, which would take longer than all others together.
    """
    methods = [name for name, method in METHODS.items() if method.refines and name != "ScoreCAM"]
    return _every(networks, ["synthetic_validation"], methods, n_validation, [BASE, REFINED])


def parameter_plan(networks: Sequence[str], n_validation: int) -> list[Shard]:
    """Plan the choice of the combinations' parameters: all candidates on validation images, against the masks alone."""
    return _combined(networks, n_validation, data="synthetic_validation")


def combination_plan(
    networks: Sequence[str], n_combined: int, slow_networks: Sequence[str] = (), n_slow: int = 1, seed: int = 0
) -> list[Shard]:
    """Plan the agreement of every combination with the masks, with methods that fuse layers in their own way beside them.

    Args:
        slow_networks: networks that also get ScoreCAM's combinations and PolyCAM, on n_slow images.
    """
    shards = _combined(networks, n_combined, seed) + _combined(
        slow_networks, n_slow, seed, methods=["ScoreCAM"], size=2
    )
    for method in RIVALS:
        own, n, size = (slow_networks, n_slow, 2) if method in SLOW else (networks, n_combined, 8)
        shards += _every(own, ["synthetic"], [method], n, size=size, seed=seed, measurement="agreement")
    return shards


def finalist_plan(
    networks: Sequence[str], n_finalists: int, seed: int = 0, few_finalists: Mapping[str, int] = NONE_FEW
) -> list[Shard]:
    """Plan all scores of Base, the product, the finalists and the deepest Base map, for Table 1's methods in COMBINED.

    Args:
        few_finalists: network -> its number of images, where that is smaller than n_finalists.
    """
    return _final(networks, n_finalists, seed, few=few_finalists)


def elsewhere_plan(
    bird_models: Sequence[str],
    n_birds: int,
    photo_models: Sequence[str],
    n_photographs: int,
    scene_models: Sequence[str],
    n_scenes: int,
    seed: int = 0,
) -> dict[str, list[Shard]]:
    """Plan the maps of `finalist_plan` on birds, on photographs and on both twins of the scenes."""
    scenes = (_final(scene_models, n_scenes, seed, data=dataset) for dataset in SCENES)
    return {
        "birds": _final(bird_models, n_birds, seed, data="birds"),
        "photographs": _final(photo_models, n_photographs, seed, data="imagenet"),
        "scenes": [shard for shards in scenes for shard in shards],
    }


def faithfulness_plan(networks: Sequence[str], n_finalists: int, seed: int = 0) -> list[Shard]:
    """Plan the scores of other papers for the maps of `finalist_plan`."""
    return _final(networks, n_finalists, seed, "faithfulness")


def choice_plan(choosing_network: str, n_validation: int) -> dict[str, list[Shard]]:
    """Plan the choice of two scores on validation images: both kinds of rows."""
    measured = "scores", "faithfulness"
    return {name: _final([choosing_network], n_validation, 0, name, "synthetic_validation") for name in measured}


def _final(
    networks: Sequence[str],
    images: int,
    seed: int,
    measurement: str = "scores",
    data: str = "synthetic",
    few: Mapping[str, int] = NONE_FEW,
) -> list[Shard]:
    methods, shards = [method for method in COMBINED if method in CAMS], []
    for network in networks:
        n, variants = min(images, few.get(network, images)), _final_variants(network, DATASETS[data].weights)
        shards += plan(network, methods, n, variants, data, seed=seed, measurement=measurement)
    return shards


def _final_variants(network: str, weights: str) -> list[Variant]:
    """Return the shallowest layer's map, product and finalists, and the deepest map."""
    deepest = Variant(len(spec_of(network, weights).layers) - 1)
    return [BASE, REFINED, *(Variant(0, aggregate) for aggregate in FINALISTS), deepest]


def _combined(
    networks: Sequence[str],
    images: int,
    seed: int = 0,
    data: str = "synthetic",
    methods: Sequence[str] = COMBINED,
    size: int = 8,
) -> list[Shard]:
    """Plan Base, the deepest Base map, and every combination from the shallowest layer on."""
    shards = []
    for network in networks:
        variants = [BASE, Variant(len(spec_of(network).layers) - 1)]
        variants += [Variant(0, aggregate) for aggregate in (*AGGREGATES, *COMBINATIONS)]
        shards += plan(network, methods, images, variants, data, size, seed, measurement="agreement")
    return shards


def _every(
    models: Sequence[str],
    datasets: Sequence[str],
    methods: Sequence[str],
    images: int,
    variants: Sequence[Variant] = (BASE,),
    **options: Any,
) -> list[Shard]:
    """Plan every network on every data set."""
    pairs = product(models, datasets)
    return [shard for model, data in pairs for shard in plan(model, methods, images, variants, data, **options)]


def accuracy_plan(models: Sequence[str], n_images: int) -> list[Shard]:
    """Plan the predictions of the shapes' networks on test images, each on raw and on imputed backgrounds."""
    data = ("synthetic_raw", "synthetic_imputed")
    return _every(models, data, [NO_METHOD], n_images, size=50, measurement="predictions")


def bird_accuracy_plan(bird_models: Sequence[str], n_birds: int) -> list[Shard]:
    """Plan the predictions of the birds' networks on test birds."""
    return _every(bird_models, ["birds_labelled"], [NO_METHOD], n_birds, size=50, measurement="predictions")


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
    return _every(scene_models, SCENES, [NO_METHOD], n_scenes, size=10, seed=seed, measurement="certificate")


def scenes_plan(
    scene_models: Sequence[str],
    n_scenes: int,
    n_scenes_slow: int,
    light_scene_models: Sequence[str] = (),
    seed: int = 0,
) -> list[Shard]:
    """Plan Table 1, the trivial maps, the controls and two combinations on both twins of the scenes."""
    shards: list[Shard] = []
    for model in scene_models:
        for dataset in SCENES:
            for method in (*CAMS, *OTHERS, *TRIVIAL, *CONTROLS):
                variants = _final_variants(model, dataset)
                if method not in SLOW:
                    shards += plan(model, [method], n_scenes, variants, dataset, seed=seed)
                elif model not in light_scene_models:
                    shards += plan(model, [method], n_scenes_slow, variants, dataset, 2, seed)
    return shards


def imputers_plan(scene_models: Sequence[str], n_imputed: int, seed: int = 0) -> list[Shard]:
    """Plan ROAD with several imputers beside exact removal, on both twins of the scenes and on the shapes."""
    options: dict = {"size": 10, "seed": seed, "measurement": "imputers"}
    return _every(scene_models, (*SCENES, "synthetic"), IMPUTED, n_imputed, [BASE, REFINED], **options)


def marks_plan(scene_models: Sequence[str], n_scenes: int, seed: int = 0) -> list[Shard]:
    """Plan maps of known order on the scenes: masks that mark something else than the truth."""
    names = [f"{dataset}_{mark}" for dataset in SCENES for mark in MARKS if mark != "truth"]
    return _every(scene_models, names, ["GroundTruth"], n_scenes, seed=seed)


Plan = Callable[..., list[Shard] | dict[str, list[Shard]]]
PLANS: dict[str, Sequence[Plan]] = {
    "02_train_models": (accuracy_plan, bird_accuracy_plan),
    "03_trivial_cams": (fig1_plan, stress_plan),
    "04_metric_correlation": (table1_plan, birds_plan),
    "05_rank_vs_magnitude": (fig4_plan,),
    "06_refinecam_qualitative": (fig5_plan,),
    "07_refinecam_benchmark": (table1_plan,),
    "08_aggregation_ablation": (table2_plan,),
    "09_conventions_audit": (convention_plan, claims_plan, published_plan, audit_plan, birds_plan, rounding_plan),
    "10_model_randomisation": (randomisation_plan,),
    "13_combinations": (parameter_plan, combination_plan, finalist_plan, elsewhere_plan, certificate_plan),
    "14_scores": (choice_plan, finalist_plan, faithfulness_plan),
    "15_scenes": (certificate_plan,),
    "16_scene_scores": (scenes_plan, marks_plan, certificate_plan, imputers_plan),
}
"""Notebook -> its plans. A plan's arguments are parameters of the notebook with the same names."""


def planned(plan: Plan, values: Mapping[str, object]) -> list[Shard]:
    """Return the shards of a plan with a notebook's parameters."""
    found = plan(**{name: values[name] for name in inspect.signature(plan).parameters if name in values})
    return [s for part in found.values() for s in part] if isinstance(found, dict) else found


def plan_of(book: str, values: Mapping[str, object]) -> list[Shard]:
    """Return the shards that a notebook measures with the parameters `values`. Some notebooks measure none."""
    return list(dict.fromkeys(shard for plan in PLANS.get(book, ()) for shard in planned(plan, values)))
