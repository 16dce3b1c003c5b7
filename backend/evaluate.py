"""The recipe behind `backend evaluate`: how well segmentations agree with references.

The answer comes as files that a spreadsheet and a script can read, and as a table for people.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from backend.data.label_files import embedded_names
from backend.data.labelled import ENDINGS, merged_labels, stem
from backend.data.labels import Label, default_color, read_labels
from backend.data.readers import read_label
from backend.errors import ScanError, UserError
from backend.files import require_file_place, written_whole
from backend.geometry import Volume, reorient
from backend.metrics import MISSING_RULE, Score, Status, Summary, overlap, score, summary
from backend.progress import progress

MEASURES = ("dice", "iou", "hd_mm", "hd95_mm", "asd_mm", "surface_dice")
_VOLUMES = ("volume_pred_ml", "volume_ref_ml")
COLUMNS = (
    "case",
    "organ",
    "value",
    *MEASURES,
    "tolerance",
    *_VOLUMES,
    "status",
)
"""Of `evaluation.csv`: one line per case and organ; a cell is empty where nothing is defined."""

TOLERANCE_MM = 2.0
"""Of the surface Dice, unless told otherwise."""

BACKGROUND = Label(value=0, name="background", color=(0, 0, 0))

_MEANS_RULE = (
    "The mean without background is the mean over organs of each organ's mean over cases, so every "
    "organ counts alike; with background, background counts as one more organ. Background has "
    "overlap only."
)
_GRID_TOLERANCE_VOXELS = 0.1
_NAMES = ("labels.json", "dataset.json")
_FILES = ("evaluation.csv", "evaluation.json")
_TOLD_AT_MOST = 8


@dataclass(frozen=True, kw_only=True)
class Row:
    """One organ in one case."""

    case: str
    label: Label
    score: Score


@dataclass(frozen=True, kw_only=True)
class OrganSummary:
    """One organ over all cases.

    Attributes:
        label: the organ.
        measures: mean, standard deviation and number of cases for each of `MEASURES` and the
            volumes in ml.
        statuses: number of cases per status.
    """

    label: Label
    measures: Mapping[str, Summary]
    statuses: Mapping[Status, int]


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """What was found.

    Attributes:
        rows: by case, then by value; background (value 0) first in each case.
        organs: by value, background left out.
        background: overlap of what is no organ.
        without_background: each measure's mean over organs; the count is that of organs.
        with_background: the same for Dice and IoU with background as one more organ.
        tolerance_mm: of the surface Dice.
        unmatched: files without a partner, left out on request.
        ignored_values: label values that occur but have no name in the given labels.
    """

    rows: tuple[Row, ...]
    organs: tuple[OrganSummary, ...]
    background: OrganSummary
    without_background: Mapping[str, Summary]
    with_background: Mapping[str, Summary]
    tolerance_mm: float
    unmatched: tuple[str, ...] = ()
    ignored_values: tuple[int, ...] = ()

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases, in order."""
        return tuple(dict.fromkeys(row.case for row in self.rows))

    @property
    def mean_dice(self) -> float | None:
        """Mean over organs without background; None if no organ occurs."""
        return self.without_background["dice"].mean


def run(
    prediction: Path,
    reference: Path,
    *,
    output: Path | None = None,
    labels: Path | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    allow_unmatched: bool = False,
    workers: int | None = None,
) -> EvaluationResult:
    """Compare segmentations with references, print a table and write files.

    Args:
        prediction: a label file, or a folder of `<case>.*` files or case folders.
        reference: a label file or folder: `<case>.*` files, a `labels/` or `labelsTr/` folder
            inside it, or case folders with `label.*`.
        output: folder for `evaluation.csv` and `evaluation.json`; None writes nothing.
        labels: JSON with the names of the values; otherwise the reference's own are taken.
        tolerance_mm: of the surface Dice.
        allow_unmatched: list files without a partner instead of refusing them.
        workers: threads; None takes up to four.

    Raises:
        UserError: if a path, a partner or a name is missing, or grids differ.
        ResourceError: if the output cannot be written.
    """
    if output is not None:
        _require_folder(output)
    result = evaluate(
        prediction,
        reference,
        labels=labels,
        tolerance_mm=tolerance_mm,
        allow_unmatched=allow_unmatched,
        workers=workers,
    )
    if output is not None:
        write_evaluation(output, result)
    sys.stdout.write(table(result))
    if output is not None:
        sys.stdout.write(f"Written: {output / 'evaluation.csv'}, {output / 'evaluation.json'}\n")
    return result


def _require_folder(output: Path) -> None:
    """Refuse an output that cannot be written before the work is done; nothing is made yet."""
    for name in _FILES:
        require_file_place(output / name)
    nearest = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise UserError(
            f"{output}: a file stands where a folder should be.", "Choose another folder."
        )
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{output}: cannot be written.", "Choose another folder.")


def evaluate(
    prediction: Path,
    reference: Path,
    *,
    labels: Path | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    allow_unmatched: bool = False,
    workers: int | None = None,
) -> EvaluationResult:
    """As `run`, without printing or writing."""
    if not (np.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise UserError(f"Tolerance {tolerance_mm} mm is no distance.", "Give 0 or more.")
    pairs, unmatched = _pairs(prediction, reference, allow_unmatched=allow_unmatched)
    _refuse_itself(pairs)
    names = read_labels(labels) if labels is not None else _own_names(pairs, reference)
    return _scored(
        pairs,
        names,
        tolerance_mm=tolerance_mm,
        partial=labels is not None,
        unmatched=unmatched,
        workers=workers,
    )


def evaluate_pairs(
    files: Mapping[str, tuple[Path, Path]], labels: Sequence[Label]
) -> EvaluationResult:
    """Compare files that are known to belong together, whatever they are called.

    Args:
        files: prediction and reference of each case.
        labels: what the values of the references mean; each value that occurs has to be there.

    Raises:
        UserError: naming the case, if a file cannot be read, a value has no name or grids differ.
    """
    pairs = [_Pair(case=case, prediction=p, reference=r) for case, (p, r) in sorted(files.items())]
    return _scored(pairs, labels, tolerance_mm=TOLERANCE_MM, partial=False)


def _scored(
    pairs: Sequence[_Pair],
    names: Sequence[Label],
    *,
    tolerance_mm: float,
    partial: bool,
    unmatched: tuple[str, ...] = (),
    workers: int | None = None,
) -> EvaluationResult:
    def scored(pair: _Pair) -> tuple[list[Row], set[int]]:
        try:
            return _score_case(pair, names, tolerance_mm=tolerance_mm, partial=partial)
        except ScanError as error:
            raise UserError(f"Case {pair.case}: {error.message}", error.hint) from error

    # Scoring is mostly numpy, SciPy and file reading, which leave other threads running.
    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        try:
            done = list(
                progress(pool.map(scored, pairs), total=len(pairs), what="Evaluating", unit="case")
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    rows = tuple(row for case_rows, _ in done for row in case_rows)
    ignored = sorted({value for _, values in done for value in values})
    return _summarised(
        rows, tolerance_mm=tolerance_mm, unmatched=unmatched, ignored_values=tuple(ignored)
    )


@dataclass(frozen=True, kw_only=True)
class _Pair:
    case: str
    prediction: Path
    reference: Path


def _pairs(
    prediction: Path, reference: Path, *, allow_unmatched: bool
) -> tuple[list[_Pair], tuple[str, ...]]:
    """Files of equal case names, and the names of those without a partner."""
    predicted = _cases(prediction)
    known = _cases(reference, inside=("labels", "labelsTr"))
    if prediction.is_file() and reference.is_file():
        # Two files belong together whatever their names are.
        (case, ref), (pred,) = next(iter(known.items())), predicted.values()
        return [_Pair(case=case, prediction=pred, reference=ref)], ()
    # nnU-Net numbers the channels of images, and predictions may carry their image's name.
    predicted = _one_each(
        prediction,
        (
            (name if name in known else name.removesuffix("_0000"), path)
            for name, path in predicted.items()
        ),
    )
    common = sorted(predicted.keys() & known.keys())
    alone = {
        "reference": sorted(predicted.keys() - known.keys()),
        "prediction": sorted(known.keys() - predicted.keys()),
    }
    told = [f"no {what} for {_some(cases)}" for what, cases in alone.items() if cases]
    if not common or (told and not allow_unmatched):
        raise UserError(
            f"{prediction} and {reference} do not match: {'; '.join(told)}.",
            "Give both files of a case the same name"
            + (", or leave the others out with --allow-unmatched." if common else "."),
        )
    pairs = [_Pair(case=c, prediction=predicted[c], reference=known[c]) for c in common]
    return pairs, tuple(sorted(alone["reference"] + alone["prediction"]))


def _refuse_itself(pairs: Sequence[_Pair]) -> None:
    """A file compared with itself agrees perfectly, which says nothing."""
    for pair in pairs:
        if pair.prediction.samefile(pair.reference):
            raise UserError(
                f"Case {pair.case}: prediction and reference are the same file {pair.reference}.",
                "Give the segmentation as --prediction and the expert's labels as --reference.",
            )


def _cases(path: Path, *, inside: Sequence[str] = ()) -> dict[str, Path]:
    """Label files by case; folders named in `inside` are looked into."""
    if path.is_file():
        return {_case_name(path): path}
    if not path.is_dir():
        raise UserError(f"{path} does not exist.", "Give a label file or a folder of them.")
    folder = next((path / name for name in inside if (path / name).is_dir()), path)
    found = _one_each(folder, ((_case_name(file), file) for file in _case_files(folder)))
    if not found:
        raise UserError(
            f"{folder} holds no label files.",
            f"Files end in {', '.join(ENDINGS)}; case folders hold label.*.",
        )
    return found


def _one_each(folder: Path, named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """The file of each case; two of one case are refused."""
    found: dict[str, Path] = {}
    for name, file in named:
        if name in found:
            raise UserError(
                f"{folder} has two files of case {name}: {found[name].name} and {file.name}.",
                "Keep one for each case.",
            )
        found[name] = file
    return found


def _case_files(folder: Path) -> list[Path]:
    """`label.*` of the folder or of each case folder in it; else every volume file in it."""
    case_folders = sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    own, *inside = (
        [file for file in _volumes(case) if stem(file) == "label"]
        for case in (folder, *case_folders)
    )
    labels, flat = [file for files in inside for file in files], _volumes(folder)
    if labels and flat and not own:
        raise UserError(
            f"{folder} has case folders such as {labels[0].parent.name} and beside them files "
            f"such as {flat[0].name}.",
            "Keep either case folders with label.* or one file for each case.",
        )
    return [*own, *labels] or flat


def _volumes(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.is_file() and file.name[0] != "." and file.name.lower().endswith(ENDINGS)
    )


def _case_name(file: Path) -> str:
    """The file's name without its ending; for `label.*` that of its folder."""
    name = stem(file)
    return file.absolute().parent.name if name == "label" else name


def _own_names(pairs: Sequence[_Pair], reference: Path) -> tuple[Label, ...]:
    """The names that the references bring along; cases must agree on them."""
    names = merged_labels({p.case: _names_of(p.reference, root=reference) for p in pairs})
    if not names:
        raise UserError(
            f"{reference} does not say what its label values mean.",
            'Put labels.json with {"labels": {"1": "liver"}} beside it or name one with --labels.',
        )
    return names


def _names_of(file: Path, *, root: Path | None = None) -> tuple[Label, ...]:
    """Names inside a label file, beside it, or in the folders above it, not far beyond `root`."""
    embedded = embedded_names(file)
    if embedded:
        return tuple(
            Label(value=value, name=name, color=default_color(value))
            for value, name in embedded.items()
        )
    places = [file.with_name(f"{stem(file)}.labels.json")]
    if root is not None:
        # A single file may be a case folder's, or stand in labelsTr: the names are one level up.
        stop = root.absolute().parent if root.is_dir() else root.absolute().parent.parent
        folders = [f for f in file.absolute().parents if f == stop or stop in f.parents]
        places += [folder / name for folder in folders for name in _NAMES]
    place = next((p for p in places if p.is_file()), None)
    return read_labels(place) if place is not None else ()


def _score_case(
    pair: _Pair, names: Sequence[Label], *, tolerance_mm: float, partial: bool
) -> tuple[list[Row], set[int]]:
    """Rows of one case and the values without a name, which only `partial` names may leave."""
    ref = _read(pair.reference)
    pred = _on_grid_of(ref, _read(pair.prediction))
    pred, strange = _renumbered(pred, _names_of(pair.prediction), names, partial=partial)
    known = {label.value for label in names}
    boxes = [_boxes(volume.voxels) for volume in (pred, ref)]
    unknown = (boxes[0].keys() | boxes[1].keys()) - known
    if unknown and not partial:
        where = "prediction" if unknown & boxes[0].keys() else "reference"
        raise ScanError(
            f"the {where} has label values without a name: {_some(map(str, sorted(unknown)))}.",
            "Add them to the reference's labels.json, or name what to evaluate with --labels.",
        )
    rows = [_background_row(pair.case, pred, ref, known=known)]
    for label in names:
        box = _union(boxes[0].get(label.value), boxes[1].get(label.value))
        found = score(
            pred.voxels[box] == label.value,
            ref.voxels[box] == label.value,
            spacing_mm=ref.geometry.spacing_mm,
            tolerance_mm=tolerance_mm,
        )
        rows.append(Row(case=pair.case, label=label, score=found))
    return rows, unknown | strange


def _read(path: Path) -> Volume:
    volume = read_label(path)
    if (low := np.min(volume.voxels)) < 0:
        raise ScanError(f"{path} has the value {low}.", "Label values are 0 and more.")
    return volume


def _on_grid_of(ref: Volume, pred: Volume) -> Volume:
    """The prediction with its axes in the reference's order; another grid is refused."""
    pred = reorient(pred, ref.geometry.orientation)
    tolerance_mm = _GRID_TOLERANCE_VOXELS * min(ref.geometry.spacing_mm)
    if not ref.geometry.matches(pred.geometry, tolerance_mm=tolerance_mm):
        raise ScanError(
            f"prediction and reference lie on different grids: {_told(pred)} against {_told(ref)}.",
            "Bring the prediction onto the grid of the reference's scan.",
        )
    return pred


def _told(volume: Volume) -> str:
    geometry = volume.geometry
    size = "x".join(str(n) for n in geometry.size[::-1])
    spacing = "x".join(f"{mm:.4g}" for mm in geometry.spacing_mm[::-1])
    origin = ", ".join(f"{mm:.1f}" for mm in geometry.origin_mm)
    return f"{size} voxels of {spacing} mm at ({origin})"


def _renumbered(
    pred: Volume, own: Sequence[Label], names: Sequence[Label], *, partial: bool
) -> tuple[Volume, set[int]]:
    """The prediction with the reference's values, where it names its own values itself.

    Viewers number segments in the order they were made, so the name decides, not the number.

    Returns:
        The prediction, and values whose organs are not in `names`. Only `partial` names may leave
        such values; they become background.
    """
    if not own:
        return pred, set()
    wanted = {label.name.casefold(): label.value for label in names}
    called = {label.value: label.name for label in own}
    moves = {v: wanted.get(called.get(v, "").casefold(), 0) for v in _boxes(pred.voxels)}
    strange = {value for value, new in moves.items() if new == 0}
    if strange and not partial:
        told = _some(f"{called.get(v, 'no name')} ({v})" for v in sorted(strange))
        raise ScanError(
            f"the prediction holds what the reference does not name: {told}.",
            "Add it to the reference's labels.json, or name what to evaluate with --labels.",
        )
    lookup = np.zeros(int(pred.voxels.max()) + 1, dtype=np.int16)
    for old, new in moves.items():
        lookup[old] = new
    return Volume(lookup[pred.voxels], pred.geometry), strange


_Box = tuple[slice, slice, slice]


def _boxes(voxels: NDArray[np.generic]) -> dict[int, _Box]:
    """The bounding box of each value above 0 that occurs."""
    found = find_objects(voxels)
    return {value: box for value, box in enumerate(found, start=1) if box is not None}


def _union(a: _Box | None, b: _Box | None) -> _Box:
    """The smallest box round both; one voxel-free box if there is neither."""
    if a is None or b is None:
        return a or b or (slice(0, 0), slice(0, 0), slice(0, 0))
    z, y, x = (slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
    return z, y, x


def _background_row(case: str, pred: Volume, ref: Volume, *, known: set[int]) -> Row:
    """Overlap of what is none of the named organs."""
    table = np.isin(np.arange(np.iinfo(np.int16).max + 1), [*known], invert=True)
    outside = [table[volume.voxels] for volume in (pred, ref)]
    shares = overlap(*outside)
    ml = ref.geometry.voxel_ml
    found = Score(
        status="ok" if shares.dice else "absent",
        dice=shares.dice,
        iou=shares.iou,
        hd_mm=None,
        hd95_mm=None,
        asd_mm=None,
        surface_dice=None,
        volume_pred_ml=float(np.count_nonzero(outside[0])) * ml,
        volume_ref_ml=float(np.count_nonzero(outside[1])) * ml,
    )
    return Row(case=case, label=BACKGROUND, score=found)


def _summarised(
    rows: tuple[Row, ...],
    *,
    tolerance_mm: float,
    unmatched: tuple[str, ...],
    ignored_values: tuple[int, ...],
) -> EvaluationResult:
    by_value: dict[int, list[Row]] = {}
    for row in rows:
        by_value.setdefault(row.label.value, []).append(row)
    background, *organs = (_organ_summary(by_value[value]) for value in sorted(by_value))
    return EvaluationResult(
        rows=rows,
        organs=tuple(organs),
        background=background,
        without_background=_means(organs, MEASURES),
        with_background=_means([background, *organs], ("dice", "iou")),
        tolerance_mm=tolerance_mm,
        unmatched=unmatched,
        ignored_values=ignored_values,
    )


def _organ_summary(rows: Sequence[Row]) -> OrganSummary:
    statuses: dict[Status, int] = {"ok": 0, "missed": 0, "false_positive": 0, "absent": 0}
    for row in rows:
        statuses[row.score.status] += 1
    measures = {m: summary(getattr(row.score, m) for row in rows) for m in (*MEASURES, *_VOLUMES)}
    return OrganSummary(label=rows[0].label, measures=measures, statuses=statuses)


def _means(organs: Sequence[OrganSummary], measures: Sequence[str]) -> dict[str, Summary]:
    return {m: summary(organ.measures[m].mean for organ in organs) for m in measures}


def write_evaluation(folder: Path, result: EvaluationResult) -> None:
    """Write `evaluation.csv` and `evaluation.json` into a folder, each whole or not at all.

    Raises:
        ResourceError: if the folder cannot be written.
    """
    for name, text in zip(_FILES, (_csv(result), _json(result)), strict=True):
        with written_whole(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")


def _csv(result: EvaluationResult) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows_of(result))
    return text.getvalue()


def rows_of(result: EvaluationResult) -> list[dict[str, object]]:
    """One row per case and organ, a cell for each of `COLUMNS`."""
    return [_cells(row, tolerance_mm=result.tolerance_mm) for row in result.rows]


def _cells(row: Row, *, tolerance_mm: float) -> dict[str, object]:
    found = asdict(row.score)
    return {
        **{"case": row.case, "organ": row.label.name, "value": row.label.value},
        **{name: _cell(found[name]) for name in (*MEASURES, *_VOLUMES)},
        **{"tolerance": f"{tolerance_mm:g}", "status": row.score.status},
    }


def _cell(number: float | None) -> str:
    return "" if number is None else f"{number:.6g}"


def _json(result: EvaluationResult) -> str:
    content = {
        "schema": 1,
        "cases": list(result.cases),
        "tolerance_mm": result.tolerance_mm,
        "organs": [_organ_object(organ) for organ in result.organs],
        "background": _organ_object(result.background),
        "mean_without_background": _summary_objects(result.without_background),
        "mean_with_background": _summary_objects(result.with_background),
        "unmatched": list(result.unmatched),
        "ignored_values": list(result.ignored_values),
        "rules": {"missing": MISSING_RULE, "means": _MEANS_RULE},
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _organ_object(organ: OrganSummary) -> dict[str, object]:
    named = {"name": organ.label.name, "value": organ.label.value, "color": list(organ.label.color)}
    return named | _summary_objects(organ.measures) | {"statuses": dict(organ.statuses)}


def _summary_objects(measures: Mapping[str, Summary]) -> dict[str, object]:
    return {name: asdict(found) for name, found in measures.items()}


def table(result: EvaluationResult) -> str:
    """The summary as text for a terminal: mean ± standard deviation (number of cases)."""
    heads: list[tuple[str, str, Callable[[float], str]]] = [
        ("Dice", "dice", "{:.3f}".format),
        ("IoU", "iou", "{:.3f}".format),
        ("HD mm", "hd_mm", "{:.1f}".format),
        ("HD95 mm", "hd95_mm", "{:.1f}".format),
        ("ASD mm", "asd_mm", "{:.2f}".format),
        (f"sDice {result.tolerance_mm:g} mm", "surface_dice", "{:.3f}".format),
    ]
    lines = [["organ", *(head for head, _, _ in heads), "missed", "false"]]
    for organ in (*result.organs, result.background):
        cells = [_mean_cell(organ.measures[name], form) for _, name, form in heads]
        counts = [str(organ.statuses[s]) for s in ("missed", "false_positive")]
        lines.append([organ.label.name, *cells, *counts])
    for name, means in (
        ("mean without background", result.without_background),
        ("mean with background", result.with_background),
    ):
        cells = [_mean_cell(means[m], form) if m in means else "" for _, m, form in heads]
        lines.append([name, *cells, "", ""])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in lines]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    body = [text[0], rule, *text[1:-2], rule, *text[-2:]]
    return "\n".join([line.rstrip() for line in body] + _notes(result)) + "\n"


def _mean_cell(found: Summary, form: Callable[[float], str]) -> str:
    if found.mean is None:
        return "n/a"
    spread = f" ± {form(found.sd)}" if found.sd is not None else ""
    return f"{form(found.mean)}{spread} ({found.count})"


def _notes(result: EvaluationResult) -> list[str]:
    count = len(result.cases)
    notes = [
        "",
        f"{count} case{'s' if count != 1 else ''}. Mean ± standard deviation (number of values).",
        *textwrap.wrap(f"Missing organs: {MISSING_RULE}", width=100),
    ]
    if result.mean_dice is None:
        notes.append("None of the organs occurs on either side: there was nothing to compare.")
    if result.unmatched:
        notes.append(f"Left out, without a partner: {_some(result.unmatched)}.")
    if result.ignored_values:
        told = _some(map(str, result.ignored_values))
        notes.append(f"Counted as background, not named in the labels given: {told}.")
    return notes


def _some(items: Iterable[str]) -> str:
    """The first few, and how many more."""
    told = list(items)
    more = len(told) - _TOLD_AT_MOST
    return ", ".join(told[:_TOLD_AT_MOST]) + (f" and {more} more" if more > 0 else "")
