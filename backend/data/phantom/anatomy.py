"""The reference body: every organ's place and shape.

Coordinates are mm from the level of the middle of the first lumbar vertebra, in the middle of the
abdomen: x towards Left, y Posterior, z Superior.

Painted from the outside in and from loose to firm, so that what is painted later lies on top:
body wall, lungs, bowel, stomach, spleen, liver, kidneys, vessels, bones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.data.phantom.canvas import FAT, Array, Canvas, Region, Tissue, spline
from backend.data.phantom.patient import Patient
from backend.geometry import Vec3

LABELS: dict[int, str] = {
    1: "liver",
    2: "spleen",
    3: "kidney_right",
    4: "kidney_left",
    5: "stomach",
    6: "gallbladder",
    7: "aorta",
    8: "vertebrae",
}
"""What the label values mean. Kidneys are parenchyma without the fat of the sinus, the stomach
includes wall, content and gas, vertebrae are bone without discs and canal."""

LIVER, SPLEEN, KIDNEY_RIGHT, KIDNEY_LEFT, STOMACH, GALLBLADDER, AORTA, VERTEBRAE = LABELS

_EXPONENT = 2.3  # a trunk is a little squarer than an ellipse
_PITCH_MM = 32.0  # one vertebra and its disc
_LEVELS = range(-6, 7)

# Half width and anterior and posterior depth of the abdominal cavity and of the body wall.
_CAVITY = (126.0, 86.0, 79.0)
_WALL = (139.0, 95.0, 97.0)

_AIR = Tissue(hu=-990.0)
_LUNG = Tissue(hu=-850.0, fine=18.0, mid=14.0, coarse=16.0)
_CANCELLOUS = Tissue(hu=150.0, fine=38.0, mid=28.0)
_CORTICAL = Tissue(hu=520.0, fine=40.0)


@dataclass(frozen=True, eq=False)
class Trunk:
    """The surfaces that all organs refer to, as distances on the whole grid."""

    body: Region
    wall: Region
    cavity: Region
    under_diaphragm: Region


def paint_patient(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> Region:
    """Paint table, body and organs; return the body's region."""
    trunk = _trunk(canvas, patient)
    paint_table(canvas, patient)
    _paint_layers(canvas, patient, trunk)
    _paint_chest(canvas, patient, trunk, rng)
    _paint_bowel(canvas, patient, trunk, rng)
    _paint_stomach(canvas, patient, trunk, rng)
    _paint_spleen(canvas, patient, trunk, rng)
    _paint_pancreas(canvas, patient, rng)
    _paint_liver(canvas, patient, trunk, rng)
    _paint_gallbladder(canvas, patient, rng)
    for side in (-1, 1):
        _paint_kidney(canvas, patient, rng, side=side)
        _paint_back_muscles(canvas, patient, side=side)
    _paint_vessels(canvas, patient, rng)
    _paint_spine(canvas)
    _paint_ribs(canvas)
    return trunk.body


def _trunk(canvas: Canvas, patient: Patient) -> Trunk:
    fat = patient.fat_mm
    # The waist lies below the ribs, the costal arch is the widest place.
    waist = 1.0 - 0.035 * np.exp(-(((canvas.z + 60) / 55) ** 2)) + 0.02 * np.tanh(canvas.z / 80)
    furrow = 6.0 * np.exp(-((canvas.x / 16) ** 2)) * (canvas.y > 0)
    body = _shell(canvas, (_WALL[0] + fat, _WALL[1] + fat, _WALL[2] + 0.75 * fat), waist) + furrow
    right = 96 - 0.0085 * (canvas.x + 62) ** 2 - _slope(canvas.y)
    left = 84 - 0.0085 * (canvas.x - 66) ** 2 - _slope(canvas.y)
    dome = np.logaddexp(right / 6, left / 6) * 6
    return Trunk(
        body=canvas.whole(body),
        wall=canvas.whole(_shell(canvas, _WALL, waist)),
        cavity=canvas.whole(_shell(canvas, _CAVITY, waist)),
        # The dome is steep at its rim: 0.75 turns height into about the distance.
        under_diaphragm=canvas.whole(0.75 * (canvas.z - dome)),
    )


def _slope(y: Array) -> Array:
    """How far the diaphragm falls from its top towards the front and, more, towards the back."""
    slope: Array = np.where(y < -15, 0.006, 0.0105) * (y + 15) ** 2
    return slope


def _shell(canvas: Canvas, radii: Vec3, waist: NDArray[np.floating]) -> Array:
    """Distance to a superelliptic cylinder of half width and front and back depth `radii`."""
    depth = np.where(canvas.y < 0, np.float32(radii[1]), np.float32(radii[2]))
    across = np.abs(canvas.x) / (np.float32(radii[0]) * waist)
    along = np.abs(canvas.y) / (depth * waist)
    level = (across**_EXPONENT + along**_EXPONENT) ** np.float32(1 / _EXPONENT) + 1e-6
    distance: Array = np.hypot(canvas.x, canvas.y) * (1 - 1 / level)
    return distance


def paint_table(canvas: Canvas, patient: Patient) -> None:
    """A curved carbon table with a foam core and a mattress, straight in the world."""
    back = patient.scale[1] * (_WALL[2] + 0.75 * patient.fat_mm)
    height = canvas.table_y - (back + 8.0) + (canvas.table_x / 40.0) ** 2
    edge = np.abs(canvas.table_x) - 205.0
    mattress = np.maximum(np.maximum(-10.0 - height, height), edge)
    shell = np.maximum(np.maximum(-height, height - 34.0), edge)
    canvas.paint(canvas.whole(mattress), Tissue(hu=-880.0, fine=12.0))
    canvas.paint(canvas.whole(shell), Tissue(hu=120.0))
    canvas.paint(canvas.whole(shell + 4.2), Tissue(hu=-930.0, mid=10.0))


def _paint_layers(canvas: Canvas, patient: Patient, trunk: Trunk) -> None:
    muscle = patient.hu["muscle"]
    septa = Tissue(hu=FAT.hu, fine=7.0, mid=9.0, coarse=6.0)
    canvas.paint(trunk.body, Tissue(hu=20.0, fine=10.0))
    canvas.paint(trunk.body.grown(-2.2), septa)
    canvas.paint(trunk.wall, Tissue(hu=muscle - 6, fine=8.0, fibre=15.0))
    canvas.paint(trunk.cavity, FAT)
    # The two straight muscles meet in a line of fat in front.
    gap = np.maximum(np.abs(canvas.x) - 3.5, np.maximum(trunk.wall.distance, canvas.y + 60))
    canvas.paint(canvas.whole(gap) - trunk.cavity, Tissue(hu=-45.0, mid=10.0))


def _paint_chest(canvas: Canvas, patient: Patient, trunk: Trunk, rng: np.random.Generator) -> None:
    heart = canvas.ellipsoid((22, -32, 132), (62, 48, 50), turn_deg=-25)
    above = canvas.whole(-trunk.under_diaphragm.distance)
    middle = canvas.whole(24.0 - np.abs(canvas.x - 4) + 0.1 * np.maximum(canvas.y, 0))
    thorax = trunk.cavity.grown(-1.5) & above.grown(-1.5)
    lungs = thorax & middle
    canvas.paint(lungs, _LUNG)
    vessel = Tissue(hu=patient.hu["heart"] - 20)
    for _ in range(46):
        side = rng.choice((-1.0, 1.0))
        start = np.array([side * rng.uniform(30, 45), rng.uniform(-10, 35), 150.0])
        end = np.array([side * rng.uniform(45, 112), rng.uniform(-62, 66), rng.uniform(20, 120)])
        bend = (start + end) / 2 + rng.normal(0, 8, size=3)
        path = spline([start, bend, end], 6)
        canvas.paint(
            canvas.tube(path, np.linspace(rng.uniform(1.6, 3.2), 0.6, 6)) & lungs.grown(-1), vessel
        )
    canvas.paint(heart.grown(4) & above, FAT)
    canvas.paint(heart & above.grown(-3), Tissue(hu=patient.hu["heart"], coarse=10.0, mid=5.0))
    # The diaphragm itself: a thin sheet between lung and abdomen.
    sheet = canvas.whole(np.abs(trunk.under_diaphragm.distance) - 1.2)
    canvas.paint(sheet & trunk.cavity, Tissue(hu=patient.hu["muscle"]))


def _paint_bowel(canvas: Canvas, patient: Patient, trunk: Trunk, rng: np.random.Generator) -> None:
    inside = trunk.cavity.grown(-2) & trunk.under_diaphragm.grown(-6)
    _paint_mesentery(canvas, patient, rng)
    crowding = patient.difficulty.crowding
    loops = round(crowding * (11 - 5 * patient.visceral))
    top = -8 + 25 * (crowding - 1)
    for _ in range(loops):
        path = _wandering(rng, low=(-78, -72, -128), high=(88, -4, top), steps=7)
        fill = 190.0 if patient.oral_contrast else rng.uniform(10, 45)
        content = Tissue(hu=patient.faded(fill), mid=14.0, fine=6.0)
        _paint_gut(canvas, patient, inside, path, radius=rng.uniform(9, 12.5), content=content)
    stool = Tissue(hu=18.0, mid=75.0, fine=35.0)
    ascending = [(-98, 20, -140), (-102, 22, -90), (-98, 12, -50), (-84, -20, -32)]
    transverse = [(-84, -20, -32), (-60, -56, -44), (0, -66, -58), (60, -60, -36), (92, -10, -4)]
    descending = [(92, -10, -4), (104, 22, -20), (106, 28, -80), (98, 22, -140)]
    for course, radius in ((ascending, 23.0), (transverse, 18.0), (descending, 15.0)):
        shaken = np.asarray(course) + rng.normal(0, 4, size=(len(course), 3))
        path = spline(shaken.tolist(), 16)
        _paint_gut(
            canvas,
            patient,
            inside,
            path,
            radius=radius * (1 + 0.14 * np.sin(np.arange(16) * 2.1)) * rng.uniform(0.85, 1.1),
            content=stool,
            gas=rng.uniform(0.1, 0.6),
        )


def _paint_mesentery(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    vein = Tissue(hu=patient.hu["portal"] - 15)
    for _ in range(34):
        root = np.array([rng.normal(0, 10), 0.0, rng.uniform(-70, 0)])
        tip = np.array([rng.uniform(-85, 90), rng.uniform(-72, -10), rng.uniform(-125, 10)])
        path = spline([root, (root + tip) / 2 + rng.normal(0, 9, size=3), tip], 7)
        canvas.paint(canvas.tube(path, np.linspace(2.2, 0.8, 7)), vein)


def _wandering(
    rng: np.random.Generator, *, low: Sequence[float], high: Sequence[float], steps: int
) -> NDArray[np.float64]:
    """A smooth random walk that turns back at the faces of a box."""
    floor, ceiling = np.asarray(low, dtype=float), np.asarray(high, dtype=float)
    points = [rng.uniform(floor, ceiling)]
    for _ in range(steps - 1):
        points.append(np.clip(points[-1] + rng.normal(0, [30, 18, 20]), floor, ceiling))
    return spline([p.tolist() for p in points], 4 * steps)


def _paint_gut(
    canvas: Canvas,
    patient: Patient,
    inside: Region,
    path: NDArray[np.float64],
    *,
    radius: float | NDArray[np.float64],
    content: Tissue,
    gas: float = 0.0,
) -> None:
    """A piece of bowel: wall, content, and gas where it floats highest."""
    gut = canvas.tube(path, radius) & inside
    canvas.paint(gut, Tissue(hu=patient.hu["bowel_wall"], fine=6.0), rim_mm=1.5)
    lumen = gut.grown(-2.6)
    canvas.paint(lumen, content)
    if gas > 0:
        level = np.quantile(path[:, 1], gas)
        floats = Region(gut.window, canvas.y[gut.window] - np.float32(level))
        speckles = 6 * (1.3 - canvas.textures["mid"][gut.window])
        canvas.paint(lumen & Region(gut.window, np.minimum(floats.distance, speckles)), _AIR)


def _paint_stomach(
    canvas: Canvas, patient: Patient, trunk: Trunk, rng: np.random.Generator
) -> None:
    size = patient.difficulty.organ_size * rng.uniform(0.85, 1.12)
    shake = rng.normal(0, 4 * patient.difficulty.shape, size=(5, 3))
    course = [(58, 6, 66), (62, -20, 48), (54, -44, 24), (22, -56, 2), (-18, -42, 4)]
    path = spline((np.asarray(course) + shake).tolist(), 22)
    radii = size * np.interp(np.linspace(0, 1, 22), [0, 0.3, 0.6, 0.85, 1], [33, 34, 27, 18, 11])
    stomach = canvas.tube(path, radii) & trunk.cavity.grown(-4) & trunk.under_diaphragm.grown(-3)
    wall = Tissue(hu=patient.hu["bowel_wall"] - 6, fine=7.0)
    canvas.paint(stomach, wall, label=STOMACH, rim_mm=2.5)
    lumen = stomach.grown(-4.0)
    fluid = 150.0 if patient.oral_contrast else rng.uniform(8, 40)
    canvas.paint(lumen, Tissue(hu=patient.faded(fluid), coarse=9.0, mid=13.0))
    # The patient lies on the back: gas gathers in front, above a level that is straight.
    level = np.quantile(path[:, 1] - radii * 0.4, rng.uniform(0.1, 0.45))
    canvas.paint(lumen & Region(lumen.window, canvas.y[lumen.window] - np.float32(level)), _AIR)


def _paint_spleen(canvas: Canvas, patient: Patient, trunk: Trunk, rng: np.random.Generator) -> None:
    size = patient.difficulty.organ_size * rng.uniform(0.82, 1.15)
    x, y, z = np.array([94, 32, 42]) + rng.normal(0, 3.5 * patient.difficulty.shape, size=3)
    outer = canvas.ellipsoid((x, y, z), (38 * size, 54 * size, 52 * size), turn_deg=-14)
    hollow = canvas.ellipsoid((x - 46, y - 16, z - 2), (36 * size, 42 * size, 60 * size))
    near = Region(outer.window, _on(canvas, hollow)[outer.window])
    spleen = (outer - near) & trunk.cavity.grown(-3) & trunk.under_diaphragm.grown(-3)
    mottled = 26.0 if patient.phase == "arterial" else 4.0
    fine = 7.0 * patient.difficulty.texture
    tissue = Tissue(hu=patient.hu["spleen"], fine=fine, mid=4.0, coarse=mottled)
    canvas.paint(spleen, tissue, label=SPLEEN, rim_mm=2.0)


def _on(canvas: Canvas, region: Region) -> Array:
    """The distances of a region on the whole grid; far outside where it was not computed."""
    whole = np.full(canvas.hu.shape, 1e3, dtype=np.float32)
    whole[region.window] = region.distance
    return whole


def _paint_pancreas(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    course = [(-24, -8, -10), (-16, -16, 6), (10, -24, 12), (40, -6, 20), (72, 16, 32)]
    path = spline((np.asarray(course) + rng.normal(0, 3, size=(5, 3))).tolist(), 20)
    lobes = 1 + 0.16 * np.sin(np.arange(20) * 1.9)
    gland = canvas.tube(path, lobes * np.linspace(13, 8.5, 20) * rng.uniform(0.8, 1.1))
    canvas.paint(gland, Tissue(hu=patient.hu["pancreas"], mid=16.0, fine=14.0), label=0, rim_mm=1.5)
    duodenum = spline([(-22, -40, 2), (-42, -12, 0), (-40, 2, -34), (-8, 4, -46), (26, 0, -30)], 18)
    everything = canvas.whole(np.full(canvas.hu.shape, -1e3))
    content = Tissue(hu=rng.uniform(10, 40), mid=12.0)
    _paint_gut(canvas, patient, everything, duodenum, radius=11.0, content=content)


def _paint_liver(canvas: Canvas, patient: Patient, trunk: Trunk, rng: np.random.Generator) -> None:
    size = patient.difficulty.organ_size * rng.uniform(0.92, 1.08)
    shift = rng.normal(0, 4 * patient.difficulty.shape, size=(2, 3))
    right = canvas.ellipsoid(
        tuple(np.array([-70, -6, 30]) + shift[0]), (74 * size, 92 * size, 82 * size), turn_deg=12
    )
    left = canvas.ellipsoid(
        tuple(np.array([-8, -52, 52]) + shift[1]),
        (74 * size * rng.uniform(0.75, 1.1), 36 * size, 36 * size),
        turn_deg=8,
    )
    blend = 9.0  # mm over which the lobes run into each other
    union = -blend * np.logaddexp(-_on(canvas, right) / blend, -_on(canvas, left) / blend)
    # The fissure in front and the hilum below part the lobes.
    fissure = _on(canvas, canvas.ellipsoid((-22, -84, 26), (4.5, 26, 46), turn_deg=14))
    hilum = _on(canvas, canvas.ellipsoid((-16, -2, -6), (36, 42, 40)))
    shape = np.maximum(np.maximum(union, -fissure), -hilum)
    box = canvas.window((-140, -100, -70), (90, 95, 125))
    liver = Region(box, shape[box].astype(np.float32))
    liver = liver & trunk.cavity.grown(-2.5) & trunk.under_diaphragm.grown(-2.5)
    texture = patient.difficulty.texture
    tissue = Tissue(
        hu=patient.hu["liver"], fine=5.0 * texture, mid=5.0 * texture, coarse=5.0 * texture
    )
    canvas.paint(liver, tissue, label=LIVER, rim_mm=1.5)
    _paint_liver_vessels(canvas, patient, liver, rng)
    _paint_cysts(canvas, liver, rng, box=((-110, -60, 0), (-30, 40, 75)))


def _paint_liver_vessels(
    canvas: Canvas, patient: Patient, liver: Region, rng: np.random.Generator
) -> None:
    inside = canvas.whole(_on(canvas, liver.grown(-2)))
    for hilum, kind, tips in (
        ((-26, -10, 30), "portal", _LIVER_PORTAL),
        ((-20, 14, 82), "hepatic", _LIVER_VEINS),
    ):
        tissue = Tissue(hu=patient.hu[kind])
        for trunk in tips:
            stem = spline(
                [hilum, (np.add(hilum, trunk) / 2 + rng.normal(0, 5, size=3)).tolist(), trunk], 8
            )
            canvas.paint(canvas.tube(stem, np.linspace(5.5, 2.4, 8)) & inside, tissue)
            for start in stem[3::2]:
                tip = start + rng.normal(0, [22, 24, 20])
                path = spline([start, (start + tip) / 2 + rng.normal(0, 4, size=3), tip], 5)
                canvas.paint(canvas.tube(path, np.linspace(2.6, 1.0, 5)) & inside, tissue)


_LIVER_PORTAL = [(-92, 20, 20), (-96, -34, 40), (-84, 10, 60), (10, -50, 52), (-30, -50, 30)]
_LIVER_VEINS = [(-106, 12, 52), (-76, -46, 50), (-10, -62, 60)]


def _paint_cysts(
    canvas: Canvas, organ: Region, rng: np.random.Generator, *, box: tuple[Vec3, Vec3]
) -> None:
    """Now and then a cyst or two; they stay part of the organ."""
    inside = canvas.whole(_on(canvas, organ.grown(-1)))
    for _ in range(int(rng.choice((0, 1, 3), p=(0.6, 0.25, 0.15)))):
        x, y, z = rng.uniform(*box)
        radius = rng.uniform(4, 11)
        cyst = canvas.ellipsoid((x, y, z), (radius, radius, radius))
        canvas.paint(cyst & inside, Tissue(hu=8.0, mid=3.0))


def _paint_gallbladder(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    size = patient.difficulty.organ_size * rng.uniform(0.75, 1.15)
    neck, fundus = np.array([-34, -22, 8]), np.array([-56, -62, -20])
    path = np.linspace(neck, fundus + rng.normal(0, 4, size=3), 9)
    radii = size * np.interp(np.linspace(0, 1, 9), [0, 0.3, 0.7, 1], [4, 9, 14, 12])
    bladder = canvas.tube(path, radii)
    canvas.paint(bladder, Tissue(hu=patient.hu["bowel_wall"] - 15), label=GALLBLADDER, rim_mm=1.5)
    bile = patient.faded(rng.uniform(4, 18))
    canvas.paint(bladder.grown(-2.0), Tissue(hu=bile, mid=3.0))


def _paint_kidney(canvas: Canvas, patient: Patient, rng: np.random.Generator, *, side: int) -> None:
    """Side -1 is the right kidney, which lies lower; +1 the left."""
    size = patient.difficulty.organ_size * rng.uniform(0.88, 1.12)
    shake = rng.normal(0, 4 * patient.difficulty.shape, size=3)
    low = -34 if side < 0 else -16
    middle = np.array([side * 62, 36, low]) + shake
    # The upper pole leans towards the spine and backwards.
    lean = np.array([side * -9, 7, 30 * size])
    kidney = canvas.tube(
        np.linspace(middle - lean, middle + lean, 5), size * np.array([22, 26, 27.5, 26, 22])
    )
    hilum = middle + np.array([side * -24, -8, 0])
    turn = side * 18.0
    a, b, c = hilum
    sinus = canvas.ellipsoid((a, b, c), (24 * size, 10 * size, 23 * size), turn_deg=turn)
    parenchyma = kidney - canvas.whole(_on(canvas, sinus))
    label = KIDNEY_RIGHT if side < 0 else KIDNEY_LEFT
    fine = 6.0 * patient.difficulty.texture
    perirenal = 3.0 + 10.0 * patient.visceral
    canvas.paint(
        parenchyma,
        Tissue(hu=patient.hu["cortex"], fine=fine, mid=3.0),
        label=label,
        rim_mm=perirenal,
    )
    # Pyramids: the medulla behind the cortex, parted by columns of cortex.
    columns = 3.0 * (np.cos(canvas.z[kidney.window] / 3.4) - 0.35)
    pyramids = parenchyma.grown(-7.5 * size) & Region(kidney.window, columns.astype(np.float32))
    canvas.paint(pyramids, Tissue(hu=patient.hu["medulla"], fine=fine))
    pelvis = canvas.ellipsoid((a, b, c), (11 * size, 5 * size, 10 * size), turn_deg=turn)
    urine = 320.0 if patient.phase == "late" else 8.0
    canvas.paint(pelvis, Tissue(hu=urine), label=0)
    vein, artery = Tissue(hu=patient.hu["vein"]), Tissue(hu=patient.hu["aorta"])
    start = hilum + np.array([side * 8, 0, 0])
    canvas.paint(
        canvas.tube(spline([start, (side * 24, 12, low + 4), (-10, 14, low + 8)], 8), 4.2),
        vein,
        label=0,
    )
    canvas.paint(
        canvas.tube(spline([start, (side * 26, 20, low + 8), (8, 20, low + 12)], 8), 2.6),
        artery,
        label=0,
    )
    if rng.random() < 0.25:
        out = middle + np.array([side * 24, 6, rng.uniform(-25, 25)])
        radius = rng.uniform(6, 12)
        cyst = canvas.ellipsoid((out[0], out[1], out[2]), (radius, radius, radius))
        canvas.paint(cyst & canvas.whole(_on(canvas, kidney)), Tissue(hu=6.0))
    _paint_adrenal(canvas, patient, side=side)


def _paint_adrenal(canvas: Canvas, patient: Patient, *, side: int) -> None:
    tissue = Tissue(hu=patient.hu["pancreas"])
    for limb in ((side * 46, 44, 16), (side * 36, 46, 14)):
        path = spline([(side * 32, 24, 34), (side * 34, 30, 28), limb], 6)
        canvas.paint(canvas.tube(path, 2.6), tissue, label=0)


def _paint_back_muscles(canvas: Canvas, patient: Patient, *, side: int) -> None:
    tissue = Tissue(hu=patient.hu["muscle"], fine=6.0, fibre=14.0)
    psoas = spline([(side * 20, 40, 24), (side * 33, 38, -40), (side * 45, 32, -140)], 10)
    canvas.paint(canvas.tube(psoas, np.linspace(6, 23, 10)), tissue, label=0, rim_mm=1.0)
    quadratus = spline([(side * 58, 68, 20), (side * 64, 66, -60), (side * 68, 62, -140)], 8)
    canvas.paint(canvas.tube(quadratus, np.linspace(7, 13, 8)), tissue, label=0, rim_mm=1.0)
    # Beside the spinous processes, over the whole height.
    erector = np.hypot((np.abs(canvas.x) - 29) / 27, (canvas.y - 80) / 17)
    region = canvas.whole(np.where(np.sign(canvas.x) == side, (erector - 1) * 20, 1e3))
    canvas.paint(region, tissue, label=0, rim_mm=1.0)


def _paint_vessels(canvas: Canvas, patient: Patient, rng: np.random.Generator) -> None:
    aorta_hu, vein_hu = patient.hu["aorta"], patient.hu["vein"]
    radius = rng.uniform(9, 12.5)
    split = (3.0, 16.0, -104.0)
    artery, vein = Tissue(hu=aorta_hu, mid=3.0), Tissue(hu=vein_hu, mid=4.0, coarse=7.0)
    cava = spline([(-18, 10, 200), (-22, 14, 84), (-18, 16, 0), (-14, 20, -106)], 30)
    canvas.paint(canvas.tube(cava, rng.uniform(9, 12.5)), vein, label=0, rim_mm=1.0)
    for side in (-1, 1):
        iliac = spline([split, (side * 18, 18, -124), (side * 40, 24, -160)], 8)
        canvas.paint(canvas.tube(iliac, 6.5), artery, label=0, rim_mm=1.0)
    branches = [
        ([(8, 10, 36), (6, -8, 40), (-14, -14, 38)], 3.6),  # coeliac trunk, common hepatic
        ([(6, -8, 40), (36, 6, 40), (74, 20, 42)], 3.0),  # splenic artery
        ([(8, 8, 20), (7, -6, 6), (2, -10, -70)], 4.0),  # superior mesenteric artery
    ]
    for course, thick in branches:
        canvas.paint(canvas.tube(spline(course, 12), thick), artery, label=0)
    portal = Tissue(hu=patient.hu["portal"])
    splenic = [(-8, -8, 16), (20, -8, 20), (50, 8, 30), (76, 20, 40)]
    for course, thick in (
        ([(-4, -12, -70), (-6, -12, -20), (-8, -8, 16)], 5.0),
        ([(-8, -8, 16), (-18, -8, 24), (-28, -10, 32)], 6.5),
        (splenic, 4.0),
    ):
        canvas.paint(canvas.tube(spline(course, 12), thick), portal)
    course_mm = spline([(16, 30, 220), (12, 24, 100), (7, 16, 0), split], 36)
    canvas.paint(
        canvas.tube(course_mm, np.linspace(radius * 1.12, radius * 0.85, 36)),
        artery,
        label=AORTA,
        rim_mm=1.5,
    )
    _paint_plaques(canvas, course_mm, radius=radius, rng=rng)


def _paint_plaques(
    canvas: Canvas, course: NDArray[np.float64], *, radius: float, rng: np.random.Generator
) -> None:
    """Calcium in the wall of older patients' aortas; it belongs to the aorta."""
    for _ in range(int(rng.choice((0, 3, 9)))):
        centre = course[int(rng.integers(6, 34))]
        angle = rng.uniform(0, 2 * np.pi)
        x, y = centre[:2] + 0.85 * radius * np.array([np.cos(angle), np.sin(angle)])
        plaque = canvas.ellipsoid((x, y, centre[2]), (2.4, 2.4, rng.uniform(2, 7)))
        canvas.paint(plaque, Tissue(hu=rng.uniform(350, 800)))


def _paint_spine(canvas: Canvas) -> None:
    window = canvas.window((-60, 10, -400), (60, 125, 400))
    x, y, z = canvas.x[window], canvas.y[window] - np.float32(43), canvas.z[window]
    # Height above the middle of the nearest vertebral body.
    height = (z + _PITCH_MM / 2) % np.float32(_PITCH_MM) - np.float32(_PITCH_MM / 2)

    def region(distance: Array) -> Region:
        return Region(window, distance.astype(np.float32))

    waist = 1 - 0.09 * (1 - (height / 12) ** 2)
    column = (np.hypot(x / 22, y / 16.5) / waist - 1) * 17
    block = np.maximum(column, np.abs(height) - 11.8)
    canvas.paint(region(column - 1), Tissue(hu=88.0, mid=6.0), label=0, rim_mm=1.0)
    canal = np.hypot(x, (y - 24) * 1.1) - 8.5
    canvas.paint(region(canal - 2), FAT, label=0)
    arch = _vertebral_arch(np.abs(x), y, height)
    for bone, shell_mm in ((block, 1.6), (np.maximum(arch, -canal), 2.4)):
        canvas.paint(region(bone), _CORTICAL, label=VERTEBRAE)
        canvas.paint(region(bone + shell_mm), _CANCELLOUS)
    canvas.paint(region(canal), Tissue(hu=24.0, mid=3.0), label=0)
    canvas.paint(region(np.hypot(x, y - 24) - 4.5), Tissue(hu=38.0))


def _vertebral_arch(x: Array, y: Array, height: Array) -> Array:
    """Pedicles, laminae with joints, transverse and spinous process; x is |x|."""
    pedicle = np.maximum(np.hypot(x - 12.5, (height - 5) * 0.75) - 4.5, np.abs(y - 19) - 10)
    lamina = np.maximum(np.abs(np.hypot(x, y - 24) - 12.5) - 3.2, np.abs(height + 2) - 10)
    lamina = np.maximum(lamina, 22 - y)
    joint = np.sqrt((x - 17) ** 2 + (y - 28) ** 2 + ((height + 12) * 0.6) ** 2) - 6.5
    transverse = np.hypot(y - 26 - 0.15 * (x - 16), height - 3) - 4.2
    transverse = np.maximum(transverse, np.maximum(12 - x, x - 38))
    spinous = np.maximum(
        np.hypot(x * 1.4, (height + 6 + 0.25 * (y - 40)) * 0.5) - 5.0, np.maximum(34 - y, y - 58)
    )
    parts: Array = np.minimum.reduce([pedicle, lamina, joint, transverse, spinous])
    return parts


def _paint_ribs(canvas: Canvas) -> None:
    """Pairs of ribs fall from the spine to the side and go on as cartilage in front."""
    for level in range(1, 9):
        root = 6.0 + _PITCH_MM * level
        floating = level <= 2
        end_deg = {1: 70.0, 2: 95.0}.get(level, 128.0)
        for side in (-1, 1):
            bone = canvas.tube(_rib(root, side=side, start_deg=14, end_deg=end_deg), 5.2)
            canvas.paint(bone, Tissue(hu=520.0, fine=50.0), label=0)
            canvas.paint(bone.grown(-2.2), Tissue(hu=150.0, fine=40.0))
            if not floating:
                tail = _rib(root, side=side, start_deg=end_deg, end_deg=158)
                canvas.paint(canvas.tube(tail, 5.0), Tissue(hu=95.0, fine=20.0), label=0)


def _rib(root_z: float, *, side: int, start_deg: float, end_deg: float) -> NDArray[np.float64]:
    angle = np.deg2rad(np.linspace(start_deg, end_deg, 26))
    depth = np.where(np.cos(angle) > 0, _CAVITY[2] + 8, _CAVITY[1] + 4)
    power = 2 / _EXPONENT
    x = side * (_CAVITY[0] + 6.5) * np.sin(angle) ** power
    y = depth * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
    fall = 78 * (1 - np.cos(np.minimum(angle, np.deg2rad(128)))) / 1.6
    rise = 34 * np.clip((np.rad2deg(angle) - 128) / 30, 0, 1)
    return np.stack([x, y, root_z - fall + rise], axis=1)
