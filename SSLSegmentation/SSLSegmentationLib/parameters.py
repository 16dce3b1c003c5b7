"""What is kept with the scene: choices about its nodes. No paths: scenes are given to others."""

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import parameterNodeWrapper


@parameterNodeWrapper
class Parameters:
    """The parameters of the module in a scene.

    Attributes:
        segmentVolume: the volume to segment.
        segmentOutput: where its result goes; None makes a new segmentation.
        segmentShow3D: whether surfaces are made after it.
    """

    segmentVolume: vtkMRMLScalarVolumeNode
    segmentOutput: vtkMRMLSegmentationNode
    segmentShow3D: bool = False
