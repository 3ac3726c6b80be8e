"""How each shipped network was made: recipes one after the other, each from the weights of the one before.

>>> [recipe.images for recipe in SHIPPED["vgg11"]]
[76800, 32000]
"""

from dataclasses import replace

from .recipe import Recipe

_BIRDS = Recipe(
    task="birds", weights="none", freeze=False, batch=50, lr=2e-3, validation=500, stages=((128, 0.75), (256, 0.25))
)
_NORMS = replace(_BIRDS, batch=25, lr=1e-3, clip=1.0, warmup=0.05, stages=((128, 0.8), (256, 0.2)), validate_every=5000)
_LATER = Recipe(freeze=False, shares=(6, 1, 1), validation=1000)
_NEW = Recipe(weights="none", freeze=False, batch=64, smoothing=0.05, warmup=0.03, validation=200)
_WHOLE = replace(_NEW, batch=32, ema=0.995, stages=((224, 1.0),))
_MIXED = replace(_WHOLE, lr=8e-4, shares=(6, 1, 1), validation=1000)
_HINTED = replace(_NEW, batch=16, clip=1.0, ema=0.997, shares=(4, 2, 1), zoom=1.2, teacher="efficientnet_lite0")


def _chain(model: str, *recipes: Recipe) -> tuple[Recipe, ...]:
    """The recipes of a network, each with a seed of its own, so that none meets the items of another."""
    return tuple(replace(recipe, model=model, seed=seed) for seed, recipe in enumerate(recipes))


SHIPPED = {
    "efficientnet_lite0": _chain(
        "efficientnet_lite0",
        Recipe(),
        replace(_LATER, images=16_000, lr=7e-4, stages=((96, 0.6), (224, 0.4))),
        replace(_LATER, images=11_200, lr=5e-4, stages=((224, 1.0),), ema=0.995, validate_every=2800),
        replace(_LATER, images=8_000, lr=4e-4, stages=((224, 1.0),), ema=0.995, validate_every=2000),
    ),
    "resnet18": _chain(
        "resnet18",
        replace(_NEW, images=38_400, warmup=0.05, stages=((64, 1.0),), shares=(2, 1, 0), faint=0.3),
        replace(_NEW, images=57_600, stages=((96, 0.3), (128, 0.7)), validate_every=6400),
        replace(_WHOLE, images=24_000, validation=600),
        replace(_MIXED, images=28_800, stages=((128, 0.45), (224, 0.55)), validate_every=4800),
        replace(_MIXED, images=70_400, shares=(5, 2, 1), stages=((128, 0.4), (224, 0.6)), validate_every=6400),
        replace(_MIXED, images=32_000, lr=6e-4, shares=(6, 2, 1), validate_every=4000),
        replace(_MIXED, images=32_000, lr=5e-4, shares=(8, 2, 1), validate_every=4000, ema=0.998),
    ),
    "vgg11": _chain(
        "vgg11",
        replace(
            _NEW,
            images=76_800,
            stages=((64, 0.4), (128, 0.6)),
            shares=(3, 2, 1),
            faint=0.15,
            validate_every=6400,
        ),
        replace(_WHOLE, images=32_000, shares=(4, 2, 1), validation=600),
    ),
    "convnext_tiny": _chain(
        "convnext_tiny",
        replace(
            _HINTED,
            images=48_000,
            lr=1.5e-3,
            stages=((64, 1.0),),
            shares=(3, 1, 0),
            zoom=1.5,
            validation=300,
            validate_every=4000,
            exam=64,
        ),
        replace(
            _HINTED,
            images=16_800,
            lr=8e-4,
            stages=((64, 0.4), (128, 0.35), (224, 0.25)),
            validation=400,
            validate_every=4200,
        ),
        replace(
            _HINTED,
            images=32_000,
            stages=((64, 0.6), (128, 0.25), (224, 0.15)),
            validation=400,
            validate_every=8000,
        ),
        replace(
            _HINTED,
            images=24_000,
            lr=7e-4,
            stages=((64, 0.5), (128, 0.3), (224, 0.2)),
            shares=(6, 2, 1),
            validation=600,
            validate_every=6000,
        ),
        replace(
            _HINTED,
            images=22_400,
            lr=6e-4,
            stages=((64, 0.54), (128, 0.28), (224, 0.18)),
            shares=(8, 2, 1),
            zoom=1.1,
            validation=1000,
            validate_every=6400,
        ),
        replace(
            _HINTED,
            images=36_000,
            lr=6e-4,
            ema=0.998,
            stages=((64, 0.4), (128, 0.35), (224, 0.25)),
            shares=(8, 1, 1),
            zoom=1.0,
            validation=1000,
            validate_every=9000,
        ),
    ),
    "swin_tiny": _chain(
        "swin_tiny",
        replace(
            _HINTED,
            images=30_000,
            lr=1.2e-3,
            maps_first=1.0,
            stages=((56, 1.0),),
            shares=(3, 1, 0),
            zoom=1.5,
            validation=300,
            validate_every=8000,
            exam=56,
        ),
        replace(
            _HINTED,
            images=11_200,
            lr=6e-4,
            maps_first=0.3,
            ema=0.995,
            stages=((112, 0.4), (224, 0.6)),
            shares=(5, 2, 2),
            validation=400,
            validate_every=3728,
        ),
        replace(
            _HINTED,
            images=157_696,
            batch=64,
            warmup=0.05,
            ema=0.998,
            stages=((224, 1.0),),
            shares=(5, 2, 2),
            zoom=1.1,
            validation=1000,
            validate_every=19_712,
            norms=256,
        ),
    ),
    "small_resnet_birds": (replace(_BIRDS, model="small_resnet", images=80_000, validate_every=5000),),
    "small_vgg_birds": (replace(_BIRDS, model="small_vgg", images=40_000, validate_every=4000),),
    "small_convnext_birds": _chain(
        "small_convnext",
        replace(_NORMS, images=60_000, lr=2e-3),
        replace(_NORMS, images=15_000, stages=((256, 1.0),), validate_every=3000),
    ),
    "small_swin_birds": (replace(_NORMS, model="small_swin", images=70_000),),
}
"""Recipes by the name of the checkpoint."""
