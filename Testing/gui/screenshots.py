"""Goes the whole way in the test host and writes the pictures of the README's tutorial.

python Testing/gui/screenshots.py Resources/screenshots
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

WIDTH = 440
MARGIN = 4
SCALE = 2
REST_S = 1.0
PROBED = (4, 5, 6, 7)
PRETRAIN_STEPS, PRETRAIN_SEEN = 160, 140
"""How long it learns, and when that is drawn: by then the prediction shows something."""


def main() -> int:
    """Write all pictures; answers the exit code."""
    parser = argparse.ArgumentParser(description="Write the pictures of the tutorial.")
    parser.add_argument("folder", type=Path, help="where they go")
    folder = parser.parse_args().folder
    from slicer_host.session import Host
    from story import Names, Story

    names = Names(
        project="Abdomen",
        archive="CT archive",
        run="First-run",
        model="Organs",
        patient="New patient",
        labelled="Labelled CT",
    )
    with tempfile.TemporaryDirectory(prefix="tutorial-") as place:
        host = Host(Path(place) / "slicer")
        # Under another name, since the pictures show where it lies.
        environment = Path(place) / "python-for-ct"
        environment.symlink_to(sys.prefix, target_is_directory=True)
        python = environment / Path(sys.executable).relative_to(sys.prefix)
        story = Story(
            host,
            Path(place),
            names=names,
            python=python,
            pretrain_steps=PRETRAIN_STEPS,
            probed=PROBED,
        )
        _tell(story, Album(host, folder))
        host.check()
        host.stop()
    # Qt and VTK, taken down in the order of Python, would end the process with an error.
    sys.stdout.flush()
    os._exit(0)


class Album:
    """Draws panels as high as what they hold."""

    def __init__(self, host: Any, folder: Path) -> None:
        self._host, self._folder = host, folder

    def draw(self, panel: Any, name: str) -> None:
        """A picture of a scroll area or of another widget, in the width of all."""
        content = panel.widget() if hasattr(panel, "setWidgetResizable") else panel
        for _ in range(2):
            # Wrapped lines need the width first.
            layout = content.layout()
            inner = WIDTH - 2 * MARGIN
            height = max(layout.totalHeightForWidth(inner), layout.totalMinimumSize().height())
            panel.resize(WIDTH, height + 2 * MARGIN)
            self._rest()
        path = self._folder / f"{name}.png"
        self._host.picture(panel, path, scale=SCALE)
        # Panels have few colours; with a palette a picture takes a third of the space. Of the ways
        # to choose one this keeps colours that are rare, as of icons.
        with Image.open(path) as drawn:
            few = drawn.convert("RGB").quantize(
                method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE
            )
        few.save(path, optimize=True)

    def _rest(self) -> None:
        """Let timers and layouts come to rest."""
        until = time.monotonic() + REST_S
        self._host.wait_until(lambda: time.monotonic() > until)


def _tell(story: Any, album: Album) -> None:
    story.open()
    story.make_project()
    story.set_up()
    album.draw(story.panel, "1_setup")
    story.unfold("Data")
    story.scan()
    story.load_and_draw()
    album.draw(story.panel, "2_data")
    story.unfold("Pretrain")
    story.choose_pretraining()
    album.draw(story.panel, "3_pretrain")
    advanced = story.ui("Pretrain").pretrainAdvanced
    story.host.click(advanced)
    album.draw(advanced, "3_pretrain_probe")
    story.host.click(advanced)
    story.start_pretraining()
    story.wait_for_step(PRETRAIN_SEEN)
    story.wait(lambda: story.run.runPreviewBox.visible)
    album.draw(story.ui("Pretrain").pretrainRunSection, "3_pretrain_run")
    story.wait_for_state("Done")
    story.unfold("Finetune")
    story.choose_finetuning()
    album.draw(story.panel, "4_finetune")
    story.finetune()
    album.draw(story.ui("Finetune").finetuneRunSection, "4_finetune_run")
    volume = story.load_new_patient()
    story.unfold("Segment")
    story.segment()
    album.draw(story.panel, "5_segment")
    story.unfold("Jobs")
    story.look_at_job(story.names.run)
    album.draw(story.panel, "jobs")
    _draw_effect(story, volume, album)


def _draw_effect(story: Any, volume: Any, album: Album) -> None:
    from slicer_host.effects import Editor
    from SSLSegmentationLib.startup import EFFECT

    node = story.slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[-1]
    segment = node.GetSegmentation().GetNthSegmentID(0)
    editor = Editor(EFFECT, segmentation=node, volume=volume, segment=segment)
    editor.options.show()
    story.host.settle()
    album.draw(editor.options, "effect")


if __name__ == "__main__":
    sys.exit(main())
