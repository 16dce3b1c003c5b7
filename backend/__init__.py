"""Self-supervised pretraining, fine-tuning and segmentation of CT, without a GUI."""

__version__ = "0.1.0"
