"""The whole of the module: the project at the top, and a section for each panel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SSLPretrainLogic.errors import LogicError
from SSLPretrainLogic.files import surely
from SSLPretrainLogic.project import create_project, open_project
from SSLSegmentationLib.catalogue import Catalogue
from SSLSegmentationLib.data_panel import DataPanel
from SSLSegmentationLib.finetune_panel import FinetunePanel
from SSLSegmentationLib.job_monitor import JobMonitor
from SSLSegmentationLib.jobs_panel import JobsPanel
from SSLSegmentationLib.panel import Panel, guarded
from SSLSegmentationLib.pretrain_panel import PretrainPanel
from SSLSegmentationLib.segment_panel import SegmentPanel
from SSLSegmentationLib.session import Session
from SSLSegmentationLib.setup_panel import SetupPanel

PANELS: tuple[type[Panel], ...] = (
    SetupPanel,
    DataPanel,
    PretrainPanel,
    FinetunePanel,
    SegmentPanel,
    JobsPanel,
)

_RECENT = 8
_NAME = 18
"""Letters of a project's name that fit into the narrowest panel."""


class Window(Panel):
    """The project bar and the panels.

    Args:
        folder: of the .ui files.
        parameters: gives the parameter node of the scene.
    """

    UI = "SSLSegmentation.ui"

    def __init__(self, folder: str, *, parameters: Callable[[], Any]) -> None:
        session = Session()
        monitor = JobMonitor(session)
        catalogue = Catalogue(session, monitor)
        self._parameters = parameters
        self._lost = ""
        self.panels: dict[str, Panel] = {}
        super().__init__(Path(folder), session=session, monitor=monitor, catalogue=catalogue)

    def setup(self) -> None:
        """Make all panels, then go on where Slicer was closed."""
        for kind in PANELS:
            name = kind.UI.removesuffix(".ui")
            panel = kind(
                self.folder, session=self.session, monitor=self.monitor, catalogue=self.catalogue
            )
            getattr(self.ui, f"section{name}").layout().addWidget(panel.widget)
            self.panels[name] = panel
        self.widget.layout().removeWidget(self.message.widget)
        self.widget.layout().insertWidget(1, self.message.widget)
        self.ui.newProjectButton.connect("clicked()", self.on_new)
        self.ui.openProjectButton.connect("clicked()", self.on_open)
        self._recent = qt.QMenu(self.widget)
        self._recent.connect("aboutToShow()", self._list_recent)
        self._recent.connect("triggered(QAction*)", self.on_recent)
        self.ui.recentProjectsButton.setMenu(self._recent)
        self.session.project_changed.connect(self._show_project)
        self.session.go_on.connect(self._unfold)
        self.monitor.changed.connect(self._show_lost)
        self._show_project()
        self._use_parameters(self._parameters())
        self._restore()
        self._open_section()

    @guarded
    def _restore(self) -> None:
        self.session.restore()

    @guarded
    def on_new(self) -> None:
        """Ask for a folder and make a project there."""
        # A new one lies beside the last one.
        start = Path(self.session.setting("project") or Path.home() / "any").parent
        folder = self._asked(_("Choose a new or empty folder for the project"), start)
        if folder:
            self.session.use_project(create_project(Path(folder)))

    @guarded
    def on_open(self) -> None:
        """Ask for a project and open it."""
        start = Path(self.session.setting("project") or Path.home())
        folder = self._asked(_("Choose the folder of a project"), start)
        if folder:
            self.session.use_project(open_project(Path(folder)))

    @guarded
    def on_recent(self, action: Any) -> None:
        """Open a project of the list."""
        self.session.use_project(open_project(Path(str(action.data()))))

    def enter(self) -> None:
        """The module is shown."""
        self.monitor.enter()

    def exit(self) -> None:
        """Another module is shown."""
        self.monitor.exit()

    def scene_closes(self) -> None:
        """All nodes are about to go."""
        self._use_parameters(None)
        for panel in self.panels.values():
            panel.scene_closes()

    def scene_closed(self) -> None:
        """The scene is empty: it gets a parameter node again."""
        self._use_parameters(self._parameters())

    def cleanup(self) -> None:
        """Let go of everything; jobs go on."""
        self._use_parameters(None)
        for panel in self.panels.values():
            panel.cleanup()
        self.monitor.cleanup()

    def _use_parameters(self, parameters: Any) -> None:
        for panel in self.panels.values():
            panel.use_parameters(parameters)

    def _asked(self, title: str, start: Path) -> str:
        window = slicer.util.mainWindow()
        return str(qt.QFileDialog.getExistingDirectory(window, title, str(start)) or "")

    def _show_project(self) -> None:
        project = self.session.project
        name = project.name if project else _("none is open")
        self.ui.projectName.text = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
        self.ui.projectName.toolTip = str(project.folder) if project else ""
        recent = self._recent_folders()
        if project:
            recent = [*dict.fromkeys([str(project.folder), *recent])][:_RECENT]
            self.session.remember("recentProjects", "\n".join(recent))
        self.ui.recentProjectsButton.enabled = bool(recent)

    def _show_lost(self) -> None:
        """Say that the project is gone, until it is back or another one is open."""
        lost = ""
        if self.session.project is not None:
            try:
                self.session.needs_project()
            except LogicError as error:
                lost = str(error)
        if lost:
            self.message.show(lost, "error")
        elif self._lost:
            self.message.clear()
        self._lost = lost

    def _recent_folders(self) -> list[str]:
        return self.session.setting("recentProjects").splitlines()

    def _list_recent(self) -> None:
        self._recent.clear()
        for folder in self._recent_folders():
            if surely(Path(folder).exists):
                # A single ampersand would mark a key.
                self._recent.addAction(folder.replace("&", "&&")).setData(folder)

    def _open_section(self) -> None:
        """Unfold what is to be done next."""
        ready = self.session.project is not None and self.session.interpreter is not None
        self._unfold("Data" if ready else "Setup")

    def _unfold(self, name: str) -> None:
        getattr(self.ui, f"section{name}").collapsed = False
