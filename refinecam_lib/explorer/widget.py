"""An explorer for notebooks: choose picture, network, class, method and layer; see the maps and their scores change.

>>> explore(["chelsea", "holiday.jpg"])

The work runs in a thread of its own, which tells how far it is and can be stopped between two forward passes. Where
widgets don't run (a notebook on GitHub, nbconvert) it is a static picture of what it shows.
"""

import base64
import html
import io
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import ipywidgets as widgets
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..analysis.grids import HEAT, image_grid
from ..datasets.photographs import BUNDLED
from ..errors import InputError
from ..explanation import METHODS, Variant, method_of
from ..refinement import AGGREGATES
from ..reproduce.products import PRODUCTS
from ..scoring import CONVENTIONS, scores
from .workbench import NETWORKS, Choice, Explained, Load, Workbench, score_table, watched

NO_FACTORS = "This method has one map, not one a layer, so there is nothing to refine."


class Stopped(Exception):
    """The work was stopped, or nobody waits for it any more."""


def _png(picture: Tensor, heat: Tensor | None = None, opacity: float = 0.0) -> bytes:
    """A picture (3,H,W) in [0,1] with a map (H,W) over it, as a PNG file."""
    pixels = picture.permute(1, 2, 0).double().numpy()
    if heat is not None:
        pixels = (1 - opacity) * pixels + opacity * matplotlib.colormaps[HEAT](heat.numpy())[..., :3]
    file = io.BytesIO()
    Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8)).save(file, "png", compress_level=1)
    return file.getvalue()


def _fill(box: widgets.Box, pictures: Mapping[str, bytes], side: int) -> None:
    """Show titled PNG files of `side` px in a box, in the widgets that it has as far as they go."""
    layout = widgets.Layout(width=f"{side}px", height=f"{side}px")
    panels = list(box.children[: len(pictures)])
    panels += [widgets.VBox([widgets.HTML(), widgets.Image(layout=layout)]) for _ in range(len(pictures) - len(panels))]
    for panel, (title, png) in zip(panels, pictures.items()):
        panel.children[0].value, panel.children[1].value = f"<b>{html.escape(title)}</b>", png
    box.children = panels


def title(shown: Explained) -> str:
    """What is shown, in a line."""
    choice = shown.choice
    layer = f" from layer {next(iter(shown.factors))}" if shown.factors else ""
    said = f"{choice.network} says {shown.class_name} {shown.probability:.2f}"
    return f"{choice.picture}: {said}; {choice.method}{layer}"


def static_figure(shown: Explained, convention: str = "recommended") -> Figure:
    """What was explained, as a figure: the picture, its maps with their scores, and the maps that were combined."""
    picture = shown.picture.permute(1, 2, 0).numpy()
    values = scores(shown.rows, convention)
    notes = [f"ARCC {v.arcc:.2f}, ROAD {v.road:.2f}\nComplexity {v.complexity:.2f}" for v in values.itertuples()]
    notes = [note.replace("nan", "undefined") for note in notes]
    cells = [(picture, heat.numpy()) for heat in [*shown.maps.values(), *shown.factors.values()]]
    columns, below = ["picture", *shown.maps, *shown.factors], ["", *notes, *[""] * len(shown.factors)]
    caption = f"{title(shown)}; convention {convention}"
    return image_grid([[(picture, None), *cells]], columns, [""], caption, [below])


class Explorer:
    """Controls, maps and live scores; the last expression of a notebook's cell shows it.

    pictures: names in BUNDLED or paths. networks: name -> a function that gives (spec, model), for your own as well.
    method, layer (0 = shallowest) and aggregate: what is shown first. Raises InputError for unknown ones.
    """

    def __init__(
        self,
        pictures: Sequence[str | Path] = BUNDLED,
        networks: Mapping[str, Load] = NETWORKS,
        method: str = "LayerCAM",
        layer: int = 0,
        aggregate: str = "product",
    ):
        method_of(method)
        Variant(layer, aggregate)
        if not pictures or not networks:
            raise InputError("an explorer without a picture or a network; allowed: at least one of each")
        self.bench = Workbench(pictures, networks)
        width = widgets.Layout(width="270px")

        def choose(label: str, options: Sequence, value: object = None) -> widgets.Dropdown:
            value = options[0] if value is None else value
            return widgets.Dropdown(description=label, options=options, value=value, layout=width)

        self.picture = choose("picture", list(self.bench.pictures))
        self.network = choose("network", list(networks))
        self.target = widgets.Dropdown(description="class", layout=width)
        self.method = choose("method", list(dict.fromkeys([*METHODS, method])), method)
        self.layer = widgets.Dropdown(description="from layer", options=[(str(layer), layer)], layout=width)
        self.aggregate = choose("aggregate", [(a.replace("_", " "), a) for a in AGGREGATES], aggregate)
        self.convention = choose("convention", list(CONVENTIONS))
        self.opacity = widgets.FloatSlider(0.6, min=0, max=1, step=0.05, description="opacity", layout=width)
        self.upload = widgets.FileUpload(accept="image/*", description="your picture", layout=width)
        self.stop = widgets.Button(description="stop", icon="stop", disabled=True)
        self.progress = widgets.IntProgress(layout=widgets.Layout(width="200px", visibility="hidden"))
        self.status, self.table = widgets.HTML(), widgets.HTML()
        self.maps, self.factors = widgets.HBox(), widgets.HBox(layout=widgets.Layout(flex_flow="row wrap"))
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="explorer")
        self._job: Future | None = None
        self._halt = threading.Event()
        self._classes_of: tuple[str, str] | None = None  # the picture and network whose classes are offered
        choice = self._classes_and_layers(self._choice())
        self.shown = self.bench.explain(choice)  # here and now, for a static picture too
        self._draw()
        for control in (self.picture, self.network, self.target, self.method, self.layer, self.aggregate):
            control.observe(self._asked, "value")
        for control in (self.opacity, self.convention):
            control.observe(lambda change: self._draw(), "value")
        self.upload.observe(self._uploaded, "value")
        self.stop.on_click(lambda button: self._halt.set())
        controls = [self.picture, self.network, self.target, self.method, self.layer, self.aggregate]
        controls += [self.convention, self.opacity, self.upload]
        grid = widgets.HBox(controls, layout=widgets.Layout(flex_flow="row wrap"))
        state = widgets.HBox([self.stop, self.progress, self.status])
        self.widget = widgets.VBox([grid, state, self.maps, self.table, self.factors])

    def _choice(self) -> Choice:
        chosen = (self.method.value, self.layer.value, self.aggregate.value)
        target = self.target.value if self._classes_of == (self.picture.value, self.network.value) else None
        return Choice(self.picture.value, self.network.value, target, *chosen)

    def _asked(self, change: Mapping) -> None:
        """Answer a control: drop the work that runs, and begin what is asked for now."""
        if threading.current_thread().name.startswith("explorer"):
            return  # the worker itself set the classes or layers of a new picture or network
        self._halt.set()
        self._halt = threading.Event()
        self._job = self._worker.submit(self._explain, self._choice(), self._halt)

    def wait(self) -> None:
        """Return when nothing is left to do; scripts and tests need it, a notebook doesn't."""
        if self._job is not None:
            self._job.result()

    def _uploaded(self, change: Mapping) -> None:
        for file in change["new"]:
            try:
                name = self.bench.add(file["name"], bytes(file["content"]))
            except InputError as error:
                self.status.value = html.escape(str(error), quote=False)
            else:
                self.picture.options = list(self.bench.pictures)
                self.picture.value = name

    def _explain(self, choice: Choice, halt: threading.Event) -> None:
        """Compute a choice and show it, unless it is stopped; any error becomes the status line."""
        start, done, step = time.perf_counter(), 0, ""

        def tick(images: int) -> None:
            nonlocal done
            if halt.is_set():
                raise Stopped
            done += images
            self.progress.value = min(self.progress.value + images, self.progress.max)
            if time.perf_counter() - start > 1:
                self.status.value = f"{step}; {done} images through the network, {time.perf_counter() - start:.0f} s"

        def say(text: str, images: int) -> None:
            nonlocal step
            step, self.progress.value, self.progress.max = text, 0, max(images, 1)

        if halt.is_set():
            return
        self.stop.disabled, self.progress.layout.visibility = False, "visible"
        try:
            self.status.value = f"loading {choice.network}" if choice.network not in self.bench._loaded else "..."
            _, model = self.bench.network(choice.network)
            with watched(model, tick):
                choice = self._classes_and_layers(choice)
                shown = self.bench.explain(choice, say)
            if not halt.is_set():
                self.shown = shown
                self._draw()
                self.status.value = f"{time.perf_counter() - start:.1f} s"
        except Stopped:
            self.status.value = f"stopped after {done} images through the network, {time.perf_counter() - start:.1f} s"
        except Exception as error:  # noqa: BLE001 - a thread's error would vanish; a download fails in many ways
            reason = str(error).splitlines()[0] if str(error) else ""
            line = reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}"
            self.status.value = html.escape(line, quote=False)
        finally:
            self.stop.disabled, self.progress.layout.visibility = True, "hidden"

    def _classes_and_layers(self, choice: Choice) -> Choice:
        """Offer a new picture's or network's classes and layers, and complete the choice by the predicted class."""
        spec, _ = self.bench.network(choice.network)
        layers = [(f"{number}: {name}", number) for number, name in enumerate(spec.layers)]
        if list(self.layer.options) != layers:
            Variant(choice.layer).layers(spec.layers)
            self.layer.options = layers
            self.layer.value = choice.layer
        if choice.target is None:
            best = self.bench.top(choice)
            self.target.options = best
            self.target.value = best[0][1]
            self._classes_of = choice.picture, choice.network
            choice = replace(choice, target=best[0][1])
        return choice

    def _draw(self) -> None:
        """Show what was computed last, at the chosen opacity and under the chosen convention."""
        shown, opacity = self.shown, self.opacity.value
        maps = {name: _png(shown.picture, heat, opacity) for name, heat in shown.maps.items()}
        _fill(self.maps, {"picture": _png(shown.picture), **maps}, 224)
        _fill(self.factors, {name: _png(shown.picture, heat, opacity) for name, heat in shown.factors.items()}, 140)
        table = score_table(shown.rows, self.convention.value).reset_index()
        text = table.to_html(escape=False, index=False, border=0, justify="left", col_space=75)
        combined = shown.choice.aggregate.replace("_", " ")
        note = f"RefineCAM is the {combined} of these maps, shallow to deep:" if shown.factors else NO_FACTORS
        self.table.value = f"<b>{html.escape(title(shown))}</b>{text}{note}"

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        """The widget and, for whoever can't run it, what it shows as a picture."""
        file = io.BytesIO()
        static_figure(self.shown, self.convention.value).savefig(file, format="png", metadata={"Software": None})
        picture: dict[str, object] = {"image/png": base64.b64encode(file.getvalue()).decode()}
        return self.widget._repr_mimebundle_() | {"text/plain": title(self.shown)} | picture


def explore(
    pictures: Sequence[str | Path] = BUNDLED,
    networks: Mapping[str, Load] = NETWORKS,
    method: str = "LayerCAM",
    layer: int = 0,
    aggregate: str = "product",
) -> Explorer | Figure:
    """An Explorer; in a notebook that the runner executes, which keeps no widgets, the figure of what it shows first.

    The arguments and what is raised are Explorer's.
    """
    if not os.environ.get(PRODUCTS):
        return Explorer(pictures, networks, method, layer, aggregate)
    bench = Workbench(pictures, networks)
    choice = Choice(next(iter(bench.pictures)), next(iter(networks)), None, method, layer, aggregate)
    return static_figure(bench.explain(replace(choice, target=bench.top(choice)[0][1])))
