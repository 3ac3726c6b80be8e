"""Draw the contents of crowd scenes: comic figures, props and large objects.

Each function draws one thing that stands at (x, y). `h` is its height or length. All are integers in canvas pixels.
"""

from .pen import CLOTHS, HAIRS, LEAVES, SCALE, SKINS, UNIT, Colour, Pen


def figure(pen: Pen, x: int, y: int, h: int) -> None:
    """Draw a comic figure with its feet at (x, y): legs, patterned torso, arms and head."""
    f = 1 if pen.rand() < 0.5 else -1
    skin, hair = pen.shade(SKINS), pen.shade(HAIRS)
    shirt, legs, shoe = pen.shade(CLOTHS), pen.shade(CLOTHS), pen.shade(HAIRS)
    pose, dress = pen.rand(), pen.rand() < 0.25
    seated = pose < 0.14
    hip = y - int(pen.span(0.38, 0.45) * h) if not seated else y - h // 8
    neck = hip - int(0.36 * h)
    shoulder, waist = int(pen.span(0.11, 0.16) * h), int(pen.span(0.09, 0.14) * h)
    nx, thick = pen.about(x, 0.1 * h), max(3, int(0.07 * h))
    stride = int(pen.span(0.02, 0.24) * h)
    skirt = dress or pen.rand() < 0.2
    for side in (-f, f):
        top = (x + side * waist // 2, hip)
        if seated:
            knee = (x + f * int(0.22 * h), pen.about(hip - h // 10, h // 14))
            foot = (x + f * int(pen.span(0.26, 0.36) * h), y)
        else:
            knee = (x + side * (waist + stride) // 2 + f * int(pen.span(0, 0.07) * h), (hip + y) // 2)
            lift = int(pen.span(0, 0.16) * h) if side == -f and stride > 0.12 * h else 0
            foot = (x + side * stride, y - lift)
        pen.limb([top, knee, foot], skin if skirt else legs, thick + thick // 3)
        pen.dot(foot[0] + f * thick // 2, foot[1], thick, max(3, thick * 2 // 3), shoe)
    sleeve = shirt if pen.rand() < 0.6 else skin
    hands = []
    for side in (-f, f):
        sx, sy = nx + side * (shoulder - thick // 2), neck + thick
        ex, ey = sx + side * int(pen.span(0.01, 0.15) * h), sy + int(pen.span(-0.05, 0.18) * h)
        hands.append((pen.about(ex, 0.16 * h), ey + int(pen.span(-0.2, 0.18) * h)))
        arm = [(sx, sy), (ex, ey), hands[-1]]
        if side == -f:
            pen.limb(arm, sleeve, thick)
            torso(pen, (nx, neck, shoulder), (x, hip, waist), int(0.2 * h) if dress and not seated else 0, shirt)
        else:
            head(pen, nx + f * h // 50, neck - h // 12, max(7, int(pen.span(0.095, 0.125) * h)), f, skin, hair)
            pen.limb(arm, sleeve, thick)
    for hand in hands:
        pen.dot(*hand, thick * 2 // 3, thick * 2 // 3, skin)
    held(pen, *hands[1], h // 10)


def torso(pen: Pen, top: tuple[int, int, int], low: tuple[int, int, int], hem: int, shirt: Colour) -> None:
    """Draw a patterned torso from neck to hips, each given as (x, y, half width), or a dress that ends `hem` lower."""
    (nx, neck, shoulder), (x, hip, waist) = top, low
    bottom, half = hip + (hem or waist // 3), waist * 17 // 10 if hem else waist
    soft = shoulder // 3
    pen.shape(
        [(nx - shoulder, neck + soft), (nx - shoulder // 2, neck), (nx + shoulder // 2, neck),
         (nx + shoulder, neck + soft), (x + waist, hip - soft), (x + half, bottom), (x, bottom + soft // 2),
         (x - half, bottom), (x - waist, hip - soft)],
        shirt,
    )  # fmt: skip
    pattern, second = pen.rand(), pen.shade(CLOTHS)
    step = max(2 * SCALE, int(pen.span(0.16, 0.26) * (hip - neck)))
    edge = min(shoulder, waist) - pen.width
    if pattern < 0.32:
        for y in range(neck + step, bottom - pen.width, step):
            middle = nx + (x - nx) * (y - neck) // (hip - neck)
            pen.line([(middle - edge, y), (middle, y + 2), (middle + edge, y)], second, step // 2)
    elif pattern < 0.42:
        for dx in range(-edge + step // 2, edge, step):
            pen.line([(nx + dx, neck + soft), (x + dx, bottom - 2)], second, step // 3)
    elif pattern < 0.58:
        pen.line([(nx - shoulder // 2, neck), (nx, neck + step), (nx + shoulder // 2, neck)])
        pen.line([(nx, neck + step), (x, bottom)])
    elif pattern < 0.68:
        pen.line([(nx - shoulder, neck + soft), (x + waist, hip)], second, step // 2)
    elif pattern < 0.78:
        for _ in range(6):
            dx, dy = pen.about(nx, edge * 0.8), neck + int(pen.span(0.15, 0.95) * (bottom - neck))
            pen.draw.ellipse((dx - 3, dy - 3, dx + 3, dy + 3), second)
    else:
        pen.line([(nx - edge // 2, neck + step), (x - edge // 2, hip - step)], None, 2)
    if pen.rand() < 0.5:
        pen.line([(x - waist, hip - soft), (x + waist, hip - soft)])


def head(pen: Pen, x: int, y: int, r: int, f: int, skin: Colour, hair: Colour) -> None:
    """Draw a head of radius `r` that looks to the side `f` (1 or -1), sometimes with a beard or a hat."""
    kind, cloth = pen.rand(), pen.shade(CLOTHS)
    if kind < 0.2:  # long hair
        pen.rough([(x - r, y - r), (x + r // 2, y - r), (x - f * r // 3, y + r * 3 // 2), (x - f * r * 5 // 4, y + r)],
                  hair, 3)  # fmt: skip
    pen.dot(x - f * r // 5, y - r // 5, r, r, hair if kind < 0.75 else skin)
    pen.draw.ellipse((x + f * r // 6 - r * 5 // 6, y - r // 2, x + f * r // 6 + r * 5 // 6, y + r), skin)
    pen.line([(x + f * r, y - r // 4), (x + f * r * 4 // 3, y + r // 4), (x + f * r * 4 // 5, y + r // 3),
              (x + f * r // 2, y + r), (x - f * r // 3, y + r)])  # fmt: skip
    if pen.rand() < 0.15:
        pen.draw.ellipse((x - r // 2, y + r // 3, x + r // 2, y + r * 3 // 2), hair, pen.ink, 2)
    for ex in (x + f * r // 6, x + f * r * 3 // 4):
        pen.draw.rectangle((ex - 1, y - r // 4, ex + 1, y), pen.ink)
    pen.line([(x + f * r // 8, y + r // 2), (x + f * r * 2 // 3, pen.about(y + r // 2, r // 4))], None, 2)
    if kind > 0.9:  # brimmed hat
        pen.rough([(x - r * 7 // 4, y - r // 2), (x - r * 3 // 4, y - r * 3 // 4), (x - r * 2 // 3, y - r * 7 // 4),
                   (x + r * 2 // 3, y - r * 7 // 4), (x + r * 3 // 4, y - r * 3 // 4), (x + r * 7 // 4, y - r // 2)],
                  cloth, 1)  # fmt: skip
    elif kind > 0.75:  # cap or knitted hat
        tip = y - r * 2 if kind > 0.83 else y - r * 5 // 4
        pen.shape([(x - r, y - r // 3), (x - r * 4 // 5, y - r), (x - f * r // 3, tip), (x + r * 4 // 5, y - r),
                   (x + r, y - r // 3), (x + f * r * 7 // 4, y - r // 4), (x, y - r // 3)], cloth)  # fmt: skip
        if kind > 0.86:
            pen.dot(x - f * r // 3, tip, r // 3 + 2, r // 3 + 2, pen.shade(CLOTHS))


def held(pen: Pen, x: int, y: int, d: int) -> None:
    """Draw what a hand holds: in a third of the cases a stick, flag, bag or balloon, else nothing."""
    kind, cloth = pen.rand(), pen.shade(CLOTHS)
    if kind < 0.1:
        pen.line([(x, y + 3 * d), (pen.about(x, d), y - 3 * d)])
    elif kind < 0.17:
        flag(pen, x, y + d, int(pen.span(4, 6) * d), cloth)
    elif kind < 0.29:
        pen.shape([(x - d, y + d // 2), (x + d, y + d // 2), (x + d + d // 2, y + 2 * d), (x - d, y + 2 * d)], cloth)
    elif kind < 0.33:
        pen.line([(x, y), (x + d, y - 3 * d)], None, 2)
        pen.dot(x + d, y - 4 * d, d, d + d // 3, cloth)


def flag(pen: Pen, x: int, y: int, h: int, cloth: Colour) -> None:
    """Draw a flag on a pole of height `h`."""
    d, top = h // 4, y - h
    pen.line([(x, y), (x, top)])
    pen.shape([(x, top), (x + 2 * d, top + d // 2), (x + 3 * d, top), (x + 3 * d, top + d), (x, top + 2 * d)], cloth)


def dog(pen: Pen, x: int, y: int, h: int) -> None:
    """Draw a four-legged animal."""
    f = 1 if pen.rand() < 0.5 else -1
    fur, leg, chest = pen.shade((*HAIRS, *SKINS)), max(3, h // 9), y - h // 3
    for dx in (-4, -3, 3, 4):
        px = x + dx * h // 9
        pen.limb([(px, chest), (pen.about(px, h // 8), y)], fur, leg)
    tail = (x - f * h // 2, y - h // 2)
    pen.limb([tail, (tail[0] - f * h // 5, pen.about(y - h * 4 // 5, h // 5))], fur, leg // 2)
    back, neck = y - h * 3 // 5, (x + f * h // 2, y - h * 4 // 5)
    pen.shape([(x - f * h // 2, back), (x, back + h // 12), (x + f * h // 3, back), neck,
               (x + f * h * 3 // 5, y - h // 2), (x + f * h * 2 // 5, chest), (x, chest - h // 16),
               (x - f * h // 2, chest)], fur)  # fmt: skip
    top = y - h * 9 // 10
    pen.shape([(x + f * h * 2 // 5, top), (x + f * h * 7 // 10, top), (x + f * h, top + h // 5),
               (x + f * h * 9 // 10, top + h // 3), (x + f * h // 2, top + h // 3)], fur)  # fmt: skip
    pen.line([(x + f * h // 2, top - h // 8), (x + f * h * 2 // 5, top + h // 4)], None, 2 * pen.width)
    pen.draw.rectangle((x + f * h * 7 // 10, top + h // 12, x + f * h * 7 // 10 + 3, top + h // 12 + 3), pen.ink)


def towel(pen: Pen, x: int, y: int, h: int) -> None:
    """Draw a striped towel on the ground."""
    slant, deep = pen.about(0, h // 3), h * 2 // 5
    a, b = pen.shade(CLOTHS), pen.shade(CLOTHS)
    pen.rough([(x, y), (x + h, y - h // 10), (x + h + slant, y - deep), (x + slant, y - deep + h // 10)], a, 3)
    for k in range(1, 6):
        px = x + k * h // 6
        pen.line([(px, y - 4), (px + slant, y - deep + 4)], b, h // 14)


def rock(pen: Pen, x: int, y: int, h: int) -> None:
    """Draw a rock with three cracks."""
    h //= 2
    points = [
        (x + ux * pen.about(h, h // 3) // 360, y - h // 3 + uy * pen.about(h, h // 3) // 500) for ux, uy in UNIT[::2]
    ]
    pen.rough(points, pen.shade(((206, 200, 190), (176, 170, 164), (200, 180, 150))), 3)
    for _ in range(3):
        px, py = pen.about(x, h // 2), pen.about(y - h // 3, h // 6)
        pen.line([(px, py), (px + h // 8, py + h // 12), (px + h // 9, py + h // 6)], None, 2)


def bush(pen: Pen, x: int, y: int, h: int) -> None:
    """Draw a bush, or a tree with a trunk."""
    leaf = pen.shade(LEAVES)
    cy, rx, ry = y - h // 2, int(pen.span(0.35, 0.7) * h), h // 2
    if pen.rand() < 0.5:
        cy, ry = y - h * 2 // 3, h // 3
        pen.shape([(x - h // 12, y), (x - h // 20, cy), (x + h // 18, cy), (x + h // 10, y)], pen.shade(HAIRS[1:3]))
    crown = []
    for (ux, uy), (vx, vy) in zip(UNIT, UNIT[1:] + UNIT[:1], strict=True):
        bump = pen.about(240, 30)
        crown.append((x + ux * rx // 256 * bump // 256, cy + uy * ry // 256 * bump // 256))
        crown.append((x + (ux + vx) * rx // 700, cy + (uy + vy) * ry // 700))
    pen.shape(crown, leaf)
    light = pen.pick(LEAVES)  # not darkened by the tone, so that dark forests keep their contrast
    for k in range(rx * ry // 60):
        ux, uy = pen.pick(UNIT)
        d = int(pen.span(20, 215))
        px, py = x + ux * rx // 256 * d // 256, cy + uy * ry // 256 * d // 256
        pen.line([(px - 6, py - 1), (px - 1, py + 5), (px + 5, py)], pen.ink if k % 2 else light, 3)


def tent(pen: Pen, x: int, y: int, h: int) -> None:
    """Draw a striped tent with a flag."""
    a, b = pen.shade(CLOTHS[:4]), pen.shade(CLOTHS[4:])
    lean, low, half, n = pen.about(0, h // 10), y - h * 2 // 5, h // 2, 7
    walls = [(x - half * 4 // 5, low), (x + half * 4 // 5, low), (x + half * 7 // 8, y), (x - half * 3 // 4, y + 9)]
    pen.rough(walls, b)
    edges = [x - half + 2 * half * k // n for k in range(n + 1)]
    ridge = [x + lean + (2 * k - n) * h // 30 for k in range(n + 1)]
    for k in range(n):
        (left, right), (p, q) = edges[k : k + 2], ridge[k : k + 2]
        bend = y - h * 3 // 5
        pen.shape([(p, y - h * 5 // 6), (q, y - h * 5 // 6), ((right + 2 * q) // 3, bend), (right, low),
                   ((left + right) // 2, low + h // 14), (left, low), ((left + 2 * p) // 3, bend)],
                  a if k % 2 else b)  # fmt: skip
        pen.line([(left, low + h // 12), (pen.about(left, h // 30), y)])
    door = [(x - h // 9, y), (x - h // 14, low + h // 10), (x + h // 12, low + h // 10), (x + h // 7, y)]
    pen.rough(door, pen.shade(HAIRS))
    flag(pen, x + lean, y - h * 5 // 6, h // 8, pen.shade(CLOTHS))


def boat(pen: Pen, x: int, y: int, h: int) -> None:
    """Draw a boat with a striped sail and a crew."""
    hull, sail, band = pen.shade(CLOTHS), pen.shade(CLOTHS), pen.shade(CLOTHS)
    f = 1 if pen.rand() < 0.5 else -1
    mast = x + f * h // 12
    pen.line([(mast, y - h // 5), (pen.about(mast, h // 20), y - h * 4 // 5)], None, 2 * pen.width)
    pen.rough([(mast, y - h * 3 // 4), (mast - f * h // 4, y - h * 2 // 3), (mast - f * h * 7 // 20, y - h * 2 // 5),
               (mast - f * h // 5, y - h // 3), (mast, y - h * 3 // 10)], sail, 8)  # fmt: skip
    for k in range(3):
        py = y - h * (13 - 2 * k) // 20
        pen.line([(mast - f * h // 30, py), (mast - f * h // 8, py + 9), (mast - f * h // 4, py)], band, h // 30)
    for k in range(-4, 5):
        r = h // 26
        place = pen.about(x + k * h // 11, r), pen.about(y - h // 4, r // 2)
        head(pen, *place, r, f, pen.shade(SKINS), pen.shade(HAIRS))
    side = [(x - f * h * 9 // 20, y - h // 4), (x, y - h // 6), (x + f * h // 2, y - h * 3 // 10),
            (x + f * h * 2 // 5, y - h // 12), (x + f * h // 4, y), (x - f * h * 3 // 10, y),
            (x - f * h * 2 // 5, y - h // 12)]  # fmt: skip
    pen.rough(side, hull)
    for k in (1, 2):
        pen.line([(x - f * h * (44 - 3 * k) // 100, y - h // 4 + k * h // 16), (x, y - h // 6 + k * h // 18),
                  (x + f * h * (48 - 4 * k) // 100, y - h * 3 // 10 + k * h // 14)])  # fmt: skip


def cart(pen: Pen, x: int, y: int, h: int) -> None:
    """Draw a cart full of people under a striped awning."""
    a, b = pen.shade(CLOTHS[:4]), pen.shade(CLOTHS[4:])
    wood = pen.shade(((190, 130, 80), (214, 160, 90), *CLOTHS[:2]))
    half, bed, n = h * 9 // 20, y - h // 5, 9
    for dx in (-half * 9 // 10, -half // 3, half // 3, half * 9 // 10):
        pen.line([(x + dx, bed), (pen.about(x + dx, 4), y - h * 3 // 5)], None, 2 * pen.width)
    for k in range(1, n):
        r = h // 24
        place = pen.about(x - half + 2 * half * k // n, r), pen.about(bed - r, r)
        head(pen, *place, r, 1, pen.shade(SKINS), pen.shade(HAIRS))
    low = y - h // 20
    pen.rough([(x - half, bed), (x + half, bed - h // 30), (x + half * 9 // 10, low), (x - half * 9 // 10, low)], wood)
    for k in range(1, n):
        px = x - half + 2 * half * k // n
        pen.line([(px, bed + 4), (pen.about(px, 5), low - 3)])
    for k in range(n):
        left, right = x + half * (2 * k - n) * 11 // (10 * n), x + half * (2 * k + 2 - n) * 11 // (10 * n)
        top, hem = y - h * 7 // 10 + abs(k - n // 2) * h // 120, y - h * 11 // 20
        pen.shape([(left + h // 40, top), (right + h // 40, top), (right, hem), ((left + right) // 2, hem + h // 30),
                   (left, hem)], a if k % 2 else b)  # fmt: skip
    for dx in (-half * 2 // 3, half // 5, half * 3 // 4):
        r, cx, cy = min(9 * SCALE, h // 14), x + dx, y - h // 28
        pen.dot(cx, cy, r, r, wood)
        for ux, uy in UNIT[:8:2]:
            pen.line([(cx - ux * r // 256, cy - uy * r // 256), (cx + ux * r // 256, cy + uy * r // 256)])


def tower(pen: Pen, x: int, y: int, h: int) -> None:
    """Draw a leaning stone tower with a flag."""
    stone = pen.shade(((222, 206, 180), (200, 190, 184), (226, 170, 130)))
    lean, half, top = pen.about(0, h // 10), h // 6, y - h * 4 // 5
    foot = half + h // 20
    pen.rough([(x - foot, y), (x - half + lean, top), (x + half + lean, top), (x + foot, y)], stone, 6)
    for k in range(5):
        px, up, down = x - half + lean - h // 24 + k * (2 * half + h // 12) // 5, top - h // 14, top + h // 30
        pen.rough([(px, down), (px, up), (px + half // 3, up), (px + half // 3, down)], stone, 2)
    for _ in range(h // 6):
        dy = int(pen.span(0.04, 0.78) * h)
        px, py = pen.about(x + lean * dy // h, half * 0.85), y - dy
        pen.line([(px - h // 24, py), (px + h // 40, py + 2), (px + h // 40, py + h // 40)])
    for k in range(3):
        px, py, w = pen.about(x + lean * (k + 1) // 4, half // 2), y - h // 4 - k * h // 5, h // 40
        pen.shape([(px - w, py), (px - w, py - 3 * w), (px, py - 4 * w), (px + w, py - 3 * w), (px + w, py)], pen.ink)
    flag(pen, x + lean, top, h // 5, pen.shade(CLOTHS))


PROPS = (dog, towel, rock, bush)
OBJECTS = (tent, boat, cart, tower)
