"""The panel Jobs: all that was started in the project, and what can be done with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.jobs import Job
from SSLPretrainLogic.project import find_runs
from SSLPretrainLogic.stopping import StopProgress
from SSLSegmentationLib.job_rows import Copied, Row, argv_of, line_here, line_there, make_rows
from SSLSegmentationLib.log_view import LogView
from SSLSegmentationLib.panel import Panel, deliberate, guarded
from SSLSegmentationLib.run_view import RunView, open_path, switch
from SSLSegmentationLib.wording import state_icon, state_pixmap, state_words

_LOOK_EVERY = 4
"""Ticks between two looks at all runs; the one that is selected follows each tick."""

_STATE_COLUMN = 2
_ROW_HEIGHT = 24


class JobsPanel(Panel):
    """A table of runs and jobs, and below it the one that is selected."""

    UI = "Jobs.ui"

    def setup(self) -> None:
        """Connect the widgets."""
        self._rows: tuple[Row, ...] = ()
        self._key: Path | None = None
        self._ticks = 0
        self._stop: tuple[Path, StopProgress] | None = None
        ui = self.ui
        self._view = RunView(self.folder, session=self.session, monitor=self.monitor)
        ui.jobsRunPlace.layout().addWidget(self._view.widget)
        self._log = LogView(ui.jobsLog)
        self._set_up_table()
        self._make_copy_menu()
        ui.jobsLogButton.connect("toggled(bool)", self.on_log)
        ui.jobsFolderButton.connect("clicked()", self.on_folder)
        ui.jobsStopButton.connect("clicked()", self.on_stop)
        ui.jobsForgetButton.connect("clicked()", self.on_forget)
        self.session.project_changed.connect(self._on_project)
        self.session.started.connect(self._on_started)
        self.monitor.changed.connect(self.refresh)
        self.monitor.ticked.connect(self._on_tick)
        self.monitor.stop_progress.connect(self._on_stop_progress)
        self.refresh()

    def _set_up_table(self) -> None:
        table = self.ui.jobsTable
        table.verticalHeader().visible = False
        table.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        header = table.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        table.connect("itemSelectionChanged()", self._on_selection)

    def _make_copy_menu(self) -> None:
        menu = qt.QMenu(self.ui.jobsCopyButton)
        for text, slot in (
            (_("Command line for this machine"), self.on_copy_here),
            (_("Command line for a server with Linux or macOS"), self.on_copy_posix),
            (_("Command line for a server with Windows"), self.on_copy_windows),
        ):
            menu.addAction(text).triggered.connect(slot)
        self.ui.jobsCopyButton.setMenu(menu)

    def cleanup(self) -> None:
        """Let go of all signals; jobs go on."""
        self._view.cleanup()
        self.session.project_changed.disconnect(self._on_project)
        self.session.started.disconnect(self._on_started)
        self.monitor.changed.disconnect(self.refresh)
        self.monitor.ticked.disconnect(self._on_tick)
        self.monitor.stop_progress.disconnect(self._on_stop_progress)

    # What is new

    def _on_project(self) -> None:
        self._key = None
        self.message.clear()
        self.refresh()

    def _on_started(self, job: Job) -> None:
        self._key = job.run or job.folder
        self.refresh()

    def _on_tick(self) -> None:
        self._ticks += 1
        if self._ticks % _LOOK_EVERY == 0 and self.widget.visible:
            self.refresh()
        self._follow_log()

    def _on_stop_progress(self, key: Path, progress: StopProgress) -> None:
        self._stop = None if progress.is_over else (key, progress)
        self._show_selected()

    @property
    def selected(self) -> Row | None:
        """The row that is looked at."""
        return next((row for row in self._rows if row.key == self._key), None)

    def refresh(self) -> None:
        """Look at all runs and jobs."""
        project = self.session.project
        runs = () if project is None else find_runs(project)
        self._rows = make_rows(runs, self.monitor.jobs if project is not None else ())
        if self.selected is None:
            self._key = self._rows[0].key if self._rows else None
        self._fill_table()
        self._show_selected()

    def _fill_table(self) -> None:
        table = self.ui.jobsTable
        # Else each cell that changes would be drawn, and the selection told about, by itself.
        blocked = table.blockSignals(True)
        if table.rowCount != len(self._rows):
            table.setRowCount(len(self._rows))
        for place, row in enumerate(self._rows):
            for column, (text, tip) in enumerate(zip(row.texts, row.tips, strict=True)):
                _cell(table, place, column, text, tip)
            table.item(place, _STATE_COLUMN).setIcon(state_icon(row.state))
            if row.key == self._key and table.currentRow() != place:
                table.selectRow(place)
        table.blockSignals(blocked)
        has_project = self.session.project is not None
        table.visible = bool(self._rows)
        self.ui.jobsEmptyLabel.visible = not self._rows
        self.ui.jobsDetails.visible = bool(self._rows)
        self.ui.jobsEmptyLabel.text = (
            _("Nothing was started in this project yet. Begin with Data and Pretrain above.")
            if has_project
            else _("No project is open. Open or make one at the top.")
        )

    def _on_selection(self) -> None:
        place = self.ui.jobsTable.currentRow()
        if 0 <= place < len(self._rows):
            self._key = self._rows[place].key
            self.message.clear()
            self._show_selected()

    # The one that is selected

    def _show_selected(self) -> None:
        row, ui = self.selected, self.ui
        has_run = row is not None and row.run is not None
        ui.jobsRunPlace.visible = has_run
        ui.jobsJobPlace.visible = row is not None and not has_run
        # A run has these beside its progress.
        ui.jobsStopButton.visible = ui.jobsFolderButton.visible = not has_run
        self._view.show_run(row.run if row else None)
        if row is not None and not has_run:
            self._show_job(row)
        ui.jobsLog.visible = row is not None and (not has_run or ui.jobsLogButton.checked)
        ui.jobsLogButton.visible = has_run
        self._follow_log()
        ended = self._ended
        switch(
            ui.jobsForgetButton,
            on=bool(ended),
            tip=_("Take jobs that have ended out of this list; runs and results stay."),
            why_not=_("No job has ended."),
        )

    def _show_job(self, row: Row) -> None:
        ui = self.ui
        ui.jobsStateIcon.setPixmap(state_pixmap(row.state))
        text = f"{row.title}: {state_words(row.state)}"
        is_stopping = self._stop is not None and self._stop[0] == row.key
        if self._stop is not None and is_stopping:
            left = _("{n} processes left").format(n=self._stop[1].left)
            text = f"{row.title}: {self._stop[1].message} ({left})"
        ui.jobsStateLabel.text = text
        ui.jobsErrorLabel.text = row.message
        ui.jobsErrorLabel.visible = bool(row.message)
        switch(
            ui.jobsStopButton,
            on=row.is_active and not is_stopping and row.state != "stopping",
            tip=_("End it, with all its processes."),
            why_not=_("It is being stopped.") if row.is_active else _("It does not go on."),
        )

    def _follow_log(self) -> None:
        row = self.selected
        self._log.show_file(row.log if row is not None and self.ui.jobsLog.visible else None)
        self._log.look()

    @property
    def _ended(self) -> list[Job]:
        """Jobs that are over; one on another machine may go on."""
        return [
            watched.job
            for watched in self.monitor.jobs
            if not watched.status.is_active and watched.status.state != "elsewhere"
        ]

    # What a person clicks

    @guarded
    def on_log(self) -> None:
        """Show or hide the log of a run."""
        self._show_selected()

    @guarded
    def on_folder(self) -> None:
        """Show the folder of the job."""
        if self.selected is not None:
            open_path(self.selected.key)

    @deliberate
    def on_stop(self) -> None:
        """Stop the job, and all its processes."""
        if self.selected is not None and self.selected.watched is not None:
            self.monitor.stop(job=self.selected.watched.job)

    @guarded
    def on_forget(self) -> None:
        """Ask, then forget all jobs that have ended."""
        ended = self._ended
        question = _(
            "Forget {n} jobs that have ended? Their logs are deleted; runs and results stay."
        ).format(n=len(ended))
        if ended and slicer.util.confirmOkCancelDisplay(question, _("Forget ended jobs")):
            self.monitor.forget(ended)

    @guarded
    def on_copy_here(self) -> None:
        """Copy the command line as it runs on this machine."""
        if self.selected is not None:
            self._copy(line_here(argv_of(self.selected)))

    @guarded
    def on_copy_posix(self) -> None:
        """Copy the command line for a server with Linux or macOS."""
        self._copy_for_server("posix")

    @guarded
    def on_copy_windows(self) -> None:
        """Copy the command line for a server with Windows."""
        self._copy_for_server("windows")

    def _copy_for_server(self, system: Any) -> None:
        if self.selected is not None:
            project = self.session.needs_project()
            self._copy(line_there(argv_of(self.selected), project=project, system=system))

    def _copy(self, copied: Copied) -> None:
        qt.QApplication.clipboard().setText(copied.line)
        self.message.show(copied.message)


def _cell(table: Any, row: int, column: int, text: str, tip: str) -> None:
    item = table.item(row, column)
    if item is None:
        item = qt.QTableWidgetItem()
        table.setItem(row, column, item)
    if item.text() != text:
        item.setText(text)
    item.setToolTip(tip)
