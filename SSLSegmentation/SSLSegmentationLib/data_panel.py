"""The panel Data: which scans there are to learn from, and which of them can be used."""

from __future__ import annotations

import shutil
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.commands import ScanRequest
from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.index import (
    USUAL_SPACING_MM,
    Range,
    Series,
    Summary,
    changed_sources,
    files_of,
    new_sources,
    read_index,
    scan_progress,
    scanned_at,
    scanned_sources,
    summarise,
    told_bytes,
)
from SSLPretrainLogic.project import Project, from_text, source_paths, with_sources
from SSLSegmentationLib import data_sources
from SSLSegmentationLib.data_sources import DropFilter
from SSLSegmentationLib.index_table import ALL, REFUSED, USABLE, IndexTable
from SSLSegmentationLib.job_monitor import Watched
from SSLSegmentationLib.panel import Panel, deliberate, guarded
from SSLSegmentationLib.pick_dialog import PickDialog
from SSLSegmentationLib.stepwise import Stepwise

_SCAN = "scan"
_WROTE_INDEX = (0, 2)
"""Exit codes after which there is an index: with usable series, and without any."""
_COPIES = "scans"
"""Folder of the project for volumes of the scene."""
_MESSAGE_AT = 6
_KINDS_TOLD = 3
_ICON_SIZE = 16


class DataPanel(Panel):
    """Collects folders of scans, has them scanned, and shows what was found."""

    UI = "Data.ui"

    def setup(self) -> None:
        """Connect everything."""
        ui = self.ui
        self.widget.layout().removeWidget(self.message.widget)
        self.widget.layout().insertWidget(_MESSAGE_AT, self.message.widget)
        self._table = IndexTable(ui.dataTable)
        self._reading = Stepwise(self._on_unreadable)
        self._copying = Stepwise(self._on_not_copied)
        self._finding = Stepwise(self.message.show_error)
        self._copied = (0, 0)
        self._shown: tuple[Path, int] | None = None
        self._dialog: PickDialog | None = None
        explained = (*self._adders, ui.dataScanButton, ui.dataRemoveButton)
        self._tips = {button.objectName: button.toolTip for button in explained}
        self._drops = DropFilter(self.on_dropped)
        ui.dataSources.viewport().acceptDrops = True
        ui.dataSources.viewport().installEventFilter(self._drops)
        icon = slicer.app.style().standardIcon(qt.QStyle.SP_MessageBoxWarning)
        ui.dataStaleIcon.setPixmap(icon.pixmap(_ICON_SIZE, _ICON_SIZE))
        ui.dataAddButton.connect("clicked()", self.on_add)
        ui.dataRemoveButton.connect("clicked()", self.on_remove)
        ui.dataDicomButton.connect("clicked()", self.on_dicom)
        ui.dataSceneButton.connect("clicked()", self.on_scene)
        ui.dataScanButton.connect("clicked()", self.on_scan)
        ui.dataOpenButton.connect("clicked()", self.on_open)
        ui.dataSources.connect("itemSelectionChanged()", self._enable)
        ui.dataFilter.connect("currentIndexChanged(int)", self._on_filter)
        ui.dataTable.connect("itemDoubleClicked(QTreeWidgetItem*,int)", self.on_open)
        ui.dataTable.connect("itemSelectionChanged()", self._show_details)
        self.session.project_changed.connect(self._show_project)
        self.session.environment_changed.connect(self._enable)
        self.monitor.changed.connect(self._show_activity)
        self.monitor.ticked.connect(self._show_activity)
        self.monitor.ended.connect(self._on_ended)
        self._show_project()

    def scene_closes(self) -> None:
        """The volumes that are being copied are about to go."""
        self._close_dialog()
        self._copying.stop()
        self._show_activity()

    def cleanup(self) -> None:
        """Leave undone what is done in this process; a scan goes on."""
        self._close_dialog()
        for work in (self._reading, self._copying, self._finding):
            work.stop()
        self.ui.dataSources.viewport().removeEventFilter(self._drops)

    # Folders

    @guarded
    def on_add(self) -> None:
        """Ask for a folder of scans."""
        start = self.session.setting("scans") or str(Path.home())
        title = _("Choose a folder of CT scans")
        folder = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title, start)
        if folder:
            self.session.remember("scans", str(folder))
            self._add([Path(str(folder))])

    @guarded
    def on_dropped(self, paths: list[Path]) -> None:
        """Take what was dropped onto the list."""
        self._add(paths)

    @guarded
    def on_remove(self) -> None:
        """Take the selected folders off the list."""
        project, sources = self.session.needs_project(), self.ui.dataSources
        kept = [p for row, p in enumerate(source_paths(project)) if not _selected(sources, row)]
        self.session.use_project(with_sources(project, tuple(kept)))

    @guarded
    def on_dicom(self) -> None:
        """Let series of the DICOM database be chosen."""
        self.session.needs_project()
        database = data_sources.dicom_database()
        dialog = self._new_dialog(
            title=_("CT series of Slicer's DICOM database"),
            sentence=_(
                "The folders that hold the ticked series are added to the list, with what else "
                "lies in them. Nothing is loaded or copied."
            ),
            empty=_("The database holds no CT series. Import some in the module DICOM."),
        )

        def chosen(uids: list[str]) -> None:
            self._finding.start(data_sources.dicom_folders(database, uids), self.on_dropped)

        dialog.show(data_sources.dicom_choices(database), chosen)

    @guarded
    def on_scene(self) -> None:
        """Let volumes of the scene be chosen."""
        self.session.needs_project()
        choices = data_sources.volume_choices()
        dialog = self._new_dialog(
            title=_("Volumes of the scene"),
            sentence=_(
                "The ticked volumes are copied into the project, where their transforms put them; "
                "their names are left out."
            ),
            empty="",
        )
        dialog.show(choices, self._copy)

    def _add(self, paths: list[Path]) -> None:
        project = self.session.needs_project()
        fresh = new_sources(project, paths)
        if not fresh:
            self.message.show(_("That is searched already."), "info")
            return
        self.session.use_project(with_sources(project, (*source_paths(project), *fresh)))

    def _copy(self, nodes: list[Any]) -> None:
        folder = self.session.needs_project().folder / _COPIES
        steps = data_sources.copied_volumes(nodes, folder, progress=self._on_copying)
        self._copying.start(steps, lambda told: self._on_copied(folder, told))
        self._show_activity()

    def _on_copying(self, number: int, total: int) -> None:
        self._copied = (number, total)
        self._show_activity()

    @guarded
    def _on_copied(self, folder: Path, told: list[str]) -> None:
        if new_sources(self.session.needs_project(), [folder]):
            self._add([folder])
        else:
            self._show_project()
        if told:
            text = _("Interpolated while copying: {reasons}.").format(reasons="; ".join(told))
            self.message.show(text, "warning")

    def _on_not_copied(self, error: LogicError) -> None:
        self.message.show_error(error)
        self._show_activity()

    def _new_dialog(self, **texts: str) -> PickDialog:
        self._close_dialog()
        self._dialog = PickDialog(self.folder, **texts)
        return self._dialog

    def _close_dialog(self) -> None:
        if self._dialog is not None:
            self._dialog.close()
            self._dialog = None

    # Scanning

    @deliberate
    def on_scan(self) -> None:
        """Start a scan, or cancel what goes on."""
        scanning = self.monitor.active(what=_SCAN)
        if self._copying.is_busy:
            self._copying.stop()
        elif scanning is not None:
            self.monitor.stop(job=scanning.job)
        else:
            self._start_scan()
        self._show_activity()

    def _start_scan(self) -> None:
        project = self.session.needs_project()
        paths = source_paths(project)
        missing = next((path for path in paths if not path.exists()), None)
        if missing is not None:
            raise LogicError(
                _("{path}: is not there.").format(path=missing),
                _("Connect its drive, or remove it from the list."),
            )
        self.session.start(ScanRequest(paths=paths, output=project.index), title=_("Scan for CT"))

    def _on_ended(self, watched: Watched) -> None:
        if watched.job.what != _SCAN:
            return
        status = watched.status
        if status.state == "cancelled":
            self.message.show(_("Cancelled; nothing has changed."), "info")
        elif status.state != "done":
            self.message.show(status.message or _("The scan has ended early."), "error")
        self._show_project()

    # What is shown

    def _show_project(self) -> None:
        self._show_sources()
        self._show_index()
        self._show_activity()

    def _show_sources(self) -> None:
        project, sources = self.session.project, self.ui.dataSources
        sources.clear()
        known = project.sources if project else ()
        for text in known:
            item = qt.QListWidgetItem(text)
            item.setToolTip(str(from_text(project, text)))
            sources.addItem(item)
        if not known:
            # Greyed, and no line that could be removed.
            item = qt.QListWidgetItem(_("Drop folders here, or add them below."))
            item.setFlags(qt.Qt.NoItemFlags)
            sources.addItem(item)

    def _show_activity(self) -> None:
        """Bar, sentence and button, as the scan or the copying stands."""
        scanning = self.monitor.active(what=_SCAN)
        value, total, text = 0, 0, ""
        if self._copying.is_busy:
            number, total = self._copied
            value = number - 1
            text = _("Copying volume {number} of {total}…").format(number=number, total=total)
        elif scanning is not None:
            value, total, text = self._scan_told(scanning)
        ui = self.ui
        ui.dataProgress.visible = ui.dataProgressText.visible = bool(text)
        ui.dataEmpty.visible = not text and not ui.dataResult.isVisibleTo(self.widget)
        # A maximum of 0 shows that something is done, and not how far it is.
        ui.dataProgress.maximum = total
        ui.dataProgress.value = value
        ui.dataProgressText.text = text
        ui.dataScanButton.text = _("Cancel") if text else _("Scan")
        self._enable()

    def _scan_told(self, scanning: Watched) -> tuple[int, int, str]:
        if self.monitor.is_stopping(scanning.job.folder):
            return 0, 0, _("Cancelling…")
        told = scan_progress(scanning.job.log)
        if told is None:
            return 0, 0, _("Looking for files…")
        text = _("{what}: {done} of {total}").format(
            what=told.what, done=f"{told.done:,}", total=f"{told.total:,}"
        )
        if told.left:
            text += _(", {left} left").format(left=told.left)
        return told.done, told.total, text

    def _enable(self) -> None:
        """Let be clicked what makes sense, and tell of all else why not."""
        ui, scanning = self.ui, self.monitor.active(what=_SCAN)
        stopping = scanning is not None and self.monitor.is_stopping(scanning.job.folder)
        nothing = "" if self.session.project else _("Open or make a project at the top first.")
        busy = _("Volumes are being copied.") if self._copying.is_busy else ""
        chosen = ui.dataSources.selectedItems()
        unselected = "" if chosen else _("Select folders in the list first.")
        for button in self._adders:
            self._allow(button, nothing or busy)
        self._allow(ui.dataRemoveButton, nothing or busy or unselected)
        ui.dataSources.enabled = not nothing
        if stopping:
            self._allow(ui.dataScanButton, _("It is being cancelled."))
        elif scanning is not None or busy:
            ui.dataScanButton.enabled = True
            ui.dataScanButton.toolTip = _("Stop; the earlier table stays")
        else:
            self._allow(ui.dataScanButton, nothing or self._why_no_scan())

    @property
    def _adders(self) -> tuple[Any, ...]:
        return self.ui.dataAddButton, self.ui.dataDicomButton, self.ui.dataSceneButton

    def _why_no_scan(self) -> str:
        try:
            self.session.needs_interpreter()
            sources = self.session.needs_project().sources
        except LogicError as error:
            return str(error)
        return "" if sources else _("Add a folder of scans first.")

    def _allow(self, button: Any, why_not: str) -> None:
        button.enabled = not why_not
        button.toolTip = why_not or self._tips[button.objectName]

    # The index

    def _show_index(self) -> None:
        project, ui = self.session.project, self.ui
        moment = scanned_at(project.index) if project else None
        ui.dataResult.visible = moment is not None
        if project is None or moment is None:
            self._reading.stop()
            self._shown = None
            ui.dataEmpty.text = self._what_next()
            return
        self._show_stale(project, moment)
        state = (project.index, int(moment.timestamp() * 1e6))
        if state != self._shown:
            self._shown = state
            ui.dataFound.text = _("Reading the table…")
            self._reading.start(self._table.filled(read_index(project.index)), self._on_read)

    def _what_next(self) -> str:
        if self.session.project is None:
            return _("Open or make a project at the top first.")
        if not self.session.project.sources:
            return _("Add the folders that hold your CT scans. They are only read, never changed.")
        return _(
            "Press Scan. It finds every CT series in these folders, and tells of all others why "
            "they cannot be used."
        )

    def _on_read(self, _result: None) -> None:
        self._show_summary(summarise(self._table.series))
        self._show_details()

    def _on_unreadable(self, error: LogicError) -> None:
        self._table.clear()
        self._shown = None
        self.ui.dataResult.visible = False
        self.ui.dataEmpty.text = self._what_next()
        self.message.show_error(error)

    def _show_stale(self, project: Project, moment: datetime) -> None:
        changed = changed_sources(project, scanned=self._scanned(moment))
        self.ui.dataStale.visible = bool(changed)
        if changed:
            names = ", ".join(path.name for path in changed[:_KINDS_TOLD])
            more = "…" if len(changed) > _KINDS_TOLD else ""
            text = _("Changed since the scan: {names}{more}. Scan again.")
            self.ui.dataStaleText.text = text.format(names=names, more=more)
            self.ui.dataStaleText.toolTip = "\n".join(map(str, changed))

    def _scanned(self, moment: datetime) -> tuple[str, ...]:
        """What the scan that wrote the index was asked to search; empty if it is not known."""
        for watched in self.monitor.jobs:
            job, status = watched.job, watched.status
            wrote = status.code in _WROTE_INDEX and datetime.fromisoformat(job.started) <= moment
            if job.what == _SCAN and wrote:
                return scanned_sources(job.argv)
        return ()

    def _show_summary(self, summary: Summary) -> None:
        ui, total = self.ui, summary.usable + summary.refused
        moment = scanned_at(self.session.needs_project().index)
        found = _("{total} series: {usable} usable, {refused} refused").format(
            total=f"{total:,}", usable=f"{summary.usable:,}", refused=f"{summary.refused:,}"
        )
        on = f"{moment.astimezone():%Y-%m-%d, %H:%M}" if moment else ""
        further = _(" Go on with 3. Pretrain.") if summary.usable else ""
        ui.dataFound.text = found + _refusals(self._table.series) + further
        ui.dataFound.toolTip = _("The usable series are of {patients} patients").format(
            patients=f"{summary.patients:,}"
        )
        ui.dataScanned.text = on
        ui.dataSpacing.text = _span(summary.spacing_mm, _("mm"))
        ui.dataSize.text = _span(summary.size, _("voxels"))
        self._show_disk(summary)
        texts = {ALL: _("all series ({n})"), USABLE: _("usable ({n})"), REFUSED: _("refused ({n})")}
        counts = {ALL: total, USABLE: summary.usable, REFUSED: summary.refused}
        for row, text in texts.items():
            ui.dataFilter.setItemText(row, text.format(n=f"{counts[row]:,}"))

    def _show_disk(self, summary: Summary) -> None:
        spacing = " × ".join(f"{mm:g}" for mm in USUAL_SPACING_MM)
        free = shutil.disk_usage(self.session.needs_project().folder).free
        text = _("about {need} ({free} free)")
        if summary.cache_bytes > free:
            text = _("about {need}, but only {free} are free")
        self.ui.dataCache.text = text.format(
            need=told_bytes(summary.cache_bytes), free=told_bytes(free)
        )
        self.ui.dataCache.toolTip = _(
            "For the cache of prepared scans, made at the first training. Estimated as all usable "
            "scans in full at {spacing} mm, 1.5 bytes per voxel; finer presets need more."
        ).format(spacing=spacing)

    # One series

    def _on_filter(self, which: int) -> None:
        self._table.show_only(which)
        self._show_details()

    def _show_details(self) -> None:
        series, ui = self._table.current(), self.ui
        ui.dataOpenButton.enabled = series is not None
        ui.dataOpenButton.toolTip = (
            _("Load {name} into the scene and show it").format(name=series.title)
            if series
            else _("Select a series in the table first.")
        )
        ui.dataDetails.visible = series is not None
        if series is None:
            return
        usable = _("usable; {form}, {files} files") if series.files > 1 else _("usable; {form}")
        verdict = series.reason or usable.format(form=series.format, files=series.files)
        ui.dataDetails.text = f"{series.title}: {verdict}"
        ui.dataDetails.toolTip = str(series.path)

    @guarded
    def on_open(self) -> None:
        """Show the selected series in the viewers."""
        series = self._table.current()
        if series is None:
            return
        files = files_of(series, self.session.needs_project().index)
        is_dicom = series.format == "DICOM"
        name = series.title.replace("/", " ")
        properties: dict[str, Any] = {"name": name, "singleFile": not is_dicom}
        if is_dicom:
            properties["fileNames"] = [str(file) for file in files]
        slicer.app.setOverrideCursor(qt.QCursor(qt.Qt.WaitCursor))
        try:
            node = slicer.util.loadVolume(str(files[0]), properties)
        except RuntimeError as error:
            raise LogicError(
                _("{file}: Slicer cannot read it.").format(file=files[0]),
                series.reason or _("See Slicer's error log."),
            ) from error
        finally:
            slicer.app.restoreOverrideCursor()
        slicer.util.setSliceViewerLayers(background=node, fit=True)


def _selected(sources: Any, row: int) -> bool:
    return bool(sources.item(row).isSelected())


def _refusals(series: list[Series]) -> str:
    """Why most were refused, in brackets."""
    kinds = Counter(one.kind for one in series if not one.usable).most_common()
    if not kinds:
        return "."
    told = ", ".join(f"{kind}: {count}" for kind, count in kinds[:_KINDS_TOLD])
    return f" ({told}{', …' if len(kinds) > _KINDS_TOLD else ''})."


def _span(values: Range | None, unit: str) -> str:
    if values is None:
        return "\u2013"
    pairs = zip(values.low, values.high, strict=True)
    axes = [f"{a:.3g}" if a == b else f"{a:.3g}\u2013{b:.3g}" for a, b in pairs]
    return f"{' × '.join(axes)} {unit}"
