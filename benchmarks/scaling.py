"""What a sweep costs, counted and timed: python -m benchmarks.scaling [--networks resnet18 ...] [--images 2]

Counts a network's operations, and the images that each method sends through it, forward and back; times the shards of
a small sweep; and multiplies. docs/scaling.md shows the arithmetic with the numbers that this prints.
"""

from .timing import Floor  # noqa: F401 - so that both commands refuse alike where a part is missing
