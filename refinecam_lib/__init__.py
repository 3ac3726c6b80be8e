"""Evaluate and refine class activation maps: the library behind the notebooks of arXiv 2605.14641.

>>> import refinecam_lib as rc                                    # costs nothing until a name is used
>>> capture = rc.Capture(model, inputs, target, layers)
>>> explanation = rc.explain(capture, "LayerCAM", rc.REFINED)
>>> rc.scores(rc.measure(explanation))                           # one row per image

The public names are listed in __init__.pyi.
"""

import lazy_loader

from .networks.torchvision_import import install

__version__ = "0.1.0"

install()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
