"""Write docs/gpu.md: python -m benchmarks.gpu [--minutes 8]. Try it with --device cpu --images 1.

It first measures the rows per second of each method on each network, then each part of the benchmark. It stops after
`--minutes` and names what it left out.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from refinecam_lib import paths
from refinecam_lib.explanation import BASE, CAMS, OTHERS, REFINED, SLOW
from refinecam_lib.networks.layers import fast_pointwise
from refinecam_lib.networks.memory import keep_memory
from refinecam_lib.networks.zoo import MODELS
from refinecam_lib.sweeps.run import measured
from refinecam_lib.sweeps.shard import plan
from refinecam_lib.training.loop import device_of

from .__main__ import report, run, subject, table
from .parts import PARTS

BATCH = 32
"""Images per batch."""


def rates(networks: list[str], images: int, until: float) -> Iterator[dict]:
    """Measure the rows per second of each method on each network, after a warm-up. Slow methods come last, on one image."""
    order = sorted((*CAMS, *OTHERS), key=lambda method: (method in SLOW, method == "ScoreCAM"))
    for method in order:
        n = 1 if method in SLOW else images
        for name in networks:
            if time.time() > until:
                yield {"network": name, "method": method, "rows": 0, "seconds": float("nan")}
                continue
            (warm, *_), shards = (
                plan(name, [method], 1, [BASE], size=1),
                plan(name, [method], n, [BASE, REFINED], size=n),
            )
            if method not in SLOW:
                measured(warm)
            start = time.perf_counter()
            rows = sum(len(measured(shard)) for shard in shards)
            yield {"network": name, "method": method, "rows": rows, "seconds": time.perf_counter() - start}


def _rate(rate: float) -> str:
    return "-" if pd.isna(rate) else f"{rate:.3g}"


def page(result: dict) -> str:
    """Write docs/gpu.md."""
    found = pd.DataFrame(result["rates"])
    wide = (found["rows"] / found["seconds"]).groupby([found["method"], found["network"]], sort=False).first().unstack()
    lines = [
        "# What was measured on a GPU",
        "",
        (
            f"Measured by `python -m benchmarks.gpu` on {result['device']}, in batches of {result['images']} images. A dash "
            f"marks what did not fit into {result['minutes']:g} minutes."
        ),
        "",
        "Rows per second, higher is better. A row is one map with all its measurements.",
        "",
        f"| method | {' | '.join(wide)} |",
        "|---" * (1 + len(wide.columns)) + "|",
        *(f"| {' | '.join([method, *map(_rate, row)])} |" for method, row in zip(wide.index, wide.to_numpy())),
        "",
        "The parts of the benchmark. [performance.md](performance.md) explains them.",
        "",
        table(result),
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write gpu.json and gpu.md after each step. Return 1 if a part disagrees with public code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=BATCH, help=f"images per batch (default {BATCH})")
    parser.add_argument("--networks", nargs="+", default=["efficientnet_lite0", "resnet18", *MODELS])
    parser.add_argument("--parts", nargs="+", default=list(PARTS))
    parser.add_argument("--out", type=Path, default=paths.ROOT / "docs")
    chosen = parser.parse_args(arguments)
    keep_memory()
    fast_pointwise()
    device, start = str(device_of(chosen.device)), time.time()
    networks = list(dict.fromkeys(chosen.networks))
    result = report([], {"device": device}) | {"minutes": chosen.minutes, "images": chosen.images, "rates": []}
    used = result["environment"]
    result["device"] = used["cuda"] if device == "cuda" else used["processor"]

    def write() -> None:
        chosen.out.mkdir(parents=True, exist_ok=True)
        (chosen.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
        (chosen.out / "gpu.md").write_text(page(result))

    for rate in rates(networks, chosen.images, start + 30 * chosen.minutes):
        result["rates"].append(rate)
        print(rate, flush=True)
        write()
    rows, left = [], []
    for part in sorted(chosen.parts, key=lambda part: part == "scorecam"):
        for name in networks:
            if time.time() > start + 60 * chosen.minutes:
                left.append(f"{name} {part}")
                continue
            n = 1 if part == "scorecam" else min(4, chosen.images)
            rows += run([subject(name, chosen.images, device)], [part], n, chosen.images, 1, 1)
            print(f"{name} {part}: {rows[-1].ratio[0]:.3g}x, {rows[-1].over_floor}", flush=True)
            result["rows"] = report(rows, {})["rows"]
            write()
    print(f"{time.time() - start:.0f} s; left out: {', '.join(left) or 'nothing'}")
    return 0 if all(row.agrees for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
