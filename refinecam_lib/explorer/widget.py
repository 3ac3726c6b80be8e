"""An explorer for notebooks: choose a picture, network, class, methods and layer, and see maps and scores change.

>>> explore(["chelsea", "holiday.jpg"])

The work runs in a thread. It shows progress and can be stopped between two forward passes. Where widgets do not run (a
notebook on GitHub, nbconvert) the explorer is a static picture.
"""

import base64
import html
import io
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from .. import paths
from ..analysis.grids import image_grid
from ..analysis.pictures import pixels_of
from ..analysis.plots import NAMES
from ..datasets.photographs import BUNDLED
from ..errors import InputError
from ..explanation import METHODS, Variant, method_of
from ..refinement import AGGREGATES, BEST, COMBINATIONS
from ..reproduce.products import PRODUCTS, products_folder
from ..scoring import CONVENTIONS, scores
from ..toolbox.extras import of_extra
from ..toolbox.pictures import blend
from .workbench import NETWORKS, Choice, Explained, Load, Workbench, class_options, score_table

with of_extra("notebooks"):
    import ipywidgets as widgets

COPY = (
    "const area = document.createElement('textarea'); area.value = this.dataset.code; document.body.append(area);"
    "area.select(); this.innerText = document.execCommand('copy') ? 'copied' : 'cannot copy'; area.remove()"
)
"""What a click on the copy button does in the browser. Unlike navigator.clipboard, it also works without https."""
TABLE_STYLE = """<style>
.refinecam-scores {container-type: inline-size; overflow-x: auto; line-height: 1.4; font-size: 12px}
.refinecam-scores :is(th, td) {padding-right: 1em} .refinecam-scores :is(th, td:first-child) {white-space: nowrap}
@container (max-width: 450px) {
.refinecam-scores tr {display: grid; grid-template-columns: 9em 1fr 1fr}
.refinecam-scores th:nth-child(4) {display: none} .refinecam-scores td:nth-child(4) {grid-column: 1 / -1; opacity: 0.7}
}
</style>"""
"""Where the table has no room for four columns, what a score is made of goes on a line of its own."""
WRAP = {"flex_flow": "row wrap", "align_items": "flex-start", "width": "100%"}
"""The layout of a box whose parts go on the next line where there is no room. A widget here would be in every notebook."""


class Stopped(Exception):
    """The work was stopped, or a newer choice replaced it."""


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray((255 * pixels.clip(0, 1)).round().astype(np.uint8)).save(file, "png", compress_level=1)
    return file.getvalue()


def _fill(box: widgets.Box, pictures: Mapping[str, bytes], layout: Mapping[str, str]) -> None:
    """Show titled PNG files in a box. Reuse the widgets that it has."""
    panels = list(box.children[: len(pictures)])
    while len(panels) < len(pictures):
        image = widgets.Image(layout=widgets.Layout(width="100%", margin="0"))
        panels.append(widgets.VBox([widgets.HTML(), image], layout=widgets.Layout(margin="0 8px 0 0", **layout)))
    for panel, (title, png) in zip(panels, pictures.items()):
        panel.children[0].value, panel.children[1].value = f"<b>{html.escape(title)}</b>", png
    box.children = panels


def static_figure(shown: Explained, convention: str = "recommended", opacity: float | None = 0.9) -> Figure:
    """Draw what was explained: the picture, its maps with their scores, and the maps that were combined."""
    values = scores(shown.rows, convention)
    notes = [f"ARCC {v.arcc:.2f}, ROAD {v.road:.2f}\nComplexity {v.complexity:.2f}" for v in values.itertuples()]
    notes = ["", *(note.replace("nan", "undefined") for note in notes), *[""] * len(shown.factors)]
    pixels = pixels_of(shown.picture)
    drawn = [blend(pixels, heat.numpy(), opacity) for heat in [*shown.maps.values(), *shown.factors.values()]]
    cells = [(each, None) for each in [pixels, *drawn]]
    columns = [name.replace(", ", "\n") for name in ["picture", *shown.maps, *shown.factors]]
    return image_grid([cells], columns, [""], f"{shown.title}; convention {convention}", [notes])


class Explorer:
    """Controls, maps and scores. As the last expression of a notebook's cell it is shown.

    Args:
        pictures: Names in BUNDLED or paths.
        networks: Name -> function that returns (spec, model). Add your own.
        method: The method that is shown first.
        layer: The number of the layer that it starts from; 0 is the shallowest.
        aggregate: How the second map combines the layers. The first map is the layer's alone.

    Raises:
        InputError: A name is unknown, or there is no picture or no network.
    """

    def __init__(
        self,
        pictures: Sequence[str | Path] = BUNDLED,
        networks: Mapping[str, Load] = NETWORKS,
        method: str = "GradCAM",
        layer: int = 0,
        aggregate: str = BEST,
    ):
        method_of(method)
        Variant(layer, aggregate)
        if not pictures or not networks:
            raise InputError("Expected at least one picture and one network, got none. Pass both, or use the defaults.")
        self.bench = Workbench(pictures, networks)
        wide, labels = widgets.Layout(flex="1 1 260px", width="auto", max_width="440px"), {"description_width": "108px"}

        def choose(label: str, options: Sequence = (), **value: object) -> widgets.Dropdown:
            return widgets.Dropdown(description=label, options=options, layout=wide, style=labels, **value)

        methods = list(dict.fromkeys([*METHODS, method]))
        aggregates = [(NAMES.get(name, name.replace("_", " ")), name) for name in ("none", *AGGREGATES, *COMBINATIONS)]
        self.picture = choose("picture", list(self.bench.pictures))
        self.network = choose("network", list(networks))
        self.target = choose("class")
        self.search = widgets.Combobox(placeholder="search all classes", layout=wide)
        self.layer = choose("from layer", [(str(layer), layer)])
        self.method = choose("method", methods, value=method)
        self.aggregate = choose("aggregate", aggregates)
        self.method2 = choose("2nd method", [("the same", ""), *((name, name) for name in methods)])
        self.aggregate2 = choose("2nd aggregate", aggregates, value=aggregate)
        self.convention = choose("convention", list(CONVENTIONS))
        self.opacity = widgets.FloatSlider(0.9, max=1, step=0.05, description="opacity", layout=wide, style=labels)
        self.alone = widgets.Checkbox(description="map only", indent=False, layout=widgets.Layout(width="100px"))
        self.upload = widgets.FileUpload(accept="image/*", description="your picture")
        self.stop = widgets.Button(description="stop", icon="stop", disabled=True)
        self.save = widgets.Button(description="save picture", icon="save")
        self.status, self.title = widgets.HTML(), widgets.HTML()
        self.table = widgets.HTML(layout=widgets.Layout(flex="3 1 330px", min_width="0"))
        self.progress = widgets.IntProgress(layout=widgets.Layout(width="160px", display="none"))
        self.maps, self.factors = widgets.Box(layout=widgets.Layout(**WRAP)), widgets.Box(layout=widgets.Layout(**WRAP))
        self.copy = widgets.HTML()
        self.code = widgets.Textarea(layout=widgets.Layout(width="100%", height="250px"))
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="explorer")
        self._job: Future | None = None
        self._halt = threading.Event()
        self._classes: dict[str, int] = {}
        self._classes_of: tuple[str, str] | None = None  # the picture and network whose classes are offered
        self.shown = self.bench.explain(self._complete(self._choice()))  # not in the thread, for a static picture too
        self._draw()
        asked = [self.picture, self.network, self.target, self.layer]
        asked += [self.method, self.aggregate, self.method2, self.aggregate2]
        for control in asked:
            control.observe(self._asked, "value")
        for control in (self.opacity, self.alone, self.convention):
            control.observe(lambda change: self._draw(), "value")
        self.search.observe(self._searched, "value")
        self.upload.observe(self._uploaded, "value")
        self.stop.on_click(lambda button: self._halt.set())
        self.save.on_click(lambda button: self._save())
        controls = widgets.Box(
            [*asked[:3], self.search, *asked[3:], self.convention, self.opacity, self.alone],
            layout=widgets.Layout(**WRAP),
        )
        state = widgets.Box(
            [self.upload, self.save, self.copy, self.stop, self.status, self.progress], layout=widgets.Layout(**WRAP)
        )
        lines = widgets.Accordion([self.code], titles=["code that gives these maps"])
        results = widgets.Box([self.table, widgets.Box([self.factors], layout=widgets.Layout(flex="2 1 260px"))])
        results.layout = widgets.Layout(**WRAP)
        self.widget = widgets.VBox([controls, state, self.title, self.maps, results, lines])

    def _choice(self) -> Choice:
        target = self.target.value if self._classes_of == (self.picture.value, self.network.value) else None
        second = self.method2.value or self.method.value, self.aggregate2.value
        pairs = (self.method.value, self.aggregate.value), second
        return Choice(self.picture.value, self.network.value, target, self.layer.value, pairs)

    def _asked(self, change: Mapping) -> None:
        """Stop the work that runs, and start what is asked for now."""
        if threading.current_thread().name.startswith("explorer"):
            return  # the worker itself set the classes or layers of a new picture or network
        self._halt.set()
        self._halt = threading.Event()
        self._job = self._worker.submit(self._explain, self._choice(), self._halt)

    def wait(self) -> None:
        """Return when the work is done. Scripts and tests need it."""
        if self._job is not None:
            self._job.result()

    def _searched(self, change: Mapping) -> None:
        """Offer the class that was found among all classes, and choose it."""
        if (index := self._classes.get(change["new"])) is None:
            return
        if index not in [value for _, value in self.target.options]:
            self.target.options = (*self.target.options, (change["new"], index))
        self.target.value, self.search.value = index, ""

    def _uploaded(self, change: Mapping) -> None:
        for file in change["new"]:
            try:
                name = self.bench.add(file["name"], bytes(file["content"]))
            except InputError as error:
                self._report(error)
            else:
                self.picture.options = list(self.bench.pictures)
                self.picture.value = name

    def _save(self) -> None:
        """Write the static figure as a PNG and say where."""
        choice = self.shown.choice
        parts = [Path(choice.picture).stem, choice.network, choice.target, choice.layer, *sum(choice.pairs, ())]
        name = re.sub(r"[^\w+^.-]", "", "_".join(map(str, parts)))
        try:
            file = products_folder("explorer") / f"{name}.png"
            file.write_bytes(self._figure_png(dpi=150))
        except (InputError, OSError) as error:
            self._report(error)
        else:
            self.status.value = f"saved {html.escape(paths.shown(file))}"

    def _report(self, error: Exception) -> None:
        reason = str(error).splitlines()[0] if str(error) else ""
        line = reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}"
        self.status.value = html.escape(line, quote=False)

    def _explain(self, choice: Choice, halt: threading.Event) -> None:
        """Compute a choice and show it, unless it is stopped. An error becomes the status line."""
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
        self.stop.disabled, self.progress.layout.display = False, None
        try:
            self.status.value = f"loading {choice.network}" if choice.network not in self.bench._loaded else "..."
            network = self.bench.network(choice.network)[1]
            with network.register_forward_pre_hook(lambda module, args: tick(len(args[0]))):
                shown = self.bench.explain(self._complete(choice), say)
            if not halt.is_set():
                self.shown = shown
                self._draw()
                self.status.value = f"{time.perf_counter() - start:.1f} s"
        except Stopped:
            self.status.value = f"stopped after {done} images through the network, {time.perf_counter() - start:.1f} s"
        except Exception as error:  # noqa: BLE001 - a thread's error would vanish; a download fails in many ways
            self._report(error)
        finally:
            self.stop.disabled, self.progress.layout.display = True, "none"

    def _complete(self, choice: Choice) -> Choice:
        """Offer the layers and classes of a new picture or network. Complete the choice by the predicted class."""
        spec, _ = self.bench.network(choice.network)
        layers = [(f"{number}: {name}", number) for number, name in enumerate(spec.layers)]
        if list(self.layer.options) != layers:
            Variant(choice.layer).layers(spec.layers)
            self.layer.options = layers
            self.layer.value = choice.layer
        if choice.target is None:
            self.target.options, self._classes = class_options(self.bench.probabilities(choice))
            self.target.value, self.search.options = self.target.options[0][1], tuple(self._classes)
            self._classes_of = choice.picture, choice.network
            choice = replace(choice, target=self.target.value)
        return choice

    def _opacity(self) -> float | None:
        return None if self.alone.value else self.opacity.value

    def _draw(self) -> None:
        """Show what was computed last, at the chosen opacity and under the chosen convention."""
        shown, opacity, convention = self.shown, self._opacity(), self.convention.value
        maps, factors = (
            {name: _png(blend(pixels_of(shown.picture), heat.numpy(), opacity)) for name, heat in part.items()}
            for part in (shown.maps, shown.factors)
        )
        picture = {"picture": _png(shown.picture.permute(1, 2, 0).numpy())}
        _fill(self.maps, picture | maps, {"flex": "1 1 200px", "max_width": "448px"})
        _fill(self.factors, factors, {"flex": "1 1 110px", "max_width": "140px"})
        table = score_table(shown.rows, convention).reset_index()
        text = table.to_html(escape=False, index=False, border=0, justify="left")
        notes = [
            f"{method} refined: the {variant.aggregate.replace('_', ' ')} of its layers' maps, shown from shallow to deep."
            if variant.aggregate != "none"
            else f"{method} has one map, not one per layer, so there is nothing to refine."
            for method, variant in shown.choice.columns.values()
            if variant.aggregate != "none" or not method_of(method).refines
        ]
        self.title.value = html.escape(shown.title)
        self.table.value = f'{TABLE_STYLE}<div class="refinecam-scores">{text}{"<br>".join(notes)}</div>'
        self.code.value = self.bench.code(shown.choice, convention)
        button = f'class="jupyter-button widget-button" data-code="{html.escape(self.code.value)}" onclick="{COPY}"'
        self.copy.value = f"<button {button}>copy code</button>"

    def _figure_png(self, dpi: float | str = "figure") -> bytes:
        file, figure = io.BytesIO(), static_figure(self.shown, self.convention.value, self._opacity())
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
        return file.getvalue()

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        """Return the widget, and a picture of what it shows for programs that cannot run it."""
        picture: dict[str, object] = {"image/png": base64.b64encode(self._figure_png()).decode()}
        return self.widget._repr_mimebundle_() | {"text/plain": self.shown.title} | picture


def explore(
    pictures: Sequence[str | Path] = BUNDLED,
    networks: Mapping[str, Load] = NETWORKS,
    method: str = "GradCAM",
    layer: int = 0,
    aggregate: str = BEST,
) -> Explorer | Figure:
    """Return an Explorer. In a notebook that the runner executes, return the figure of what it shows first.

    The arguments and errors are Explorer's.
    """
    if not os.environ.get(PRODUCTS):
        return Explorer(pictures, networks, method, layer, aggregate)
    bench = Workbench(pictures, networks)
    pairs = (method, "none"), (method, aggregate)
    choice = Choice(next(iter(bench.pictures)), next(iter(networks)), None, layer, pairs)
    return static_figure(bench.explain(replace(choice, target=int(bench.probabilities(choice).argmax()))))
