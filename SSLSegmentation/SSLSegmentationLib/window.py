"""The whole of the module: the project at the top, and a section for each panel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

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
        self.session.project_changed.connect(self._show_project)
        self._use_parameters(self._parameters())
        self._restore()
        self._open_section()

    @guarded
    def _restore(self) -> None:
        self.session.restore()

    @guarded
    def on_new(self) -> None:
        """Ask for a folder and make a project there."""
        folder = self._asked(_("Choose a new or empty folder for the project"))
        if folder:
            self.session.use_project(create_project(Path(folder)))

    @guarded
    def on_open(self) -> None:
        """Ask for a project and open it."""
        folder = self._asked(_("Choose the folder of a project"))
        if folder:
            self.session.use_project(open_project(Path(folder)))

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

    def _asked(self, title: str) -> str:
        start = self.session.setting("project") or str(Path.home())
        return str(
            qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title, start) or ""
        )

    def _show_project(self) -> None:
        project = self.session.project
        self.ui.projectName.text = project.name if project else _("none is open")
        self.ui.projectName.toolTip = str(project.folder) if project else ""

    def _open_section(self) -> None:
        """Unfold what is to be done next."""
        ready = self.session.project is not None and self.session.interpreter is not None
        (self.ui.sectionData if ready else self.ui.sectionSetup).collapsed = False
